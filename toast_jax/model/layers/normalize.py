"""Pixels standardized as the backbones expect them."""

import jax
import jax.numpy as jnp

from toast_jax.data.images.pixels import MEAN, STD


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
