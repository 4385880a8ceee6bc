"""Objectives, one function per stage: `(params, batch, rng) -> scores`.

Scores are arrays `[B]`, one value per example. Training minimizes the mean of `loss` and reports the means of all; evaluation
averages the same scores over a split.

An example of text predicts many tokens; its scores are sums over them, weighted by the batch's `weight [B, N]`. The data
pipeline sets weights that sum to 1 per example, and `mask [B]` to the number of predicted tokens. The mean over a split
weighs examples by `mask`, so it is a mean over tokens. `train.augment.by_token` makes the plain mean over a training batch
one over tokens too.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Batch, Inputs, Keys, Scores
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply


def inputs(batch: Batch) -> Inputs | None:
    """What a network looks at: a batch's images, or None where their features are given, or its tokens and their documents."""
    return {name: batch[name] for name in ("tokens", "segments")} if "tokens" in batch else batch.get("image")


def cross_entropy(logits: Float[Array, "B *N C"], batch: Batch) -> Float[Array, " B"]:
    """Compute the cross-entropy of every example.

    Args:
      logits: `[B, C]`, or `[B, N, V]` of text.
      batch: with `target [B, C]` or, if it has none, `label [B]`; of text, `label [B, N]`.
    """
    if "target" in batch:
        return optax.softmax_cross_entropy(logits, batch["target"])
    return _of_example(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch)


def tune(model: Steered, method: Method) -> Callable:
    """Scores the final look by its cross-entropy, `loss`, and by its `accuracy`."""

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        logits = apply(model, method, params, inputs(batch), rng, features=batch.get("features"))
        return {"loss": cross_entropy(logits, batch), "accuracy": _hits(logits, batch)}

    return scores


def pretune(model: Steered, method: Method, *, task_weight: float, variational_weight: float) -> Callable:
    """Scores the final look by the weighted sum of cross-entropy and variational loss (paper, section 3.3).

    The scores are `loss`, `variational_loss` and, unless `task_weight` is 0, `task_loss` and `accuracy`.
    """

    def explain(module, inputs, rng):
        logits, out = module.explain(inputs, rng)
        return logits, module.top_down.variational_loss(out["look"]["hidden"])

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        logits, variational = apply(model, method, params, inputs(batch), rng, call=explain)
        if not task_weight:
            return {"loss": variational_weight * variational, "variational_loss": variational}
        task = cross_entropy(logits, batch)
        return {
            "loss": task_weight * task + variational_weight * variational,
            "accuracy": _hits(logits, batch),
            "task_loss": task,
            "variational_loss": variational,
        }

    return scores


def _hits(logits, batch):
    """Is 1 where the largest logit is that of the largest target."""
    wanted = jnp.argmax(batch["target"], axis=-1) if "target" in batch else batch["label"]
    return _of_example((jnp.argmax(logits, axis=-1) == wanted).astype(jnp.float32), batch)


def _of_example(values, batch):
    """Reduce `[B, N]`, one value per token, to `[B]`; return `[B]` as it is."""
    return values if values.ndim == 1 else jnp.sum(batch["weight"] * values, axis=1)
