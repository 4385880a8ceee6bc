"""Convert between PyTorch's names and paths of parameters by rename tables (`model.backbones.rename_rules`)."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from toast_jax.errors import InputError, choose, listed
from toast_jax.model.backbones.rename_rules import Layout, Rename
from toast_jax.model.families import FAMILIES, Family
from toast_jax.weights.containers import Arrays


def kind(paths: Iterable[str]) -> Family:
    """Return the family that paths belong to; the first family if it is unclear (a `TopDown` module alone)."""
    owners = (family for path in paths for family in FAMILIES.values() if re.match(family.names.own_paths, path))
    return next(owners, next(iter(FAMILIES.values())))


def kind_of_torch(state: Arrays) -> Family:
    """Return the family that arrays by PyTorch's names belong to; the first family if it is unclear."""
    return recognized(state) or next(iter(FAMILIES.values()))


def recognized(state: Arrays) -> Family | None:
    """Return the family that PyTorch's names identify, or None."""
    return next((family for item in state.items() for family in FAMILIES.values() if family.names.has_name(*item)), None)


def from_torch(state: Arrays, last_blocks: int) -> tuple[Arrays, list[str]]:
    """Rename PyTorch arrays to "/"-joined paths.

    Args:
      state: arrays by PyTorch name, without prefixes.
      last_blocks: number of blocks outside the scanned stack (see `ViT.last_blocks`).

    Returns:
      arrays by path, and the names that the table lacks.

    Raises:
      ValueError: an array has other axes than its name implies, or layers do not stack.
    """
    layers, unknown = rename(state)
    return stack(layers, last_blocks), unknown


def rename(state: Arrays, table: Sequence[Rename] = ()) -> tuple[Arrays, list[str]]:
    """Rename as `from_torch` does, but with a path for every layer, `backbone/blocks/3/x`, and by any `table`."""
    left = dict(state)
    layers: Arrays = {}
    for row, i, torch_arrays in taken(table or kind_of_torch(state).names.table, "torch", left):
        try:
            arrays = row.forward(*torch_arrays)
        except (ValueError, IndexError) as error:
            names = [name.format(i=i) for name in row.torch]
            shapes = ", ".join(f"{name} is {array.shape}" for name, array in zip(names, torch_arrays, strict=True))
            raise ValueError(f"{shapes}, which no network here has") from error
        paths = [path.format(i=i) for path in row.paths]
        if any(path in layers for path in paths):  # another name of the same parameter
            left |= dict(zip((name.format(i=i) for name in row.torch), torch_arrays, strict=True))
        else:
            layers |= dict(zip(paths, arrays, strict=True))
    return layers, sorted(left)


def to_torch(arrays: Arrays, family: Family | None = None, depth: int = 0) -> Arrays:
    """Undo `from_torch`: return arrays by the release's names, without its prefix `enc.`.

    Args:
      arrays: by path.
      family: of the network; None infers it from the paths (see `kind`).
      depth: see `unstack`.
    """
    return rename_back(unstack(arrays, family, depth), family)


def layout_of(state: Arrays) -> tuple[Family, Layout] | None:
    """Return family and layout by the signs of layouts, or None; of several, the layout with the most names of the file."""
    pairs = [
        (family, layout)
        for family in FAMILIES.values()
        for layout in family.names.layouts
        if layout.sign and any(re.fullmatch(layout.sign, name) for name in state)
    ]
    return min(pairs, key=lambda pair: len(unnamed(state, pair[1].table)), default=None)


def unnamed(state: Arrays, table: Sequence[Rename]) -> Arrays:
    """Return the arrays whose PyTorch names a table lacks."""
    left = dict(state)
    for _ in taken(table, "torch", left):
        pass
    return left


