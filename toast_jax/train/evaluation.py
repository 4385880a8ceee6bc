"""Evaluate a network on a split; every example counts once."""

import functools
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.devices.protocol import Devices


def eval_step(tuned: dict, frozen: dict, batch: dict, *, scores: Callable) -> dict:
    """Sum the scores of a batch (see `losses`) over all devices, weighted by `mask`; `count` is the sum of the weights.

    The weight of an example is 1 for an image, the number of predicted tokens for a text, and 0 for padding.
    """
    mask = batch["mask"]
    sums = {name: jnp.sum(mask * score) for name, score in scores(trees.merge(tuned, frozen), batch).items()}
    return jax.lax.psum({**sums, "count": mask.sum()}, parallel.AXIS)


def mapped(scores: Callable, devices: Devices = parallel) -> Callable:
    """Map `eval_step` over all devices: `(tuned, frozen, batch) -> sums`; see `devices.protocol`."""
    return devices.replicate(functools.partial(eval_step, scores=scores), num_replicated=2)


def evaluate(
    step: Callable, tuned: dict, frozen: dict, batches: Generator[dict], devices: Devices = parallel
) -> dict[str, float]:
    """Run `step` over all batches and return the means of the scores and `count`.

    `accuracy` is a fraction, `loss` is in nats. If the step evaluates several networks, the means are arrays `[networks]`.
    Sums stay on the device until the last batch; the host adds them up in float64, where counts are exact.
    """
    sums = jax.device_get([step(tuned, frozen, batch) for batch in devices.sharded(batches)])
    total = {name: sum(batch[name].astype(np.float64) for batch in sums) for name in sums[0]}
    count = int(np.max(total.pop("count")))
    return {**{name: total[name] / count for name in sorted(total)}, "count": count}
