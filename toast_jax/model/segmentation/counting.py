"""Count the pixels of images by label and prediction, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Integer

from toast_jax.model.layers.arrays import Array
from toast_jax.model.segmentation.losses import IGNORED

_ROWS = 64  # rows of pixels whose logits are held at once; divides the padded height


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
    classes, chunk = logits.shape[-1], _ROWS if len(rows) % _ROWS == 0 else len(rows)

    def of_rows(part):
        rows, label = part
        with jax.default_matmul_precision("highest"):
            x = jnp.einsum("xw,ywc->yxc", columns, jnp.einsum("yh,hwc->ywc", rows, logits))
        counted = label != IGNORED
        expected = jnp.where(counted, label, 0).astype(jnp.int32)
        places = (expected * classes + jnp.argmax(x, axis=-1)).ravel()
        confusion = jnp.zeros(classes * classes, jnp.int32).at[places].add(counted.ravel().astype(jnp.int32))
        entropy = jax.nn.logsumexp(x, axis=-1) - jnp.take_along_axis(x, expected[..., None], axis=-1)[..., 0]
        return confusion, jnp.sum(entropy * counted)

    parts = rows.reshape(-1, chunk, rows.shape[1]), label.reshape(-1, chunk, label.shape[1])
    confusion, entropy = jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(of_rows, parts))
    return confusion.reshape(classes, classes), entropy