def published(layers: Arrays, name: str) -> Arrays:
    """Return arrays by the names of a layout, such as "dinov3_timm", from a path for every layer of a backbone.

    LayerScale, which is folded, becomes 1, and a mask token 0; the network stays the same.

    Raises:
      InputError: there is no such layout, or it lacks names for some of the parameters.
    """
    return in_layout(layers, name)[1]


def in_layout(layers: Arrays, name: str) -> tuple[Layout, Arrays]:
    """Return the layout of a name that has a place for all of `layers`, and the arrays as `published` does."""
    options: dict[str, list[Layout]] = {}
    for layout in kind(layers).names.layouts:
        options.setdefault(layout.name, []).append(layout)
    for layout in choose("The layout of names", name, options):
        left = dict(layers)
        state = _back(layout.table, left)
        if not left:
            return layout, state
    raise InputError(f"Files of {name} have no place for {listed(sorted(left))}; choose another layout of names.")


def rename_back(layers: Arrays, family: Family | None = None) -> Arrays:
    """Undo `rename`, from a path for every layer; `family` as in `to_torch`."""
    left = dict(layers)
    state = _back((family or kind(layers)).names.table, left)
    if left:
        raise ValueError(f"the rename table has no line for {listed(sorted(left))}")
    return state


def _back(table, left):
    """Undo `rename` by a table, and remove its arrays from `left`."""
    state: Arrays = {}
    for row, i, arrays in taken(table, "paths", left):
        torch_arrays = row.backward(*map(np.asarray, arrays))
        state |= dict(zip((name.format(i=i) for name in row.torch), torch_arrays, strict=True))
    return {name: array for name, array in state.items() if array.size}


