"""What is minimised: one function per stage, `(params, batch, rng) -> scores`.

Scores are arrays `[B]`, one number per example. Training minimises the mean of `loss` and reports the means of all; evaluation
averages the same scores over a split.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from toast_jax.methods import Method
from toast_jax.model import Steered, apply


def cross_entropy(logits: jax.Array, batch: dict) -> jax.Array:
    """Cross-entropy `[B]` of `logits [B, C]` with the batch's `target [B, C]` if it has one, else with its `label [B]`."""
    if "target" in batch:
        return optax.softmax_cross_entropy(logits, batch["target"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def tune(model: Steered, method: Method) -> Callable:
    """Cross-entropy of the final look; scores `loss` and `accuracy` (1 where the largest logit is the largest target's)."""

    def scores(params, batch, rng=None):
        logits = apply(model, method, params, batch.get("image"), rng, known=batch.get("known"))
        return {"loss": cross_entropy(logits, batch), "accuracy": _hits(logits, batch)}

    return scores


def pretune(model: Steered, method: Method, *, task_weight: float, variational_weight: float) -> Callable:
    """Weighted sum of the cross-entropy and the variational loss (paper, section 3.3), both of the final look.

    Scores `loss`, `variational_loss` and, unless `task_weight` is 0, `task_loss` and `accuracy`.
    """

    def explain(module, images, rng):
        logits, out = module.explain(images, rng)
        return logits, module.top_down.variational_loss(out["look"]["hidden"])

    def scores(params, batch, rng=None):
        logits, variational = apply(model, method, params, batch["image"], rng, call=explain)
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
    wanted = jnp.argmax(batch["target"], axis=-1) if "target" in batch else batch["label"]
    return (jnp.argmax(logits, axis=-1) == wanted).astype(jnp.float32)
