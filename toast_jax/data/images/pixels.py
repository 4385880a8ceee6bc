"""Pixels: decoding, the training and evaluation views, and normalisation.

The views follow `torchvision.transforms` on PIL images, rounding included, because the published results were made with
them.
"""

import io

import numpy as np
from PIL import Image

from toast_jax.errors import InputError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def decode(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """Decodes an image file of any format and colour mode that PIL reads, whatever its name; of an animation the first frame.

    Args:
        data: the bytes of the file; pixels are returned as they are.
        name: what to call the image in an error, usually its path.

    Returns:
        uint8 [H, W, 3], RGB; transparency is dropped.

    Raises:
        InputError: the file is empty, truncated, far too large, or no image.
    """
    if isinstance(data, np.ndarray):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):  # PIL would cut 16-bit values off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    # A damaged file can raise nearly anything: OSError, SyntaxError, ValueError, struct.error, DecompressionBombError.
    except Exception as error:
        raise InputError(
            f"Image {name} cannot be decoded ({_reason(data, error)}): download it again, "
            "or leave such images out with --config.data.skip_corrupt=True."
        ) from error


def train_view(
    image: np.ndarray, rng: np.random.Generator, *, resize: int, size: int, min_crop_area: float = 1.0, flip: bool = True
) -> np.ndarray:
    """Takes a random crop and, if `flip`, flips it horizontally half of the time.

    Args:
        image: uint8 [H, W, 3].
        rng: source of the crop's place and of the flip.
        resize: length of the shorter side before the crop, in pixels.
        size: side of the square crop, in pixels; at most `resize`.
        min_crop_area: 1 crops from the resized image. Less is Inception's crop: a rectangle of the original that covers at
            least this share of it and at most all, resized to the square; `resize` is not used then.

    Returns:
        uint8 [size, size, 3].
    """
    if min_crop_area < 1:
        crop = _random_resized_crop(image, rng, size, min_crop_area)
    else:
        image = _resize_shorter_side(image, resize)
        height, width, _ = image.shape
        top = rng.integers(height - size + 1)
        left = rng.integers(width - size + 1)
        crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if flip and rng.random() < 0.5 else crop


def eval_view(image: np.ndarray, *, resize: int, size: int) -> np.ndarray:
    """Resizes the shorter side and takes the central crop.

    Args:
        image: uint8 [H, W, 3].
        resize: length of the shorter side before the crop, in pixels.
        size: side of the square crop, in pixels; at most `resize`.

    Returns:
        uint8 [size, size, 3].
    """
    image = _resize_shorter_side(image, resize)
    height, width, _ = image.shape
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to a square, whatever the aspect: bilinearly and without antialiasing, as TensorFlow's `tf.image.resize` does.

    Args:
        image: uint8 [H, W, 3].
        size: side of the square, in pixels.

    Returns:
        uint8 [size, size, 3], rounded to the nearest.
    """
    (top, bottom, down), (left, right, along) = (_neighbours(length, size) for length in image.shape[:2])
    rows = image[top] + down[:, None, None] * (image[bottom].astype(np.float32) - image[top])
    pixels = rows[:, left] + along[:, None] * (rows[:, right] - rows[:, left])
    return np.rint(pixels).astype(np.uint8)


def _random_resized_crop(image: np.ndarray, rng: np.random.Generator, size: int, min_area: float) -> np.ndarray:
    """Szegedy et al., arXiv 1409.4842: a rectangle with sides in a ratio of 3/4 to 4/3; ten trials, then the central one."""
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
    box = (left, top, left + w, top + h)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _resize_shorter_side(image: np.ndarray, length: int) -> np.ndarray:
    height, width, _ = image.shape
    shorter, longer = sorted((height, width))
    # Truncated, not rounded, as torchvision does.
    long_length = int(length * longer / shorter)
    shape = (length, long_length) if width <= height else (long_length, length)
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `size` points along `length` pixels: the pixel before each, the one after it, and how far it is from the first."""
    centers = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(length / size) - 0.5
    before = np.floor(centers).astype(int)
    return before.clip(0, length - 1), (before + 1).clip(0, length - 1), centers - before.astype(np.float32)


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error).rstrip(".")
