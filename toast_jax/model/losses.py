"""What is minimised: one function per stage, `(params, batch, rng) -> scores`.

Scores are arrays `[B]`, one number per example. Training minimises the mean of `loss` and reports the means of all; evaluation
averages the same scores over a split.

An example of text predicts many tokens: its scores are sums over them, weighted by the batch's `weight [B, N]`. As data gives
them, the weights of an example add up to 1, and its `mask [B]` tells how many tokens it predicts; so the mean over a split,
which weighs examples by `mask`, is one over tokens. So is the plain mean over a training batch that went
through `train.text.by_token`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply


def inputs(batch: dict):
    """What a network looks at: a batch's images, or None where their features are given, or its tokens and their documents."""
    return {name: batch[name] for name in ("tokens", "segments")} if "tokens" in batch else batch.get("image")


def cross_entropy(logits: jax.Array, batch: dict) -> jax.Array:
    """Cross-entropy `[B]` of logits with the batch.

    Those are `[B, C]`, compared with its `target [B, C]` if it has one, else with its `label [B]`; or `[B, N, V]` of text,
    compared with `label [B, N]`.
    """
    if "target" in batch:
        return optax.softmax_cross_entropy(logits, batch["target"])
    return _of_example(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), batch)


def tune(model: Steered, method: Method) -> Callable:
    """Cross-entropy of the final look; scores `loss` and `accuracy` (1 where the largest logit is the largest target's)."""

    def scores(params, batch, rng=None):
        logits = apply(model, method, params, inputs(batch), rng, features=batch.get("features"))
        return {"loss": cross_entropy(logits, batch), "accuracy": _hits(logits, batch)}

    return scores


def pretune(model: Steered, method: Method, *, task_weight: float, variational_weight: float) -> Callable:
    """Weighted sum of the cross-entropy and the variational loss (paper, section 3.3), both of the final look.

    Scores `loss`, `variational_loss` and, unless `task_weight` is 0, `task_loss` and `accuracy`.
    """

    def explain(module, inputs, rng):
        logits, out = module.explain(inputs, rng)
        return logits, module.top_down.variational_loss(out["look"]["hidden"])

    def scores(params, batch, rng=None):
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
    wanted = jnp.argmax(batch["target"], axis=-1) if "target" in batch else batch["label"]
    return _of_example((jnp.argmax(logits, axis=-1) == wanted).astype(jnp.float32), batch)


def _of_example(values, batch):
    """`[B]` from one value for an example, or from one for each of its tokens."""
    return values if values.ndim == 1 else jnp.sum(batch["weight"] * values, axis=1)
