"""Images to run a tuned network on: a split of its own data, or any files."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax.data.images import archive, image_files, sources
from toast_jax.data.images.image_files import UNLABELLED, Files, UprightFiles
from toast_jax.data.images.labels import table
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset, verify
from toast_jax.errors import InputError, listed
from toast_jax.fields import joined

SPLITS = ("train", "val", "test")
STDIN = "-"


def each_path(where: str) -> Iterator[str]:
    """Yield the paths of images, in constant memory, except for tables and archives, whose names are read first.

    Args:
        where: a folder, searched at every depth; a table with the column path; a zip archive; an image; or `-` for paths from
            standard input, one per line.

    Raises:
        InputError: there is no image, or the folder, table or archive cannot be read.
    """
    path = os.path.expanduser(where)
    if where == STDIN:
        yield from filter(None, (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer))
    elif not os.path.exists(path):
        raise InputError(f"There is nothing at {path}: give a folder with images, or an image.")
    elif os.path.isdir(path):
        yield from image_files.in_folder(path)
    elif table.is_table(path):
        yield from table.paths(path)
    elif archive.is_archive(path):
        yield from (os.path.join(path, name) for name in sorted(archive.names(path)) if image_files.is_image(name))
    else:
        yield path


def open_images(
    data: ConfigDict, where: str, classes: Sequence[str] = (), *, seed: int = 0, run: str | Path | None = None
) -> tuple[Source, str]:
    """Open a split, or image files and folders.

    Args:
        data: the data of the run.
        where: train, val or test for a split of that data, without corrupt images if the run leaves them out; else folders,
            searched at every depth, and images, joined by + (see `fields.joined`).
        classes: those of the run, in the order of its logits; the labels of a split index into them.
        seed, run: seed and folder of the run, for images that it has held out.

    Returns:
        a source, whose only class is `UNLABELLED` unless it is a split, and the folder that image paths are relative to.

    Raises:
        InputError: there is no image, a file is not named like one, or a split has other classes.
    """
    if where in SPLITS:
        source = sources.read_split(data, where, seed=seed, run=run)
        if data.get("skip_corrupt", False):
            source = flat(verify(source, skip_corrupt=True))
        return relabel(source, classes) if classes else source, image_files.image_root(data)
    parts = (where,) if os.path.exists(os.path.expanduser(where)) else joined(where)  # a path may contain a plus
    if not parts:
        raise InputError("There are no images to look at; give a split (train, val, test), a folder, or images joined by +.")
    paths = tuple(path for part in parts for path in image_files.unlabelled(part).paths)
    if odd := [path for path in paths if not image_files.is_image(path)]:
        raise InputError(
            f"{odd[0]} is no image by its name ({listed(image_files.suffixes(), most=6)}): leave it out, or rename it."
        )
    folders = [part if os.path.isdir(part) else os.path.dirname(part) for part in map(os.path.expanduser, parts)]
    root = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    return UprightFiles(paths, (0,) * len(paths), (UNLABELLED,)), root


def flat(source: Source) -> Any:
    """Turn a subset of files into a source of files, whose paths annotations refer to."""
    files = flat(source.source) if isinstance(source, Subset) else None
    if not (isinstance(source, Subset) and isinstance(files, Files)):
        return source
    paths, labels = zip(*((files.paths[i], files.labels[i]) for i in source.indices), strict=True)
    return dataclasses.replace(files, paths=paths, labels=labels)


def relabel(source: Source, classes: Sequence[str]) -> Source:
    """Make the labels of a source index into `classes`, which a run has saved in the order of its logits.

    The orders differ for runs of versions that sorted class folders 0 to 999 as text.

    Raises:
        InputError: the source has other classes.
    """
    classes = tuple(classes)
    if source.classes == classes:
        return source
    if isinstance(source, Subset):
        return dataclasses.replace(source, source=relabel(source.source, classes))
    if not isinstance(source, Files) or sorted(source.classes) != sorted(classes):
        raise InputError(
            f"The data has the classes {listed(source.classes, most=3)} and the run {listed(classes, most=3)}, in this order: "
            "give the data that the run was tuned on."
        )
    return dataclasses.replace(
        source, labels=tuple(classes.index(source.classes[label]) for label in source.labels), classes=classes
    )


def labelled(source: Source) -> bool:
    """Return whether a source has labels."""
    return source.classes != (UNLABELLED,)


def spread(count: int, most: int) -> tuple[int, ...]:
    """Pick at most `most` of `count` positions at even distances, so that all classes of a sorted list are represented."""
    return tuple(i * count // most for i in range(most)) if count > most else tuple(range(count))
