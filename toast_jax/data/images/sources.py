"""Random-access sources of images, opened as a config describes them.

A source is immutable and picklable, so that worker processes can receive it.
"""

import contextlib
import dataclasses
import functools
import logging
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import image_files, pixels, synthetic_scenes, tfds_records
from toast_jax.data.images.labels import class_names, held_out, table
from toast_jax.data.images.vtab import records
from toast_jax.errors import InputError, choose

log = logging.getLogger(__name__)


class Source(Protocol):
    """The interface of all sources.

    `source[i]` is {'image': the bytes of an image file, or its pixels uint8 [H, W, 3], 'label': index into `classes`,
    'name': where the image is} and, for images that are turned upright by their EXIF orientation, 'orient': True.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


_STRETCHED = ("vtab",)  # formats whose images are stretched to a square, where those of the others are cropped


def is_stretched(data: ConfigDict) -> bool:
    """Return whether a run on this data sees images stretched to a square."""
    return data.format in _STRETCHED


def new_view(data: ConfigDict, image: np.ndarray) -> np.ndarray:
    """Resize a new image, uint8 [H, W, 3], as evaluation on this data does, and crop it unless it is stretched."""
    if is_stretched(data):
        return pixels.stretch(image, data.image_size)
    return pixels.eval_view(image, resize=data.resize, size=data.image_size)


def open_split(data: ConfigDict, split: str, *, seed: int = 0, run: str | Path | None = None) -> Source:
    """Open one split of the data of a config, and check that all of it exists.

    Args:
        data: the fields
            format: 'json', 'folder', 'tfds', 'vtab', 'scenes' or 'table'.
            root: the folder with the data, or a table; '~' is expanded.
            image_dir: folder of the images under `root`, '' for `root` itself (json, table).
            name: name of the dataset, such as 'stanford_dogs' (tfds), or of the task (vtab, scenes).
            splits: for each of train, val and test the stem of its JSON file or table, its value in the column split, its
                folder, its TFDS split such as 'train[:90%]', a number of scenes such as 'train[:500]', or one of train800,
                val200, train800val200 and test (vtab); '' where the data has no such split.
            split_file: a list of the images of train800 and val200, see `vtab.published`; '' for the slices of `vtab.tasks`.
            resize, image_size: both the side of the image (vtab).
            num_classes: 0 takes the number from the data; any other number must agree with the data, unless the classes are
                numbers below it: then these are the labels.
            labels: False for images without classes: JSON lists of paths, images anywhere under the split's folder, TFDS
                features without 'label'. All get label 0 of the class `UNLABELLED`; existing labels are not read.
            exif_orientation: True turns images upright by their EXIF orientation (json, folder, table).
            held_out: share of the training images that are val instead, see `held_out.part` (json, folder, table).
            class_names: file of the names of classes, '' for those in the data (json, folder, table).
            The last three are absent in runs of earlier versions.
        split: 'train', 'val' or 'test'.
        seed, run: of `held_out.part`.

    Raises:
        InputError: the data is missing, incomplete, or contradicts the config.
    """
    return _checked(data, read_split(data, split, seed=seed, run=run))


def open_splits(data: ConfigDict, *, seed: int = 0, run: str | Path | None = None) -> dict[str, Source]:
    """Open all splits of a config as `open_split` does; data that two splits are parts of is read once."""
    read = functools.cache(functools.partial(_read, data))
    _log_unused_val(data, read)
    opened = {name: _checked(data, _opened(data, name, read, seed, run)) for name in split_names(data)}
    classes = opened[image_files.TRAIN].classes
    if data.labels and len(classes) == 1:
        raise InputError(
            f"The data in {data.root} has one class, {classes[0]}, so there is nothing to tell apart: add images of other "
            "classes, or set --config.data.root to the folder that holds the class folders."
        )
    _log_twins(classes)
    return opened


def _log_twins(classes: Sequence[str]) -> None:
    """Log two classes whose names look the same: they differ in case, or in how Unicode composes a character."""
    names: dict[str, str] = {}
    for name in classes:
        alike = names.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if alike is not name:
            log.warning("%r and %r are two classes; if they are one, give them the same name.", alike, name)


def read_split(data: ConfigDict, split: str, *, seed: int = 0, run: str | Path | None = None) -> Source:
    """Open one split as `open_split` does, without a check of the number of classes."""
    if split not in split_names(data):
        raise InputError(f"The data has no {split} split: name one with --config.data.splits.{split}.")
    return _opened(data, split, functools.partial(_read, data), seed, run)


def _read(data: ConfigDict, split: str) -> Any:
    return choose("config.data.format", data.format, READERS)(data, split)


def _opened(data, split, read, seed, run) -> Source:
    share = data.get("held_out", 0)
    if share and split in (image_files.TRAIN, held_out.VAL):
        root = image_files.image_root(data)
        source = held_out.part(read(image_files.TRAIN), split, share=share, seed=seed, root=root, run=run)
    else:
        source = read(split)
    if file := data.labels and data.get("class_names", ""):
        source = dataclasses.replace(source, classes=class_names.read(file, source.classes))
    return source


def _log_unused_val(data: ConfigDict, read: Callable) -> None:
    """Log the images of a validation split that the data has although val is held out from train."""
    if data.get("held_out", 0) and data.splits.val and _has_splits(data):
        with contextlib.suppress(InputError):  # there is no such split
            log.warning(
                "The %d images of split %s are not used, because val is held out from train: set --config.data.held_out=0 to "
                "validate on them.",
                len(read(held_out.VAL)),
                data.splits.val,
            )


def _checked(data: ConfigDict, source: Source) -> Source:
    """Raise InputError unless a source has as many classes as the config says."""
    if data.num_classes not in (0, len(source.classes)):
        raise InputError(
            f"The data in {data.root} has {len(source.classes)} classes but config.data.num_classes is "
            f"{data.num_classes}: set --config.data.num_classes={len(source.classes)}, or 0 to take it from the data."
        )
    return source


def _has_splits(data: ConfigDict) -> bool:
    """Return whether the data says which split its images belong to."""
    without = {"folder": lambda: not image_files.has_split_folders(data), "table": lambda: not table.has_splits(data)}
    return not without.get(data.format, lambda: False)()


def split_names(data: ConfigDict) -> tuple[str, ...]:
    """List the splits that the data of a config has, in the order train, val, test."""
    named = {name for name, place in data.splits.items() if place}
    if data.get("held_out", 0):
        named = {image_files.TRAIN, held_out.VAL} | (named if _has_splits(data) else set())
    return tuple(name for name in (image_files.TRAIN, held_out.VAL, "test") if name in named)


READERS: dict[str, Callable[[ConfigDict, str], Any]] = {
    "json": image_files.read_json,
    "folder": image_files.read_folder,
    "tfds": tfds_records.read,
    "vtab": records.read,
    "scenes": synthetic_scenes.read,
    "table": table.read,
}
