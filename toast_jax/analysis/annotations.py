"""Object annotations of images: boxes and masks, read as boolean masks.

Every kind is a sequence as long as the source; `objects[i]` is bool `[H, W]` over the pixels of image i as decoded. `view`
applies the resize and crop, or the stretch, of the image to it.
"""

import dataclasses
import functools
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.data.images import pixels, sources, synthetic_scenes
from toast_jax.data.images.image_files import Files, opened
from toast_jax.data.images.sources import Source
from toast_jax.data.images.tfds_records import TfdsRecords, record_of, records
from toast_jax.errors import InputError, listed

log = logging.getLogger(__name__)

_TFDS = ("bbox", "segmentation_mask")
_MOST_IDS = 40  # a mask with several values, none of which is higher, holds class ids and not shades


class Objects(Protocol):
    """Interface of every kind of annotation."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


def view(mask: np.ndarray, data: ConfigDict) -> np.ndarray:
    """Resize and crop, or stretch, a mask as `sources.new_view` does the image: bool `[size, size]`.

    A pixel is set if the object covers more than half of its area.
    """
    grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=-1)
    return sources.new_view(data, grey)[..., 0] > 127


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Masks of boxes `(x0, y0, x1, y1)` in pixels: x0 <= x < x1, y0 <= y < y1."""

    source: Files
    boxes: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> np.ndarray:
        x0, y0, x1, y1 = (round(edge) for edge in self.boxes[index])
        width, height = _size(self.source, index)
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        return mask


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks in image files: the pixels brighter than half of the brightest one; transparent ones count as black."""

    paths: tuple[str, ...]
    orient: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with open(self.paths[index], "rb") as file:
            return _bright(file.read(), self.paths[index], self.orient)


@dataclasses.dataclass(frozen=True)
class TfdsObjects:
    """Masks from TFDS records: the feature `bbox` (ymin, xmin, ymax, xmax, as fractions) or `segmentation_mask`."""

    directory: str
    split: str
    feature: str

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> np.ndarray:
        record, name = record_of(self._records, index, self.directory), f"{self.split}[{index}]"
        try:
            with Image.open(io.BytesIO(record["image"])) as image:
                width, height = image.size
        except Exception as error:  # a damaged file can raise nearly anything
            raise InputError(f"Image {name} of {self.directory} cannot be decoded: prepare the dataset again.") from error
        if self.feature == "segmentation_mask":
            mask = _bright(record["segmentation_mask"], name)
            if mask.shape != (height, width):
                raise InputError(
                    f"The mask of image {name} of {self.directory} is {mask.shape[1]} x {mask.shape[0]}, the image {width} x "
                    f"{height}: prepare the dataset again, or use boxes."
                )
            return mask
        ymin, xmin, ymax, xmax = record["bbox"]
        if not (0 <= ymin <= ymax <= 1 and 0 <= xmin <= xmax <= 1):
            raise InputError(
                f"The box of image {name} of {self.directory} is {np.array(record['bbox']).tolist()}, not ymin, xmin, ymax and "
                "xmax as fractions of its sides: use another dataset, or masks."
            )
        mask = np.zeros((height, width), bool)
        mask[round(ymin * height) : round(ymax * height), round(xmin * width) : round(xmax * width)] = True
        return mask

    @functools.cached_property
    def _records(self) -> Sequence[dict[str, Any]]:
        return records(self.directory, self.split)


@dataclasses.dataclass(frozen=True)
class SceneObjects:
    """Masks of the cell of one of the digits in the demo's scenes."""

    source: synthetic_scenes.Scenes
    digit: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        scene = synthetic_scenes.scene(self.source.task, self.source.split, index)
        return scene.boxes[scene.asked[self.digit]]


def open_objects(where: str, source: Source, root: str, only_annotated: bool = False) -> tuple[Source, Objects]:
    """Open the annotations of a source and check them against the images.

    Args:
        where: for images in files, a JSON file that maps image paths to boxes `[x0, y0, x1, y1]`, or a folder with a mask at
            each image's path, as .png. For TFDS records, the feature 'bbox' or 'segmentation_mask'. For scenes, the task
            that asks for the digit: 'green' or 'brightest'.
        source: the images.
        root: the folder that image paths are relative to, for a JSON file and a folder of masks.
        only_annotated: skip images without a box or a mask instead of raising.

    Returns:
        The source without the skipped images, and its annotations.

    Raises:
        InputError: `where` does not exist, or an image has no annotation, or one that exceeds its bounds.
    """
    if isinstance(source, synthetic_scenes.Scenes):
        digits = tuple(synthetic_scenes.scene(source.task, source.split, 0).asked)
        return source, SceneObjects(source, _one_of(where, digits, "Scenes have the digits"))
    if isinstance(source, TfdsRecords):
        feature = _one_of(where, _TFDS, "Of TFDS records objects are the features")
        return source, _tfds(source, feature)
    if not isinstance(source, Files):
        raise InputError(f"The objects {where} cannot be told for this data: give images in files, TFDS records or scenes.")
    path = os.path.expanduser(where)
    if path.endswith(".json"):
        return _boxes(path, source, root, only_annotated)
    if os.path.isdir(path):
        return _masks(path, source, root, only_annotated)
    raise InputError(f"There are no objects at {where}: give a JSON file of boxes, or a folder of masks.")


