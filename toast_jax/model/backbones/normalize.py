"""Normalization of pixels, as the backbones expect it."""

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from toast_jax.data.images.statistics import IMAGENET
from toast_jax.model.layers.arrays import Array

Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def normalize(images: UInt8[Array, "*N 3"] | Float[Array, "*N 3"], statistics: Statistics = IMAGENET) -> Float[Array, "*N 3"]:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

    Floating-point images count as normalized and are returned unchanged.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    mean, std = statistics
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


def statistics_of(data: ConfigDict) -> Statistics:
    """Return the pixel statistics of a config's `data` section, as tuples; saved configs hold lists."""
    mean, std = data.get("normalize", IMAGENET)  # runs of earlier versions have no such field
    return tuple(map(float, mean)), tuple(map(float, std))
