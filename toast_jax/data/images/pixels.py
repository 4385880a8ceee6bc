"""Pixels: decoding, and the training and evaluation views.

The views follow `torchvision.transforms` on PIL images, rounding included, because the published results were made with
them.
"""

import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image

from toast_jax.errors import InputError

# The EXIF tag of the orientation, and for each of its values the operation that shows the image upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
# TIFF tags
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# An image that would have more pixels after resizing is cropped first.
_MAX_RESIZED = 2**24


def decode(data: bytes | np.ndarray | Image.Image, name: str, *, orient: bool = False) -> np.ndarray:
    """Decode an image file of any format and color mode that Pillow reads, whatever its name.

    Animations yield their first frame. docs/data.md says how each mode becomes RGB.

    Args:
        data: the bytes of the file, or an open image; an array of pixels is returned unchanged.
        name: what to call the image in an error, usually its path.
        orient: turn the image upright by its EXIF orientation, as viewers do.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        InputError: the file is empty, truncated, far too large, no image, or its values have no defined brightness.
    """
    if isinstance(data, np.ndarray):
        return data
    try:
        with contextlib.nullcontext(data) if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)) as image:
            rgb = _to_rgb(image)
            # Read after the pixels: a PNG may store its EXIF after them, and Pillow turns a TIFF upright while loading it.
            return np.asarray(upright(rgb, orientation(image)) if orient else rgb)
    # A damaged file can raise nearly anything: OSError, SyntaxError, ValueError, struct.error, DecompressionBombError.
    except Exception as error:
        raise InputError(
            f"Image {name} cannot be decoded ({_reason(data, error)}): download it again, "
            "or leave such images out with --config.data.skip_corrupt=True."
        ) from error


def decode_example(example: dict[str, Any]) -> np.ndarray:
    """Decode the image of an example, see `sources.Source`; uint8 [H, W, 3]."""
    return decode(example["image"], example["name"], orient=example.get("orient", False))


def size_of(file: str | io.BytesIO, *, orient: bool = False) -> tuple[int, int]:
    """Read from the header of an image file the width and height that `decode` returns; OSError if it has no header."""
    with Image.open(file) as image:
        # Pillow reports the upright size of a TIFF.
        swap = orient and image.format != "TIFF" and orientation(image) in _ON_ITS_SIDE
        return image.size[::-1] if swap else image.size


def is_turned(file: str | io.BytesIO) -> bool:
    """Return whether the EXIF orientation of an image file turns it."""
    with Image.open(file) as image:
        return orientation(image) in _UPRIGHT


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any color mode to RGB, as docs/data.md states."""
    image.load()
    tags = getattr(image, "tag_v2", {})
    # Pillow opens 16-bit PGMs as 32-bit integers; older versions do so for 16-bit PNGs.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Conversion by Pillow would clip at 255.
        gray = np.asarray(image) >> (4 if tags.get(_BITS) in (12, (12,)) else 8)
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "I" or not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its values run from {values.min():g} to {values.max():g}, and only 8 bits, 16 bits and floats from 0 to 1 "
                "have a defined brightness"
            )
        gray = np.rint(values * 255)
    else:
        return image.convert("RGB")
    gray = gray.astype(np.uint8)
    return Image.fromarray(255 - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray).convert("RGB")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image with an EXIF orientation of 1 to 8 as viewers do."""
    operation = _UPRIGHT.get(orientation)
    return image if operation is None else image.transpose(operation)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF counts as upright, as in viewers."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata can raise nearly anything
        return 1


def train_view(
    image: np.ndarray, rng: np.random.Generator, *, resize: int, size: int, min_crop_area: float = 1.0, flip: bool = True
) -> np.ndarray:
    """Take a random crop and, if `flip`, flip it horizontally half of the time.

    Args:
        image: uint8 [H, W, 3].
        rng: source of the crop's position and of the flip.
        resize: length of the shorter side before the crop, in pixels.
        size: side of the square crop, in pixels; at most `resize`.
        min_crop_area: 1 crops from the resized image. Less selects Inception's crop: a rectangle of the original that covers
            at least this share of it, resized to the square; `resize` is not used then.

    Returns:
        uint8 [size, size, 3].
    """
    if min_crop_area < 1:
        crop = _random_resized_crop(image, rng, size, min_crop_area)
    else:
        height, width = _resized_shape(image, resize)
        top, left = (int(rng.integers(side - size + 1)) for side in (height, width))
        crop = _crop_of_resized(image, (height, width), top, left, size)
    return crop[:, ::-1] if flip and rng.random() < 0.5 else crop


def eval_view(image: np.ndarray, *, resize: int, size: int) -> np.ndarray:
    """Resize the shorter side and take the central crop.

    Args:
        image: uint8 [H, W, 3].
        resize: length of the shorter side before the crop, in pixels.
        size: side of the square crop, in pixels; at most `resize`.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = _resized_shape(image, resize)
    return _crop_of_resized(image, (height, width), round((height - size) / 2), round((width - size) / 2), size)


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to a square regardless of aspect ratio, bilinearly and without antialiasing, as `tf.image.resize` does.

    Args:
        image: uint8 [H, W, 3].
        size: side of the square, in pixels.

    Returns:
        uint8 [size, size, 3], rounded to the nearest.
    """
    (top, bottom, down), (left, right, along) = (_neighbors(length, size) for length in image.shape[:2])
    rows = image[top] + down[:, None, None] * (image[bottom].astype(np.float32) - image[top])
    pixels = rows[:, left] + along[:, None] * (rows[:, right] - rows[:, left])
    return np.rint(pixels).astype(np.uint8)


def _random_resized_crop(image: np.ndarray, rng: np.random.Generator, size: int, min_area: float) -> np.ndarray:
    """Crop with sides in a ratio of 3/4 to 4/3 (Szegedy et al., arXiv 1409.4842); after ten trials, the central crop."""
    height, width, _ = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            break
    else:
        h, w = min(height, round(width / (3 / 4))), min(width, round(height * (4 / 3)))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image, (size, size), (left, top, left + w, top + h))


def _resized_shape(image: np.ndarray, length: int) -> tuple[int, int]:
    """Return height and width after resizing the shorter side to `length`."""
    height, width, _ = image.shape
    # Truncated, not rounded, as torchvision does.
    longer = int(length * max(height, width) / min(height, width))
    return (longer, length) if width <= height else (length, longer)


def _crop_of_resized(image: np.ndarray, shape: tuple[int, int], top: int, left: int, size: int) -> np.ndarray:
    """Resize an image to `shape` and return the square [top : top + size, left : left + size]."""
    if shape[0] * shape[1] <= _MAX_RESIZED:
        return _resize(image, shape)[top : top + size, left : left + size]
    # An image of 20,000 x 2 pixels would grow to 6 GB. Cropping first differs by rounding only.
    down, along = image.shape[0] / shape[0], image.shape[1] / shape[1]
    return _resize(image, (size, size), (left * along, top * down, (left + size) * along, (top + size) * down))


def _resize(image: np.ndarray, shape: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR, box=box))


def _neighbors(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pixel before and after each of `size` points along `length` pixels, and the distance from the first."""
    centers = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(length / size) - 0.5
    before = np.floor(centers).astype(int)
    return before.clip(0, length - 1), (before + 1).clip(0, length - 1), centers - before.astype(np.float32)


def _reason(data: bytes | Image.Image, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error).rstrip(".")
