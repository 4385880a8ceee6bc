"""What is minimised: one function per stage, `(params, batch, rng) -> (loss, metrics)`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from toast_jax.methods import Method
from toast_jax.model import Steered, apply


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per-example cross-entropy `[B]` of `logits [B, C]` and class ids `[B]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def tune(model: Steered, method: Method) -> Callable:
    """Cross-entropy of the final look, averaged over the batch."""

    def loss(params, batch, rng):
        logits = apply(model, method, params, batch["image"], rng)
        value = cross_entropy(logits, batch["label"]).mean()
        return value, {"accuracy": _accuracy(logits, batch["label"])}

    return loss


def pretune(model: Steered, method: Method, weight: float) -> Callable:
    """Cross-entropy plus `weight` times the variational loss (paper, section 3.3), both of the final look."""

    def explain(module, images, rng):
        logits, out = module.explain(images, rng)
        return logits, module.top_down.variational_loss(out["look"]["hidden"])

    def loss(params, batch, rng):
        logits, variational = apply(model, method, params, batch["image"], rng, call=explain)
        task = cross_entropy(logits, batch["label"]).mean()
        metrics = {"accuracy": _accuracy(logits, batch["label"]), "task_loss": task, "variational_loss": variational}
        return task + weight * variational, metrics

    return loss


def _accuracy(logits, labels):
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)
