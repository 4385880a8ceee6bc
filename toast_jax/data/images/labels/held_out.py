"""Training images held out for validation: a share of each class, drawn by seed, and recorded beside the run."""

import collections
import dataclasses
import hashlib
import json
import os
from pathlib import Path

from toast_jax.data.images.image_files import Files
from toast_jax.errors import InputError

VAL = "val"
FOLDER = "splits"  # for the record, in the folder of a run


def part(source: Files, split: str, *, share: float, seed: int, root: str, run: str | Path | None = None) -> Files:
    """Return the images that remain for training, or those held out for validation, in the order of the source.

    Whether an image is held out depends on the seed and the paths in its class, so adding or removing a few images moves few
    others. A class keeps at least one training image; of two images or more, at least one is held out.

    Args:
        source: all images.
        split: train or val.
        share: of each class to hold out.
        seed: of the draw.
        root: folder or archive that the paths in the record are relative to.
        run: folder of a run that has begun, whose record replaces the draw.

    Raises:
        InputError: no class has two images, or the record is damaged or lists images that the source lacks.
    """
    names = [os.path.relpath(path, root) for path in source.paths]
    if run and (record := Path(run).expanduser() / FOLDER / f"{split}.json").exists():
        return _take(source, _recorded(record, names))
    members = collections.defaultdict(list)
    for position, label in enumerate(source.labels):
        members[label].append(position)
    held_out: set[int] = set()
    for positions in members.values():
        count = min(max(1, round(share * len(positions))), len(positions) - 1)
        held_out.update(sorted(positions, key=lambda position: _draw(seed, names[position]))[:count])
    if not held_out:
        raise InputError(
            "No class has two images, so none can be held out for validation: add images, or set --config.data.held_out=0."
        )
    return _take(source, [position for position in range(len(names)) if (position in held_out) == (split == VAL)])


def record(source: Files, root: str) -> dict[str, str | int]:
    """Return the images of a source, by path below `root`, with their classes: a JSON split file.

    Classes that are in the order of numbers are written as such, as a split file sorts them otherwise than text.
    """
    are_numbers = all(name.isascii() and name.isdecimal() and name == str(int(name)) for name in source.classes)
    are_numbers = are_numbers and list(source.classes) == sorted(source.classes, key=int)
    classes = (int(name) if are_numbers else name for name in (source.classes[label] for label in source.labels))
    return dict(zip((os.path.relpath(path, root) for path in source.paths), classes, strict=True))


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()


def _take(source: Files, positions: list[int]) -> Files:
    paths = tuple(source.paths[position] for position in positions)
    return dataclasses.replace(source, paths=paths, labels=tuple(source.labels[position] for position in positions))


def _recorded(file: Path, names: list[str]) -> list[int]:
    position = {name: index for index, name in enumerate(names)}
    try:
        listing = list(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}): restore it, or begin anew in another --workdir.") from error
    if missing := [name for name in listing if name not in position]:
        raise InputError(
            f"{len(missing)} of {len(listing)} images of {file} are no longer in the data, the first is {missing[0]}: put them "
            "back, or begin anew in another --workdir."
        )
    return sorted(position[name] for name in listing)
