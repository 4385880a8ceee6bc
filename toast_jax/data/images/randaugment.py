"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as DeiT and AbSViT train with it.

The operations, their ranges and their random draws are those of timm's "rand-m9-mstd0.5-inc1", in which all operations grow
stronger with the level.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from toast_jax.data.images import statistics

MAX_LEVEL = 10
DEVIATION = 0.5
PROBABILITY = 0.5
# ImageNet's mean color, which normalization maps to zero.
FILL = tuple(round(255 * mean) for mean in statistics.MEAN)


def randaugment(image: np.ndarray, rng: np.random.Generator, *, num_ops: int, magnitude: float) -> np.ndarray:
    """Distort an image with random operations, drawn uniformly and with replacement.

    Each drawn operation is applied with probability 0.5, at a level from N(magnitude, 0.5) clipped to [0, 10] whose sign,
    if the operation is signed, is flipped with probability 0.5. Geometric operations resample bilinearly, where timm draws
    bilinear or bicubic, and fill with ImageNet's mean color.

    Args:
        image: uint8 [H, W, 3].
        rng: source of the operations and of their levels.
        num_ops: number of operations drawn; 2 in DeiT. 0 returns the image unchanged.
        magnitude: mean level, from 0 to 10; 9 in DeiT.

    Returns:
        uint8 [H, W, 3].
    """
    if not num_ops:
        return image
    augmented = Image.fromarray(image)
    names = list(OPERATIONS)
    for _ in range(num_ops):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        if rng.random() < PROBABILITY:
            level = np.clip(rng.normal(magnitude, DEVIATION), 0, MAX_LEVEL)
            if operation.signed and rng.random() < 0.5:
                level = -level
            augmented = operation.apply(augmented, float(level))
    return np.asarray(augmented)


class Operation(NamedTuple):
    """An operation of RandAugment.

    Attributes:
        apply: maps an RGB image and a level to an RGB image of the same size.
        signed: whether levels run from -10 to 10 instead of 0 to 10.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    signed: bool = False


def _posterize(image: Image.Image, level: float) -> Image.Image:
    """Keep 4 bits per channel at level 0 down to 0 bits, a black image, at level 10."""
    # ImageOps.posterize refuses 0 bits since Pillow 13.
    step = 2 ** (4 + int(level / MAX_LEVEL * 4))
    return image.point([value // step * step for value in range(256)] * 3)


def _solarize_add(image: Image.Image, level: float) -> Image.Image:
    """Add up to 110 to values below 128."""
    added = int(level / MAX_LEVEL * 110)
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def _enhance(kind: Callable) -> Callable[[Image.Image, float], Image.Image]:
    """Scale an enhancement of PIL by up to 1.9 for positive levels, down to 0.1 for negative ones."""
    return lambda image, level: kind(image).enhance(1 + 0.9 * level / MAX_LEVEL)


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Map input pixel (a x + b y + c, d x + e y + f) to output pixel (x, y)."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL)


OPERATIONS = {
    "AutoContrast": Operation(lambda image, level: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, level: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, level: ImageOps.invert(image)),
    # By up to 30 degrees about the center, counterclockwise for positive levels.
    "Rotate": Operation(
        lambda image, level: image.rotate(30 * level / MAX_LEVEL, Image.Resampling.BILINEAR, fillcolor=FILL), signed=True
    ),
    "PosterizeIncreasing": Operation(_posterize),
    # Inverts values above a threshold, which falls from 256 to 0 with the level.
    "SolarizeIncreasing": Operation(lambda image, level: ImageOps.solarize(image, 256 - int(level / MAX_LEVEL * 256))),
    "SolarizeAdd": Operation(_solarize_add),
    "ColorIncreasing": Operation(_enhance(ImageEnhance.Color), signed=True),
    "ContrastIncreasing": Operation(_enhance(ImageEnhance.Contrast), signed=True),
    "BrightnessIncreasing": Operation(_enhance(ImageEnhance.Brightness), signed=True),
    "SharpnessIncreasing": Operation(_enhance(ImageEnhance.Sharpness), signed=True),
    # Shifts are up to 0.45 of the side; a positive level moves the image to the left or up.
    "ShearX": Operation(lambda image, level: _affine(image, 1, 0.3 * level / MAX_LEVEL, 0, 0, 1, 0), signed=True),
    "ShearY": Operation(lambda image, level: _affine(image, 1, 0, 0, 0.3 * level / MAX_LEVEL, 1, 0), signed=True),
    "TranslateXRel": Operation(
        lambda image, level: _affine(image, 1, 0, 0.45 * level / MAX_LEVEL * image.width, 0, 1, 0), signed=True
    ),
    "TranslateYRel": Operation(
        lambda image, level: _affine(image, 1, 0, 0, 0, 1, 0.45 * level / MAX_LEVEL * image.height), signed=True
    ),
}
