"""Scores over a split, every example counted once."""

import functools
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.devices import parallel


def eval_step(tuned: dict, frozen: dict, batch: dict, *, scores: Callable) -> dict:
    """Sums over a batch and all devices: of every score (see `losses`) times the `mask` of its example, and of it, `count`.

    The mask is 1 for an image and the number of predicted tokens for a text; it is 0 for padding.
    """
    mask = batch["mask"]
    sums = {name: jnp.sum(mask * score) for name, score in scores(trees.merge(tuned, frozen), batch).items()}
    return jax.lax.psum({**sums, "count": mask.sum()}, parallel.AXIS)


def mapped(scores: Callable, devices=parallel) -> Callable:
    """`eval_step` over all devices: `(tuned, frozen, batch) -> sums`; see `setup.devices_of`."""
    return devices.replicate(functools.partial(eval_step, scores=scores), num_replicated=2)


def evaluate(step: Callable, tuned: dict, frozen: dict, batches: Generator[dict], devices=parallel) -> dict[str, float]:
    """Runs `step` over all batches; returns the mean of every score (`accuracy` is a fraction, `loss` in nats) and `count`.

    The means of a step that evaluates several networks are arrays, one number for each.

    Sums stay on the device until the last batch, and are added up on the host, where a count cannot be rounded.
    """
    sums = jax.device_get([step(tuned, frozen, batch) for batch in devices.sharded(batches)])
    total = {name: sum(one[name].astype(np.float64) for one in sums) for name in sums[0]}
    count = int(np.max(total.pop("count")))
    return {**{name: total[name] / count for name in sorted(total)}, "count": count}