def table(layers: Arrays, family: Family | None = None) -> str:
    """Format the rows that apply to `layers`, one a line: PyTorch's names, paths, number of layers, shape."""
    shapes: dict[Rename, list[str]] = {}
    for row, _, arrays in taken((family or kind(layers)).names.table, "paths", dict(layers)):
        shapes.setdefault(row, []).append(str(arrays[0].shape))
    lines = [
        (", ".join(row.torch), _abbreviated(row.paths), f"{len(each)}x" if "{i}" in row.torch[0] else "", each[0])
        for row, each in shapes.items()
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _abbreviated(paths: tuple[str, ...]) -> str:
    """Abbreviate `("a/q/x", "a/k/x")` to `a/{q,k}/x`."""
    if len(paths) == 1:
        return paths[0]
    start = os.path.commonprefix(paths)
    end = os.path.commonprefix([path[len(start) :][::-1] for path in paths])[::-1]
    return f"{start}{{{','.join(path[len(start) : len(path) - len(end)] for path in paths)}}}{end}"


def taken(table: Iterable[Rename], side: str, left: Arrays) -> Iterator[tuple[Rename, int, list[np.ndarray]]]:
    """Yield each row and layer whose arrays are all in `left`, and remove these; `side` is "torch" or "paths"."""
    for row in table:
        patterns = getattr(row, side)
        for i in _layers(patterns[0], left):
            names = [pattern.format(i=i) for pattern in patterns]
            if all(name in left for name in names):
                yield row, i, [left.pop(name) for name in names]


def _layers(pattern: str, names: Iterable[str]) -> list[int]:
    """List the layer numbers for which `pattern` matches a name; [0] for a pattern without a layer."""
    if "{i}" not in pattern:
        return [0]
    regex = re.escape(pattern).replace(r"\{i\}", r"(\d+)")
    return sorted({int(match[1]) for name in names if (match := re.fullmatch(regex, name))})


def _numbered(paths: Iterable[str]) -> Iterator[tuple[str, str, str, int]]:
    """Yield the paths of single layers that are stacked, each with its stage, `{i}` in place of its number, and the number."""
    paths = list(paths)
    stacks = kind(paths).names.stacks
    for path in paths:
        if match := re.fullmatch(rf"(?P<layers>{stacks})/(?P<i>\d+)(?P<rest>/.*)?", path):
            yield path, match.groupdict().get("stage") or "", f"{match['layers']}/{{i}}{match['rest'] or ''}", int(match["i"])


def stack(arrays: Arrays, last_blocks: int) -> Arrays:
    """Stack layers: `backbone/blocks/3/x` becomes layer 3 of `backbone/blocks/x`, or `backbone/last_0/x`.

    Networks of stages have a stack per stage, as in `backbone/stages_2/blocks/x`; `last_blocks` are of the last stage.
    """
    family = kind(arrays)
    stacks: dict[str, dict[int, np.ndarray]] = {}
    out = dict(arrays)
    for path, _, pattern, i in _numbered(arrays):
        stacks.setdefault(pattern.replace("/{i}", ""), {})[i] = out.pop(path)
    depth = depths_of(arrays)[-1]
    for path, layers in stacks.items():
        if re.match(f"{family.names.last_stack}/", path):
            for i in [i for i in layers if i >= depth - last_blocks]:
                out[path.replace("/blocks/", f"/last_{i - depth + last_blocks}/")] = layers.pop(i)
        if layers:
            first = _first(path, layers)
            if missing := [i for i in range(first, first + len(layers)) if i not in layers]:
                raise ValueError(f"{path} has no layer {missing[0]}")
            out[path] = np.stack([layers[i] for i in sorted(layers)])
    return out


def unstack(arrays: Arrays, family: Family | None = None, depth: int = 0) -> Arrays:
    """Undo `stack`; `family` as in `to_torch`.

    Layers of a top-down module have the numbers of their blocks, the last ones of a network.

    Args:
      arrays: by path.
      family: as in `to_torch`.
      depth: number of blocks of the network, or of its last stage, for a part of its arrays; 0 if all blocks are there.
    """
    names = (family or kind(arrays)).names
    stacked, alone = _blocks(arrays, names)
    depth = depth or stacked + alone
    out: Arrays = {}
    for path, array in arrays.items():
        if match := re.fullmatch(rf"(?P<stack>{names.stacks})(?P<rest>/.*)?", path):
            first = max(0, depth - len(array)) if "top_down/" in path else 0
            out |= {f"{match['stack']}/{first + i}{match['rest'] or ''}": array[i] for i in range(len(array))}
        elif match := re.search(r"/last_(\d+)/", path):
            out[path.replace(match[0], f"/blocks/{depth - alone + int(match[1])}/")] = array
        else:
            out[path] = array
    return out


def stacked_depth(arrays: Arrays, family: Family) -> int:
    """Return the number of blocks of a network, or of its last stage, by its stacked arrays."""
    return sum(_blocks(arrays, family.names))


def _blocks(arrays, names):
    """Count the blocks in `last_stack`, and those outside of it."""
    stacked = max((len(array) for path, array in arrays.items() if re.match(f"{names.last_stack}/", path)), default=0)
    return stacked, len({match[0] for path in arrays if (match := re.search(r"/last_\d+/", path))})


def uneven_layers(layers: Arrays) -> list[str]:
    """List the paths, with `{i}` for the layer, that are missing in some layers of their stage."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for _, stage, pattern, i in _numbered(layers):
        numbers.setdefault((stage, pattern), []).append(i)
    depths = _depths(layers)
    return sorted(pattern for (stage, pattern), own in numbers.items() if len(own) < depths[stage] - _first(pattern, own))


def _first(path, numbers):
    """Return the first layer number of a path: a top-down module may cover only the last blocks."""
    return min(numbers) if "top_down/" in path else 0


def depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """Count the layers of each stage by the layer numbers in paths; (0,) without any. A ViT has one stage."""
    return tuple(depth for _, depth in sorted(_depths(names).items())) or (0,)


def _depths(names: Iterable[str]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for _, stage, _, i in _numbered(names):
        depths[stage] = max(depths.get(stage, 0), 1 + i)
    return depths
