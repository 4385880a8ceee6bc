"""Normalization of pixels, as the backbones expect it."""

import jax
import jax.numpy as jnp

from toast_jax.data.images.pixels import MEAN, STD


def normalize(images: jax.Array) -> jax.Array:
    """Scales pixels to [0, 1] and normalizes them with ImageNet's mean and standard deviation.

    Args:
      images: uint8 `[..., 3]`; floating-point images are taken as normalized and returned unchanged.

    Returns:
      float32 `[..., 3]`.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)