def _one_of(name, options, what):
    if name not in options:
        raise InputError(f"{what} {', '.join(options)}; --config.objects is {name!r}.")
    return name


def _tfds(source, feature):
    first = records(source.directory, source.split)[0]
    if feature not in first:
        raise InputError(
            f"The records in {source.directory} have no feature {feature!r}: they have {', '.join(sorted(first))}."
        )
    return TfdsObjects(source.directory, source.split, feature)


def _boxes(path, source, root, only_annotated):
    try:
        with open(path, encoding="utf-8-sig") as file:
            boxes = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The boxes in {path} cannot be read ({error}): give a JSON object from image path to box.") from error
    if not isinstance(boxes, dict):
        raise InputError(f"{path} must hold a JSON object from image path to box [x0, y0, x1, y1].")
    names = _relative(source, root)
    source, kept = _annotated(source, names, [name in boxes for name in names], f"no box in {path}", only_annotated)
    names = [names[i] for i in kept]
    for i, name in enumerate(names):
        width, height = _size(source, i)
        if not _is_box(boxes[name], width, height):
            raise InputError(
                f"The box of {name} in {path} is {boxes[name]}, the image {width} x {height}: write [x0, y0, x1, y1] in pixels "
                "with 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height."
            )
    _log_turned(source)
    return source, Boxes(source, tuple(tuple(boxes[name]) for name in names))


def _is_box(box, width, height):
    if not isinstance(box, list) or len(box) != 4:
        return False
    if not all(isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) < math.inf for edge in box):
        return False
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def _masks(folder, source, root, only_annotated):
    names = _relative(source, root)
    paths = [os.path.join(folder, os.path.splitext(name)[0] + ".png") for name in names]
    source, kept = _annotated(source, names, list(map(os.path.isfile, paths)), f"no mask in {folder}", only_annotated)
    paths = tuple(paths[i] for i in kept)
    for i, path in enumerate(paths):
        try:
            size = pixels.size_of(path, orient=source.orient)
        except Exception as error:  # a damaged file can raise nearly anything
            raise InputError(f"Mask {path} cannot be decoded: make it a PNG again.") from error
        if size != _size(source, i):
            raise InputError(
                f"Mask {path} is {size[0]} x {size[1]}, its image {' x '.join(map(str, _size(source, i)))}: make it as large."
            )
    _log_turned(source, paths)
    return source, Masks(paths, source.orient)


def _log_turned(source, masks=()):
    """Warn of images that EXIF turns and whose annotation, drawn on the stored pixels, would be elsewhere in silence."""
    turned = [path for path in source.paths if pixels.is_turned(opened(path))] if source.orient else []
    if masks and turned:
        own = dict(zip(source.paths, masks, strict=True))
        turned = [path for path in turned if not pixels.is_turned(own[path])]
    if turned:
        log.warning(
            "%d images are turned upright by their EXIF orientation (%s); their boxes and masks have to be those of the "
            "upright image, which viewers show.",
            len(turned),
            listed(turned, most=3),
        )


def _relative(source, root):
    return [os.path.relpath(path, os.path.expanduser(root)).replace(os.sep, "/") for path in source.paths]


def _annotated(source, names, has, lack, only_annotated):
    """Keep the images that `has` marks: the smaller source and their indices."""
    missing = [name for name, kept in zip(names, has, strict=True) if not kept]
    kept = np.flatnonzero(has).tolist()
    if (missing and not only_annotated) or not kept:
        raise InputError(
            f"{len(missing)} of {len(names)} images have {lack} ({listed(missing, most=1)}): add them under these paths, or "
            "leave such images out with --config.only_annotated=True, unless none would be left."
        )
    paths, labels = (tuple(values[i] for i in kept) for values in (source.paths, source.labels))
    return dataclasses.replace(source, paths=paths, labels=labels), kept


def _size(source, index):
    """Read the decoded width and height of an image from the header of its file."""
    try:
        return pixels.size_of(opened(source.paths[index]), orient=source.orient)
    except Exception as error:
        raise InputError(f"Image {source.paths[index]} cannot be decoded: download it again, or remove it.") from error


def _bright(data, name, orient=False):
    """Read the bright pixels of a mask; refuse one of class ids, of which brightness would choose some."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            rgba = image.convert("RGBA")
            deep = image.mode in ("I", "F") or image.mode.startswith("I;16")  # conversion would clip at 255
            values = image if deep else rgba.convert("L")
            number = pixels.orientation(image) if orient else 1
            values, opaque = (np.asarray(pixels.upright(part, number)) for part in (values, rgba.getchannel("A")))
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"Mask {name} cannot be decoded: make it a PNG again.") from error
    values = values * (opaque / 255)
    colors = np.asarray(rgba)[..., :3]
    several = len(np.unique(values)) > 2
    if several and not deep and (values.max() <= _MOST_IDS or (colors != colors[..., :1]).any()):
        raise InputError(f"Mask {name} holds class ids or colors, of which none is the object: paint it white, all else black.")
    return values > values.max() / 2 if values.max() else np.zeros(values.shape, bool)
