"""Random-access sources of images, opened as a config describes them.

A source is immutable and picklable, so that worker processes can receive it.
"""

from collections.abc import Callable
from typing import Any, Protocol

from ml_collections import ConfigDict

from toast_jax.data.images import image_files, synthetic_scenes, tfds_records
from toast_jax.data.images.vtab import records
from toast_jax.errors import InputError, choose


class Source(Protocol):
    """The interface of all sources.

    `source[i]` is {'image': the bytes of an image file, or its pixels uint8 [H, W, 3], 'label': index into `classes`,
    'name': where the image is} and, for images that are turned upright by their EXIF orientation, 'orient': True.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_split(data: ConfigDict, split: str) -> Source:
    """Open one split of the data of a config, and check that all of it exists.

    Args:
        data: the fields
            format: 'json', 'folder', 'tfds', 'vtab' or 'scenes'.
            root: the folder with the data; '~' is expanded.
            image_dir: folder of the images under `root`, '' for `root` itself (json).
            name: name of the dataset, such as 'stanford_dogs' (tfds), or of the task (vtab, scenes).
            splits: for each of train, val and test the stem of its JSON file, its folder, its TFDS split such as 'train[:90%]',
                a number of scenes such as 'train[:500]', or one of train800, val200, train800val200 and test (vtab); '' where
                the data has no such split.
            split_file: a list of the images of train800 and val200, see `vtab.published`; '' for the slices of `vtab.tasks`.
            resize, image_size: both the side of the image (vtab).
            num_classes: 0 takes the number from the data; any other number must agree with the data, unless the classes are
                numbers below it: then these are the labels.
            labels: False for images without classes: JSON lists of paths, images anywhere under the split's folder, TFDS
                features without 'label'. All get label 0 of the class `UNLABELLED`; existing labels are not read.
            exif_orientation: True turns images upright by their EXIF orientation (json, folder); a missing field is False.
        split: 'train', 'val' or 'test'.

    Raises:
        InputError: the data is missing, incomplete, or contradicts the config.
    """
    source = read_split(data, split)
    if data.num_classes not in (0, len(source.classes)):
        raise InputError(
            f"The data in {data.root} has {len(source.classes)} classes but config.data.num_classes is "
            f"{data.num_classes}: set --config.data.num_classes={len(source.classes)}, or 0 to take it from the data."
        )
    return source


def read_split(data: ConfigDict, split: str) -> Source:
    """Open one split as `open_split` does, whatever the number of classes in it."""
    read = choose("config.data.format", data.format, READERS)
    if not data.splits[split]:
        raise InputError(f"The data has no {split} split: name one with --config.data.splits.{split}.")
    return read(data, split)


READERS: dict[str, Callable[[ConfigDict, str], Source]] = {
    "json": image_files.read_json,
    "folder": image_files.read_folder,
    "tfds": tfds_records.read,
    "vtab": records.read,
    "scenes": synthetic_scenes.read,
}
