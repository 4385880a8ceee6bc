"""PyTorch's names and ours: one table, read in both directions.

Files of the PyTorch release, of DeiT and of timm use the same names, up to prefixes that `weight_files.read` takes off.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable

import numpy as np

from toast_jax.errors import listed
from toast_jax.weight_files import Arrays


@dataclasses.dataclass(frozen=True)
class Rename:
    """One line of the table: `torch` names and `ours`, `{i}` standing for a layer, and how their arrays become each other."""

    torch: tuple[str, ...]
    ours: tuple[str, ...]
    forward: Callable = lambda *arrays: arrays
    backward: Callable = lambda *arrays: arrays


def _linear(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.weight",), (f"{ours}/kernel",), lambda w: (w.T,), lambda w: (w.T,))


def _bias(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.bias",), (f"{ours}/bias",))


def _norm(torch: str, ours: str) -> tuple[Rename, Rename]:
    return Rename((f"{torch}.weight",), (f"{ours}/scale",)), _bias(torch, ours)


def _thirds(w):
    return tuple(part.T for part in np.split(w, 3))


def _patches_to_kernel(w):
    return (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),)


def _kernel_to_patches(w):
    side = round((w.shape[0] / 3) ** 0.5)
    return (w.reshape(side, side, 3, -1).transpose(3, 2, 0, 1),)


def _qkv(suffix: str, prefix: str = "") -> tuple[str, str, str]:
    return tuple(f"{prefix}backbone/blocks/{{i}}/attn/{part}/{suffix}" for part in "qkv")


def _low_rank(torch: str, ours: str) -> tuple[Rename, Rename]:
    return (
        Rename((f"{torch}.lora_A",), (f"{ours}/a",), lambda w: (w.T,), lambda w: (w.T,)),
        Rename((f"{torch}.lora_B",), (f"{ours}/b",), lambda w: (w.T,), lambda w: (w.T,)),
    )


def _joined(*parts):
    return (np.concatenate([part.T for part in parts]),)


_BLOCK, _OURS = "blocks.{i}", "backbone/blocks/{i}"
VIT = (
    Rename(("cls_token",), ("backbone/cls_token",)),
    Rename(("pos_embed",), ("backbone/pos_embed",)),
    Rename(("patch_embed.proj.weight",), ("backbone/patch_embed/kernel",), _patches_to_kernel, _kernel_to_patches),
    _bias("patch_embed.proj", "backbone/patch_embed"),
    *_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm1"),
    Rename((f"{_BLOCK}.attn.qkv.weight",), _qkv("kernel"), _thirds, _joined),
    Rename((f"{_BLOCK}.attn.qkv.bias",), _qkv("bias"), _thirds, _joined),
    _linear(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    _bias(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    *_norm(f"{_BLOCK}.norm2", f"{_OURS}/norm2"),
    *(row(f"{_BLOCK}.mlp.{fc}", f"{_OURS}/mlp/{fc}") for fc in ("fc1", "fc2") for row in (_linear, _bias)),
    *_norm("norm", "backbone/norm"),
    # The classifier of the task that the backbone was trained on.
    Rename(("head.weight",), ("classifier/kernel",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename(("head.bias",), ("classifier/bias",)),
    Rename(("head.last_layer.weight",), ("head/kernel",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename(("head.last_layer.bias",), ("head/bias",)),
    # The top-down module: prompt is the prior, decoders are the feedback layers.
    Rename(("prompt",), ("top_down/prior",)),
    Rename(("top_down_transform",), ("top_down/transform",)),
    Rename(("decoders.{i}.linear.weight",), ("top_down/back/{i}",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename(("decoders.{i}.linear2.weight",), ("top_down/out/{i}",), lambda w: (w.T,), lambda w: (w.T,)),
    # Low-rank deltas: one A for the joint qkv kernel, and its B in three.
    Rename((f"{_BLOCK}.attn.qkv.lora_A",), (f"lora/{_OURS}/attn/a",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename((f"{_BLOCK}.attn.qkv.lora_B",), _qkv("b", "lora/"), _thirds, _joined),
    *_low_rank("decoders.{i}.linear", "lora/top_down/back/{i}"),
    *_low_rank("decoders.{i}.linear2", "lora/top_down/out/{i}"),
    # Deep prompts are two parameters in the release: the first block's, and all others'.
    Rename(
        ("prompt_embeddings", "deep_prompt_embeddings"),
        ("prompts/tokens",),
        lambda first, others: (np.concatenate([first, others]),),
        lambda tokens: (tokens[:1], tokens[1:]),
    ),
    Rename(("prompt_embeddings",), ("prompts/tokens",)),
)


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
    for row in VIT:
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


def to_torch(ours: Arrays) -> Arrays:
    """Undoes `from_torch`: arrays by the release's names, without its prefix `enc.`."""
    return rename_back(unstack(ours))


