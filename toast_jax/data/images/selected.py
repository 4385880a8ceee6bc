"""Images to run a tuned network on: a split of its own data, or any files."""

import dataclasses
import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from toast_jax.data.images import image_files, sources
from toast_jax.data.images.image_files import UNLABELLED, Files, UprightFiles
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset, verify
from toast_jax.errors import InputError, listed
from toast_jax.fields import joined

SPLITS = ("train", "val", "test")


def open_images(data: ConfigDict, where: str, classes: Sequence[str] = ()) -> tuple[Source, str]:
    """Open a split, or image files and folders.

    Args:
        data: the data of the run.
        where: train, val or test for a split of that data, without corrupt images if the run leaves them out; else folders,
            searched at every depth, and images, joined by + (see `fields.joined`).
        classes: those of the run, in the order of its logits; the labels of a split index into them.

    Returns:
        a source, with the only class `UNLABELLED` unless it is a split, and the folder that image paths are relative to.

    Raises:
        InputError: there is no image, a file is not named like one, or a split has other classes.
    """
    if where in SPLITS:
        source = sources.read_split(data, where)
        if data.get("skip_corrupt", False):
            source = _flat(verify(source, skip_corrupt=True))
        root = os.path.join(data.root, data.image_dir) if data.format == "json" else data.root
        return relabel(source, classes) if classes else source, os.path.expanduser(root)
    parts = joined(where)
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


def _flat(source: Source) -> Source:
    """Return a subset of files as files, which may have annotations."""
    if not (isinstance(source, Subset) and isinstance(source.source, Files)):
        return source
    files = source.source
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
    """Pick at most `most` of `count` positions at even distances, so that a list sorted by class is sampled evenly."""
    return tuple(i * count // most for i in range(most)) if count > most else tuple(range(count))
