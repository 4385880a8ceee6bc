"""Logits of pixels: interpolated from those of places, and compared with labels.

Pixels come last, in rows of an image: reductions over classes then run over vectors of pixels, however few classes there are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32, Integer

from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.model.layers.arrays import Array


def at_pixels(logits: Float[Array, "h w C"], rows: Float[Array, "y h"], columns: Float[Array, "x w"]) -> Float[Array, "y C x"]:
    """Interpolate the logits of places: `rows @ logits @ columns.T` for every class, in full precision."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ywC,xw->yCx", jnp.einsum("yh,hwC->ywC", rows, logits, precision=highest), columns, precision=highest)


def predict(logits: Float[Array, "y C x"]) -> Int32[Array, "y x"]:
    """Return the class with the largest logit, the first of equal ones."""
    # Unlike argmax, these reductions are vectorized on CPUs.
    largest = logits.max(axis=1, keepdims=True)
    return jnp.where(logits == largest, _classes(logits), logits.shape[1] - 1).min(axis=1)


def compare(logits: Float[Array, "y C x"], labels: Integer[Array, "y x"]) -> tuple[Float[Array, "y x"], Float[Array, "y C x"]]:
    """Compute the cross-entropy of every pixel, and its gradient with respect to the logits; 0 where the label is ignored."""
    counted = labels != IGNORED
    labels = jnp.where(counted, labels, 0).astype(jnp.int32)[:, None]
    normalizer = jax.nn.logsumexp(logits, axis=1, keepdims=True)
    entropy = normalizer - jnp.take_along_axis(logits, labels, axis=1)
    gradient = jnp.exp(logits - normalizer) - (_classes(logits) == labels)
    return entropy[:, 0] * counted, gradient * counted[:, None]


def _classes(logits):
    """Return the class of every logit."""
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
