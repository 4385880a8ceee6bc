"""Images to grids of patches and back, so that a convolution whose stride is its kernel size is a matrix product.

Letters in shapes: B batch, H and W height and width, S side of a patch, C channels.
"""

import jax


def split(images: jax.Array, side: int) -> jax.Array:
    """Cuts images into patches, `[B, H, W, C]` -> `[B, H / S, W / S, S * S * C]`, with the pixels of a patch row by row."""
    b, h, w, c = images.shape
    parts = images.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, h // side, w // side, side * side * c)


def join(patches: jax.Array, side: int) -> jax.Array:
    """Undoes `split`: `[B, H, W, S * S * C]` -> `[B, H * S, W * S, C]`."""
    b, h, w, _ = patches.shape
    parts = patches.reshape(b, h, w, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, h * side, w * side, -1)
