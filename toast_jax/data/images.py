"""Pixels: decoding, the training and evaluation views, and normalisation.

The views follow `torchvision.transforms` on PIL images, rounding included, because the published results were made with
them.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from toast_jax.errors import InputError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes an image file of any format and colour mode that PIL reads.

    Args:
        data: the bytes of the file.
        name: what to call the image in an error, usually its path.

    Returns:
        uint8 [H, W, 3], RGB; transparency is dropped.

    Raises:
        InputError: the file is empty, truncated, far too large, or no image.
    """
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


def train_view(image: np.ndarray, rng: np.random.Generator, *, resize: int, size: int) -> np.ndarray:
    """Resizes the shorter side, takes a random crop and flips it horizontally half of the time.

    Args:
        image: uint8 [H, W, 3].
        rng: source of the crop's place and of the flip.
        resize: length of the shorter side before the crop, in pixels.
        size: side of the square crop, in pixels; at most `resize`.

    Returns:
        uint8 [size, size, 3].
    """
    image = _resize_shorter_side(image, resize)
    height, width, _ = image.shape
    top = rng.integers(height - size + 1)
    left = rng.integers(width - size + 1)
    crop = image[top : top + size, left : left + size]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


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


def normalize(images: jax.Array) -> jax.Array:
    """Scales pixels to [0, 1] and standardises them with ImageNet's mean and deviation.

    Args:
        images: uint8 [..., 3]; floating-point images count as normalised and are returned as they are.

    Returns:
        float32 [..., 3].
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def _resize_shorter_side(image: np.ndarray, length: int) -> np.ndarray:
    height, width, _ = image.shape
    shorter, longer = sorted((height, width))
    # Truncated, not rounded, as torchvision does.
    long_length = int(length * longer / shorter)
    shape = (length, long_length) if width <= height else (long_length, length)
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return str(error).rstrip(".")
