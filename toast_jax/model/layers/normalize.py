"""Normalization of pixels, as the backbones expect it."""

import jax.numpy as jnp
from jaxtyping import Float, UInt8

from toast_jax.data.images.statistics import MEAN, STD
from toast_jax.model.layers.arrays import Array


def normalize(images: UInt8[Array, "*N 3"] | Float[Array, "*N 3"]) -> Float[Array, "*N 3"]:
    """Scale pixels to [0, 1] and normalizes them with ImageNet's mean and standard deviation.

    Floating-point images are taken as normalized and returned unchanged.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)
