"""The objective of segmentation: cross-entropy of pixels, without those of the label `IGNORED`.

The logits of all pixels are hundreds of times larger than those of the head's places. They exist for a few rows of pixels at a
time, and their gradient is computed in the same pass, so the backward pass only scales it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.data.images.segmentation.views import interpolation
from toast_jax.model.layers.arrays import Array, Batch, Keys, Scores
from toast_jax.model.layers.batch import split_by_example
from toast_jax.model.methods import Method
from toast_jax.model.segmentation.pixels import at_pixels, compare, predict
from toast_jax.model.segmentation.segmenter import Segmenter, segment

# How many logits of pixels are in memory at once, by platform, but at least one row of every image: what fits the cache of a
# CPU's core; elsewhere, enough to outweigh the launches of kernels.
MAX_LOGITS = {"cpu": 2**20, "default": 2**24}


def of_pixels(
    logits: Float[Array, "B h w C"], labels: Integer[Array, "B H W"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Compare logits, resized bilinearly to the labels, with the labels.

    Gradients are of the cross-entropy alone, and of reverse mode only.

    Returns:
      the cross-entropy, summed over counted pixels and divided by the number of all, and the share of counted pixels that is
      classified correctly.
    """
    return _of_places(split_by_example(jnp.asarray(logits, jnp.float32)), labels)


@jax.custom_vjp
def _of_places(logits, labels):
    return _forward(logits, labels)[0]


def _forward(logits, labels):
    """Return the results of `of_pixels`, and the gradient of each example's cross-entropy."""
    of_row = labels[:, 0].size * logits.shape[-1]  # logits, of all images
    of_image = {name: functools.partial(_of_image, rows_at_once=max(1, most // of_row)) for name, most in MAX_LOGITS.items()}
    return jax.lax.platform_dependent(logits, labels, **jax.tree.map(jax.vmap, of_image))


def _backward(gradient, of_results):
    return of_results[0][:, None, None, None] * gradient, None


_of_places.defvjp(_forward, _backward)


def _of_image(logits, labels, rows_at_once):
    """Return `((loss, accuracy), gradient of the loss)` of logits `[h, w, C]`."""
    starts, rows = _in_chunks(interpolation(len(logits), len(labels)).astype(np.float32), rows_at_once)
    columns = interpolation(logits.shape[1], labels.shape[1]).astype(np.float32)
    padded = jnp.pad(labels, ((0, rows[..., 0].size - len(labels)), (0, 0)), constant_values=IGNORED)

    def of_rows(gradient, part):
        start, rows, labels = part
        used = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=rows.shape[1])
        upsampled, pull_back = jax.vjp(lambda logits: at_pixels(logits, rows, columns), used(logits))
        entropy, of_upsampled = compare(upsampled, labels)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, used(gradient) + pull_back(of_upsampled)[0], start, axis=0)
        return gradient, (entropy.sum(), ((predict(upsampled) == labels) & (labels != IGNORED)).sum())

    parts = (starts, rows, padded.reshape(*rows.shape[:2], -1))
    gradient, (entropy, correct) = jax.lax.scan(of_rows, jnp.zeros_like(logits), parts)
    accuracy = correct.sum() / jnp.maximum((labels != IGNORED).sum(), 1)
    return (entropy.sum() / labels.size, accuracy), gradient / labels.size


def _in_chunks(matrix, size):
    """Split the rows of `matrix [H, h]` into chunks, padded with zeros, and leave out columns that a chunk does not use.

    Returns:
      the first column `[N]` and the values `[N, size, k]` of every chunk.
    """
    chunks = np.pad(matrix, ((0, -len(matrix) % size), (0, 0))).reshape(-1, size, matrix.shape[1])
    used = chunks.any(axis=1)
    starts, ends = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    width = (ends - starts).max()
    starts = np.minimum(starts, used.shape[1] - width)
    return starts, np.stack([chunk[:, start : start + width] for chunk, start in zip(chunks, starts, strict=True)])


def tune(model: Segmenter, method: Method, auxiliary_weight: float) -> Callable:
    """Build the scores of training: `loss` and its parts, and `accuracy` of pixels.

    Args:
      auxiliary_weight: of the auxiliary head's loss, for a head that has one.

    Returns:
      `(params, batch, rng) -> scores`, see `model.losses`. A batch has `image`, `label [B, H, W]`, `size` as of `segment` and,
      to average over counted pixels instead of all, `scale [B]`, the factor of the loss.
    """

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        logits, auxiliary = segment(model, method, params, batch["image"], rng, batch.get("size"), call="outputs")
        scale = batch.get("scale", 1.0)
        loss, accuracy = of_pixels(logits, batch["label"])
        loss = scale * loss
        if auxiliary is None:
            return {"loss": loss, "accuracy": accuracy}
        second = scale * of_pixels(auxiliary, batch["label"])[0]
        return {"loss": loss + auxiliary_weight * second, "head_loss": loss, "auxiliary_loss": second, "accuracy": accuracy}

    return scores
