"""Predict the pixels of images on the device, and count them by label and prediction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Integer

from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.model.layers.arrays import Array
from toast_jax.model.segmentation.pixels import at_pixels, compare, predict

_ROWS = 16  # rows of pixels whose logits are in memory at once, if they divide the height


def predict_pixels(logits: Float[Array, "h w C"], rows: Float[Array, "H h"], columns: Float[Array, "W w"]) -> Int[Array, "H W"]:
    """Return the class of every pixel; arguments as of `count_pixels`."""
    return _by_rows(predict, logits, rows, columns).reshape(len(rows), len(columns))


def count_pixels(
    logits: Float[Array, "h w C"],
    rows: Float[Array, "H h"],
    columns: Float[Array, "W w"],
    label: Integer[Array, "H W"],
) -> tuple[Int[Array, "C C"], Float[Array, ""]]:
    """Predict every pixel from logits that are interpolated linearly, and compare with the labels.

    Args:
      logits: of the places of all windows of an image.
      rows, columns: the logits of pixels are `rows @ logits @ columns.T`, see `views.EvalView`.
      label: labels, ignored ones included.

    Returns:
      the confusion, a row per label, and the sum of the cross-entropy over counted pixels.
    """
    classes = logits.shape[-1]

    def of_rows(x, label):
        counted = label != IGNORED
        places = jnp.where(counted, label, 0).astype(jnp.int32) * classes + predict(x)
        confusion = jnp.zeros(classes * classes, jnp.int32).at[places.ravel()].add(counted.ravel().astype(jnp.int32))
        return confusion, compare(x, label)[0].sum()

    confusion, entropy = jax.tree.map(lambda x: x.sum(axis=0), _by_rows(of_rows, logits, rows, columns, label))
    return confusion.reshape(classes, classes), entropy


def _by_rows(function: Callable, logits, rows, columns, *others) -> Any:
    """Map a function over the logits `[chunk, C, W]` of some rows of pixels at a time, and over the same rows of `others`."""
    chunk = _ROWS if len(rows) % _ROWS == 0 else len(rows)

    def of_chunk(part):
        rows, *others = part
        return function(at_pixels(logits, rows, columns), *others)

    return jax.lax.map(of_chunk, tuple(x.reshape(-1, chunk, *x.shape[1:]) for x in (rows, *others)))
