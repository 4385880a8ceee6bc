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

from toast_jax.data.images.segmentation.bilinear import interpolation
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.model.layers.arrays import Array, Batch, Keys, Scores
from toast_jax.model.layers.batch import split_by_example
from toast_jax.model.methods import Method
from toast_jax.model.segmentation.pixels import at_pixels, compare, predict
from toast_jax.model.segmentation.segmenter import Segmenter, segment

# Limit of the logits of pixels in memory at once, by platform, except that a row of every image is always computed together: on
# CPUs a few cache sizes; elsewhere large enough that launching kernels costs little.
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
    """Return the results of `of_pixels`, and the gradient `[B, h, w, C]` of each example's cross-entropy."""
    per_row = labels[:, 0].size * logits.shape[-1]  # logits of pixels in a row of every image
    limits = {platform: max(1, limit // per_row) for platform, limit in MAX_LOGITS.items()}
    by_platform = {platform: jax.vmap(functools.partial(_of_image, max_rows=rows)) for platform, rows in limits.items()}
    return jax.lax.platform_dependent(logits, labels, **by_platform)


def _backward(gradient, cotangents):
    return cotangents[0][:, None, None, None] * gradient, None


_of_places.defvjp(_forward, _backward)


def _of_image(logits, labels, max_rows):
    """Return `(loss, accuracy), gradient` of one image, from `max_rows` rows of pixels at a time."""
    starts, rows = _chunks(interpolation(len(logits), len(labels)).astype(np.float32), max_rows)
    columns = interpolation(logits.shape[1], labels.shape[1]).astype(np.float32)
    count, size, places = rows.shape
    padded = jnp.pad(labels, ((0, count * size - len(labels)), (0, 0)), constant_values=IGNORED)

    def of_rows(gradient, chunk):
        start, rows, labels = chunk
        used = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=places)
        upsampled, transposed = jax.vjp(lambda logits: at_pixels(logits, rows, columns), used(logits))
        entropy, of_upsampled = compare(upsampled, labels)
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, used(gradient) + transposed(of_upsampled)[0], start, axis=0)
        return gradient, (entropy.sum(), ((predict(upsampled) == labels) & (labels != IGNORED)).sum())

    chunks = (starts, rows, padded.reshape(count, size, -1))
    gradient, (entropy, correct) = jax.lax.scan(of_rows, jnp.zeros_like(logits), chunks)
    accuracy = correct.sum() / jnp.maximum((labels != IGNORED).sum(), 1)
    return (entropy.sum() / labels.size, accuracy), gradient / labels.size


def _chunks(matrix, max_rows):
    """Split `matrix [H, h]` into chunks of rows, without the columns that are zero in a chunk.

    Returns:
      the first column `[N]` and the values `[N, rows, columns]` of every chunk; the last one is padded with zeros.
    """
    size = -(-len(matrix) // -(-len(matrix) // max_rows))
    chunks = np.pad(matrix, ((0, -len(matrix) % size), (0, 0))).reshape(-1, size, matrix.shape[1])
    used = np.any(chunks, axis=1)
    starts, ends = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
    width = (ends - starts).max()
    starts = np.minimum(starts, used.shape[1] - width)
    return starts, np.stack([chunk[:, start : start + width] for start, chunk in zip(starts, chunks, strict=True)])


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
