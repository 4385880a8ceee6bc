"""Images to grids of patches and back, so that a convolution whose stride is its kernel size is a matrix product; their resize.

Letters in shapes: B batch, H and W height and width, C channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array


def split(images: Float[Array, "B H W C"], side: int) -> Float[Array, "B H//{side} W//{side} {side}*{side}*C"]:
    """Cut images into patches, with the pixels of a patch row by row."""
    b, h, w, c = images.shape
    parts = images.reshape(b, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, h // side, w // side, side * side * c)


def join(patches: Float[Array, "B H W SSC"], side: int) -> Float[Array, "B H*{side} W*{side} SSC//({side}*{side})"]:
    """Undo `split`."""
    b, h, w, _ = patches.shape
    parts = patches.reshape(b, h, w, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, h * side, w * side, -1)


def resize_positions(
    embed: Float[Array, "1 N D"], old: tuple[int, int], new: tuple[int, int], antialias: bool
) -> Float[Array, "1 _ D"]:
    """Resize positions of `old` rows and columns of patches to `new`; a class token before them keeps its own.

    Bicubic with half-pixel centers, as in PyTorch, whose kernel with antialias is another one.
    """
    first, width = embed.shape[1] - old[0] * old[1], embed.shape[-1]
    method = jax.image.ResizeMethod.CUBIC if antialias else jax.image.ResizeMethod.CUBIC_PYTORCH
    grid = jnp.asarray(embed[:, first:]).reshape(1, *old, width)
    resized = jax.image.resize(grid, (1, *new, width), method, antialias=antialias)
    return jnp.concatenate([embed[:, :first], resized.reshape(1, -1, width)], axis=1)
