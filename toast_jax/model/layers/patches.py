"""Images to grids of patches and back, so that a convolution whose stride is its kernel size is a matrix product; their resize.

Letters in shapes: B batch, H and W height and width, C channels.
"""

import jax
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


def resize_grid(grid: Float[Array, "*batch h w D"], shape: tuple[int, ...], antialias: bool) -> Float[Array, "*batch _ _ D"]:
    """Resize a grid bicubically with half-pixel centers, as PyTorch does, whose kernel with antialias is another one."""
    method = jax.image.ResizeMethod.CUBIC if antialias else jax.image.ResizeMethod.CUBIC_PYTORCH
    return jax.image.resize(grid, shape, method, antialias=antialias)
