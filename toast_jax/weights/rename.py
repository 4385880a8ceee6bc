"""PyTorch's names and ours, read in both directions by the tables of `rename_tables`."""

import os
import re
from collections.abc import Iterable

import numpy as np

from toast_jax.errors import listed
from toast_jax.weights.files import Arrays
from toast_jax.weights.rename_tables import CONVNEXT, LLAMA, VIT

_TABLES = {"ViT": VIT, "ConvNeXt": CONVNEXT, "LLaMA": LLAMA}


def kind(paths: Iterable[str]) -> str:
    """The kind of network that our paths belong to: "ViT", "ConvNeXt" or "LLaMA". A top-down module alone is a ViT's."""
    signs = {
        "ConvNeXt": r"(lora/)?(backbone/stages_|top_down/(back|out)_)",
        "LLaMA": r"backbone/(embed|head)$|(lora/)?backbone/blocks/(\d+/)?(attn/o|mlp/gate)/",
    }
    paths = list(paths)
    return next((name for name, sign in signs.items() if any(re.match(sign, path) for path in paths)), "ViT")


def kind_of_torch(state: Arrays) -> str:
    """The same by PyTorch's names. Those of a top-down module alone tell a LLaMA; a ConvNeXt's layers are convolutions."""
    for name, array in state.items():
        if name.startswith(("model.", "lm_head.")):
            return "LLaMA"
        if name.startswith(("stages.", "downsample_layers.")) or (name.startswith("decoders.") and array.ndim == 4):
            return "ConvNeXt"
    return "ViT"


def from_torch(state: Arrays, last_blocks: int) -> tuple[Arrays, list[str]]:
    """Renames PyTorch arrays to our "/"-joined paths.

    Args:
      state: arrays by PyTorch name, prefixes taken off.
      last_blocks: how many blocks stand outside the scanned stack (see `ViT.last_blocks`).

    Returns:
      our arrays by path, and the names that the table does not know.

    Raises:
      ValueError: an array has not the axes of its name, or layers do not stack.
    """
    ours, unknown = rename(state)
    return stack(ours, last_blocks), unknown


def rename(state: Arrays) -> tuple[Arrays, list[str]]:
    """`from_torch` with every layer on its own: `backbone/blocks/3/x`."""
    left, ours = dict(state), {}
    for row in _TABLES[kind_of_torch(state)]:
        for i in _layers(row.torch[0], left):
            names = [name.format(i=i) for name in row.torch]
            if all(name in left for name in names):
                theirs = [left.pop(name) for name in names]
                try:
                    arrays = row.forward(*theirs)
                except (ValueError, IndexError) as error:
                    found = ", ".join(f"{name} is {array.shape}" for name, array in zip(names, theirs, strict=True))
                    raise ValueError(f"{found}, which no network here has") from error
                ours |= dict(zip((path.format(i=i) for path in row.ours), arrays, strict=True))
    return ours, sorted(left)


def to_torch(ours: Arrays, network: str = "") -> Arrays:
    """Undoes `from_torch`: arrays by the release's names, without its prefix `enc.`.

    Args:
      ours: arrays by path.
      network: the kind of network that they are a part of, "" if they tell it (see `kind`).
    """
    return rename_back(unstack(ours), network)


def rename_back(layers: Arrays, network: str = "") -> Arrays:
    """Undoes `rename`: arrays by the release's names, from paths with every layer on its own; `network` as in `to_torch`."""
    left, state = dict(layers), {}
    for row in _TABLES[network or kind(layers)]:
        for i in _layers(row.ours[0], left):
            paths = [path.format(i=i) for path in row.ours]
            if all(path in left for path in paths):
                arrays = row.backward(*(np.asarray(left.pop(path)) for path in paths))
                state |= dict(zip((name.format(i=i) for name in row.torch), arrays, strict=True))
    if left:
        raise ValueError(f"the rename table has no line for {listed(sorted(left))}")
    return {name: array for name, array in state.items() if array.size}


