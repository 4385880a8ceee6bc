"""Accuracy over a split, every example counted once."""

import functools
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp

from toast_jax import losses, parallel, trees
from toast_jax.methods import Method
from toast_jax.model import Steered, apply


def eval_step(tuned: dict, frozen: dict, batch: dict, *, model: Steered, method: Method) -> dict:
    """Sums over the real examples (mask 1) of a batch, over all devices: `count`, `correct`, `loss`."""
    logits = apply(model, method, trees.merge(tuned, frozen), batch["image"])
    hits = jnp.argmax(logits, axis=-1) == batch["label"]
    sums = {
        "count": batch["mask"].sum(),
        "correct": jnp.sum(batch["mask"] * hits),
        "loss": jnp.sum(batch["mask"] * losses.cross_entropy(logits, batch["label"])),
    }
    return jax.lax.psum(sums, parallel.AXIS)


def mapped(model: Steered, method: Method) -> Callable:
    """`eval_step` over all devices: `(tuned, frozen, batch) -> sums`."""
    return parallel.replicate(functools.partial(eval_step, model=model, method=method), num_replicated=2)


def evaluate(step: Callable, tuned: dict, frozen: dict, batches: Generator[dict]) -> dict[str, float]:
    """Runs `step` over all batches; returns `accuracy` (a fraction), `loss` (mean) and `count`.

    Sums stay on the device until the last batch, and are added up on the host, where a count cannot be rounded.
    """
    sums = jax.device_get([step(tuned, frozen, batch) for batch in parallel.sharded(batches)])
    total = {name: sum(float(one[name]) for one in sums) for name in ("count", "correct", "loss")}
    return {
        "accuracy": total["correct"] / total["count"],
        "loss": total["loss"] / total["count"],
        "count": int(total["count"]),
    }
