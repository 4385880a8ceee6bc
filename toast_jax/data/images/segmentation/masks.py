"""Images with masks: decoding, and the check of all files before the first step."""

import concurrent.futures
import dataclasses
import functools
import io
import logging
import os
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from toast_jax.data.images import pixels
from toast_jax.data.images.image_files import content
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.errors import InputError, listed, with_remedy

log = logging.getLogger(__name__)

_OUTSIDE = -1  # no label
_LOSSY = ("JPEG", "MPO")
Code = int | tuple[int, int, int]


class MaskedSource(Protocol):
    """The interface of all sources of images with masks; see `MaskedImages`."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def sides(self, index: int) -> tuple[int, int]: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class MaskedImages:
    """A source of image files and their masks.

    Attributes:
        paths, masks: files of images and, in the same order, of masks.
        classes: names of the labels 0, 1, ...
        codes: the value of each class in a mask: all indices, or all colors.
        ignored: values of ignored pixels.
    """

    paths: tuple[str, ...]
    masks: tuple[str, ...]
    classes: tuple[str, ...]
    codes: tuple[Code, ...]
    ignored: tuple[Code, ...] = (IGNORED,)
    # Whether images, and masks with a tag of their own, are turned upright by their EXIF orientation.
    orient: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode an image, uint8 [H, W, 3], and its labels, uint8 [H, W].

        Raises:
            InputError: either cannot be decoded, or they do not fit each other or the classes.
        """
        with with_remedy("replace it, or take it out of the list"):
            image = pixels.decode(content(self.paths[index]), self.paths[index], orient=self.orient)
            mask = content(self.masks[index])
        values = decode(mask, self.masks[index], colors=isinstance(self.codes[0], tuple), orient=self.orient)
        if image.shape[:2] != values.shape[:2]:
            raise InputError(
                f"Mask {self.masks[index]} is {_sides(values)} pixels and its image {self.paths[index]} {_sides(image)}: "
                "replace it by a mask of the same size."
            )
        labels = _labels(values, self.codes, self.ignored)
        if (labels == _OUTSIDE).any():
            raise InputError(f"{self._outside(index, values[labels == _OUTSIDE])}.")
        return image, labels.astype(np.uint8)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return self.paths[index]

    def sides(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""
        try:
            width, height = pixels.size_of(self.paths[index], orient=self.orient)
        except OSError as error:
            raise InputError(f"Image {self.paths[index]} cannot be read ({error}): mend or replace it.") from error
        return height, width

    def _outside(self, index, values) -> str:
        kinds, counts = np.unique(values, axis=0, return_counts=True)
        value, count = kinds[counts.argmax()].tolist(), counts.max()
        value = tuple(value) if isinstance(value, list) else value
        return (
            f"Mask {self.masks[index]} has {count:,} pixels of value {value}, which is none of the {len(self.classes)} "
            "classes: add the class, or correct the mask"
        )


class UprightMaskedImages(MaskedImages):
    """A source of image files that are turned upright, as viewers and programs for drawing masks show them."""

    orient = True


def decode(data: bytes, name: str, *, colors: bool = False, orient: bool = False) -> np.ndarray:
    """Decode a mask file: int32 [H, W] of indices, those of a palette included, or uint8 [H, W, 3] of `colors`.

    Raises:
        InputError: the file is no image, a JPEG, or has colors where indices are expected.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            form, mode = image.format, image.mode
            turned = pixels.upright(image, pixels.orientation(image) if orient else 1)
            if colors and form not in _LOSSY:
                return np.asarray(turned.convert("RGB"))
            if mode in ("1", "L", "P", "I", "I;16") and form not in _LOSSY:
                return np.asarray(turned).astype(np.int32)
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"Mask {name} cannot be decoded ({str(error).rstrip('.')}): write it again.") from error
    if form in _LOSSY:
        raise InputError(f"Mask {name} is a JPEG, which changes the values of pixels: write it as PNG from the original.")
    raise InputError(
        f"Mask {name} has colors ({mode}) where the index of a class is expected: write a gray or palette PNG, or name the "
        "color of every class in classes.json."
    )


def _labels(values: np.ndarray, codes: Sequence[Code], ignored: Sequence[Code]) -> np.ndarray:
    """Return the label of each pixel, int32 [H, W]; `_OUTSIDE` for a value that is no code and not ignored."""
    if values.ndim == 3:
        weights = np.array([1 << 16, 1 << 8, 1])
        values = values.astype(np.int32) @ weights
        codes, ignored = ([int(np.array(code) @ weights) for code in some] for some in (codes, ignored))
    keys = np.array([*codes, *ignored])
    order = np.argsort(keys)
    wanted = np.array([*range(len(codes)), *[IGNORED] * len(ignored)], np.int32)[order]
    places = np.searchsorted(keys[order], values).clip(max=len(keys) - 1)
    return np.where(keys[order][places] == values, wanted[places], _OUTSIDE)


def _sides(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def verify(source: MaskedSource, *, least: tuple[float, float] = (0, 0), box: tuple[int, int] = (0, 0)) -> set[int]:
    """Decode every image and mask of a source once.

    Args:
        source: the images to check.
        least: height and width that every image must reach when it fits `box`, see `views.fitted`; 0 for any.
        box: longer and shorter side.

    Returns:
        the labels in the masks, `IGNORED` included.

    Raises:
        InputError: with the number of images that cannot be used and the reason of the first.
    """
    log.info("Decoding %d images and their masks once to verify them.", len(source))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons, labels = zip(*pool.map(functools.partial(_checked, source, least, box), range(len(source))), strict=True)
    if refused := [reason for reason in reasons if reason]:
        if len(refused) > 1:
            log.warning("Images that cannot be used:\n%s", "\n".join(refused))
        more = f" ({len(refused)} of {len(source)} images cannot be used)" if len(refused) > 1 else ""
        raise InputError(f"{refused[0].rstrip('.')}{more}.")
    return set().union(*labels)


def check_classes(source: MaskedSource, labels: set[int]) -> None:
    """Log the classes that none of the training masks has.

    Args:
        source: of the training images.
        labels: those in its masks, from `verify`.

    Raises:
        InputError: there are not two classes to tell apart.
    """
    classes = [name for label, name in enumerate(source.classes) if label in labels]
    ignored = f"; the value {IGNORED} is ignored" if IGNORED in labels else ""
    if len(classes) < 2:
        raise InputError(
            f"The pixels of all training masks are of {listed(classes) or 'no class'}, so there is nothing to learn{ignored}: "
            "write the index of its class in every pixel."
        )
    if missing := [name for name in source.classes if name not in classes]:
        log.warning("No training mask has a pixel of %s%s.", listed(missing, 10), ignored)


def _checked(source, least, box, index) -> tuple[str, set[int]]:
    """Return why an image cannot be used, or "", and the labels in its mask."""
    try:
        image, labels = source[index]
    except InputError as error:
        return str(error), set()
    sides = fitted(image.shape[:2], box) if any(box) else image.shape[:2]
    if all(side >= bound for side, bound in zip(sides, least, strict=True)):
        return "", set(np.unique(labels).tolist())
    reason = (
        f"Image {source.name(index)} is {sides[1]} x {sides[0]} pixels when resized to fit config.data.scale, smaller than "
        "the crop even at the largest random scale: set a smaller --config.data.crop, or take the image out of the list"
    )
    return reason, set()


def fitted(sides: Sequence[int], box: Sequence[float]) -> tuple[int, int]:
    """Return height and width of an image that is resized to fit a box as well as its aspect ratio allows.

    Args:
        sides: height and width.
        box: the largest longer and shorter side, in either order.
    """
    factor = min(max(box) / max(sides), min(box) / min(sides))
    height, width = (max(1, int(side * factor + 0.5)) for side in sides)
    return height, width