def rename_back(layers: Arrays) -> Arrays:
    """Undoes `rename`: arrays by the release's names, from paths with every layer on its own."""
    left, state = dict(layers), {}
    for row in VIT:
        for i in _layers(row.ours[0], left):
            paths = [path.format(i=i) for path in row.ours]
            if all(path in left for path in paths):
                arrays = row.backward(*(np.asarray(left.pop(path)) for path in paths))
                state |= dict(zip((name.format(i=i) for name in row.torch), arrays, strict=True))
    if left:
        raise ValueError(f"the rename table has no line for {listed(sorted(left))}")
    return {name: array for name, array in state.items() if array.size}


def table(layers: Arrays) -> str:
    """For paths with every layer on its own, one line for each row that applies: PyTorch's name, ours, layers, our shape."""
    left, lines = dict(layers), []
    for row in VIT:
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


_STACKED = r"(?P<stack>(?:lora/)?(?:backbone/blocks|top_down/(?:back|out)))"


def stack(arrays: Arrays, last_blocks: int) -> Arrays:
    """`backbone/blocks/3/x` -> layer 3 of `backbone/blocks/x`, or `backbone/last_0/x` for a block outside the stack."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED + r"/(?P<i>\d+)(?P<rest>/.*)?", path):
            stacks.setdefault(match["stack"] + (match["rest"] or ""), {})[int(match["i"])] = array
        else:
            out[path] = array
    depth = 1 + max((i for layers in stacks.values() for i in layers), default=-1)
    for path, layers in stacks.items():
        if "backbone/blocks" in path:
            for i in [i for i in layers if i >= depth - last_blocks]:
                out[path.replace("/blocks/", f"/last_{i - depth + last_blocks}/")] = layers.pop(i)
        if layers:
            if missing := [i for i in range(len(layers)) if i not in layers]:
                raise ValueError(f"{path} has no layer {missing[0]}")
            out[path] = np.stack([layers[i] for i in sorted(layers)])
    return out


def unstack(arrays: Arrays) -> Arrays:
    """Undoes `stack`."""
    stacked = max((len(array) for path, array in arrays.items() if "backbone/blocks/" in path), default=0)
    out = {}
    for path, array in arrays.items():
        if match := re.fullmatch(_STACKED + r"(?P<rest>/.*)?", path):
            out |= {f"{match['stack']}/{i}{match['rest'] or ''}": layer for i, layer in enumerate(array)}
        elif match := re.search(r"/last_(\d+)/", path):
            out[path.replace(match[0], f"/blocks/{stacked + int(match[1])}/")] = array
        else:
            out[path] = array
    return out


def uneven_layers(layers: Arrays) -> list[str]:
    """Paths, with `{i}` for the layer, that fewer layers have than there are."""
    counts: dict[str, int] = {}
    for name in layers:
        if match := re.fullmatch(_STACKED + r"/(?P<i>\d+)(?P<rest>/.*)?", name):
            pattern = f"{match['stack']}/{{i}}{match['rest'] or ''}"
            counts[pattern] = counts.get(pattern, 0) + 1
    return sorted(pattern for pattern, count in counts.items() if count < depth_of(layers))


def depth_of(names: Iterable[str]) -> int:
    """How many layers paths with layer numbers belong to."""
    matches = (re.match(_STACKED + r"/(?P<i>\d+)", name) for name in names)
    return 1 + max((int(match["i"]) for match in matches if match), default=-1)
