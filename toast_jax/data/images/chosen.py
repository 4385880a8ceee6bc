"""Images that a tuned run is to look at: a split of its own data, or any files."""

import os

from ml_collections import ConfigDict

from toast_jax.data.images import files, sources
from toast_jax.data.images.files import UNLABELLED, Files
from toast_jax.data.images.sources import Source
from toast_jax.errors import InputError

SPLITS = ("train", "val", "test")


def open_images(data: ConfigDict, where: str) -> tuple[Source, str]:
    """Opens images.

    Args:
        data: the data of the run.
        where: train, val or test for a split of that data; else folders, searched at every depth, and images, joined by +.

    Returns:
        a source, of the one class `UNLABELLED` unless it is a split, and the folder that image paths are relative to.

    Raises:
        InputError: nothing is there, or what is there is no image.
    """
    if where in SPLITS:
        source = sources.open_split(data, where)
        root = os.path.join(data.root, data.image_dir) if data.format == "json" else data.root
        return source, os.path.expanduser(root)
    given = [part for part in where.split("+") if part]
    if not given:
        raise InputError("There are no images to look at; give a split (train, val, test), a folder, or images joined by +.")
    paths = tuple(path for one in given for path in files.unlabelled(one).paths)
    if odd := [path for path in paths if not files.is_image(path)]:
        raise InputError(f"{odd[0]} is no image by its name ({', '.join(files.IMAGE_SUFFIXES)}): leave it out, or rename it.")
    folders = [one if os.path.isdir(one) else os.path.dirname(one) for one in (os.path.expanduser(part) for part in given)]
    root = os.path.commonpath([os.path.abspath(one) for one in folders])
    return Files(paths, (0,) * len(paths), (UNLABELLED,)), root


def labelled(source: Source) -> bool:
    return source.classes != (UNLABELLED,)


def spread(count: int, most: int) -> tuple[int, ...]:
    """At most so many of `count` places, at even distances, so that all classes of a sorted list have their share."""
    return tuple(i * count // most for i in range(most)) if count > most else tuple(range(count))