def table(layers: Arrays, network: str = "") -> str:
    """For paths with every layer on its own, one line for each row that applies: PyTorch's name, ours, layers, our shape."""
    left, lines = dict(layers), []
    for row in _TABLES[network or kind(layers)]:
        numbers = [i for i in _layers(row.ours[0], left) if all(path.format(i=i) in left for path in row.ours)]
        arrays = [left.pop(path.format(i=i)) for i in numbers for path in row.ours]
        if arrays:
            names = ", ".join(row.torch), _together(row.ours)
            lines.append((*names, f"{len(numbers)}x" if "{i}" in row.torch[0] else "", str(arrays[0].shape)))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _together(paths: tuple[str, ...]) -> str:
    """`("a/q/x", "a/k/x")` -> `a/{q,k}/x`."""
    if len(paths) == 1:
        return paths[0]
    start = os.path.commonprefix(paths)
    end = os.path.commonprefix([path[len(start) :][::-1] for path in paths])[::-1]
    return f"{start}{{{','.join(path[len(start) : len(path) - len(end)] for path in paths)}}}{end}"


def _layers(pattern: str, names: Iterable[str]) -> list[int]:
    """The layer numbers for which `pattern` names something; [0] for a pattern without a layer."""
    if "{i}" not in pattern:
        return [0]
    regex = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
    return sorted({int(match[1]) for name in names if (match := re.fullmatch(regex, name))})


_STACKED = r"(?P<stack>(?:lora/)?(?:backbone/(?:(?P<stage>stages_\d)/)?blocks|top_down/(?:back|out)))/(?P<i>\d+)(?P<rest>/.*)?"
_LAST_STAGE = r"(?:lora/)?backbone/(?:stages_3/)?blocks(?:/.*)?"


def stack(arrays: Arrays, last_blocks: int) -> Arrays:
    """`backbone/blocks/3/x` -> layer 3 of `backbone/blocks/x`, or `backbone/last_0/x` for a block outside the stack.

    The blocks of a ConvNeXt, `backbone/stages_2/blocks/3/x`, are stacked by stage; those outside are of the last stage.
    """
    stacks: dict[str, dict[int, np.ndarray]] = {}
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED, path):
            stacks.setdefault(match["stack"] + (match["rest"] or ""), {})[int(match["i"])] = array
        else:
            out[path] = array
    depth = depths_of(arrays)[-1]
    for path, layers in stacks.items():
        if re.fullmatch(_LAST_STAGE, path):
            for i in [i for i in layers if i >= depth - last_blocks]:
                out[path.replace("/blocks/", f"/last_{i - depth + last_blocks}/")] = layers.pop(i)
        if layers:
            if missing := [i for i in range(len(layers)) if i not in layers]:
                raise ValueError(f"{path} has no layer {missing[0]}")
            out[path] = np.stack([layers[i] for i in sorted(layers)])
    return out


def unstack(arrays: Arrays) -> Arrays:
    """Undoes `stack`."""
    stacked = max((len(array) for path, array in arrays.items() if re.fullmatch(_LAST_STAGE, path)), default=0)
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED.replace(r"/(?P<i>\d+)", ""), path):
            out |= {f"{match['stack']}/{i}{match['rest'] or ''}": layer for i, layer in enumerate(array)}
        elif match := re.search(r"/last_(\d+)/", path):
            out[path.replace(match[0], f"/blocks/{stacked + int(match[1])}/")] = array
        else:
            out[path] = array
    return out


def uneven_layers(layers: Arrays) -> list[str]:
    """Paths, with `{i}` for the layer, that fewer layers have than there are in their stage."""
    counts: dict[tuple[str, str], int] = {}
    for name in layers:
        if match := re.fullmatch(_STACKED, name):
            key = match["stage"] or "", f"{match['stack']}/{{i}}{match['rest'] or ''}"
            counts[key] = counts.get(key, 0) + 1
    depths = _depths(layers)
    return sorted(pattern for (stage, pattern), count in counts.items() if count < depths[stage])


def depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """How many layers paths with layer numbers belong to, stage by stage; a ViT has one stage, and what has no layers (0,)."""
    return tuple(depth for _, depth in sorted(_depths(names).items())) or (0,)


def _depths(names: Iterable[str]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for name in names:
        if match := re.fullmatch(_STACKED, name):
            stage = match["stage"] or ""
            depths[stage] = max(depths.get(stage, 0), 1 + int(match["i"]))
    return depths
