"""The objective of segmentation: cross-entropy of pixels, without those of the label `IGNORED`."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Float, Integer

from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.model.layers.arrays import Array, Batch, Keys, Scores
from toast_jax.model.methods import Method
from toast_jax.model.segmentation.heads import upsample
from toast_jax.model.segmentation.segmenter import Segmenter, segment


def of_pixels(
    logits: Float[Array, "B h w C"], labels: Integer[Array, "B H W"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Compare logits, resized to the labels, with the labels.

    Returns:
      the cross-entropy, summed over counted pixels and divided by the number of all, and the share of counted pixels that is
      classified correctly.
    """
    logits, counted = upsample(logits, labels.shape[1:]), labels != IGNORED
    expected = jnp.where(counted, labels, 0).astype(jnp.int32)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, expected) * counted
    correct = (jnp.argmax(logits, axis=-1) == expected) & counted
    return entropy.mean(axis=(1, 2)), correct.sum(axis=(1, 2)) / jnp.maximum(counted.sum(axis=(1, 2)), 1)


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
