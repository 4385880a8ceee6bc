"""Evaluate a network on a split; every example counts once."""

import functools
from collections.abc import Callable, Generator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.devices.protocol import Devices


def eval_step(tuned: dict, frozen: dict, batch: dict, *, scores: Callable) -> dict:
    """Sum the scores of a batch (see `losses`) over all devices, weighted by `mask`; `count` is the sum of the weights.

    The weight of an example is 1 for an image, the number of predicted tokens for a text, and 0 for padding. For images,
    `correct` is the accuracy of each example of the global batch, `[B]`; `logits [B, C]` and `label [B]` are those of all
    examples if logits are among the scores.
    """
    mask = batch["mask"]
    by_example = scores(trees.merge(tuned, frozen), batch)
    logits = by_example.pop("logits", None)
    sums = {name: jnp.sum(mask * score) for name, score in by_example.items()}
    sums = jax.lax.psum({**sums, "count": mask.sum()}, parallel.AXIS)
    if "image" not in batch or "accuracy" not in by_example:
        return sums
    rows = {"correct": by_example["accuracy"]}
    rows |= {} if logits is None else {"logits": logits, "label": batch["label"]}
    return {**sums, **jax.lax.all_gather(rows, parallel.AXIS, tiled=True)}


def mapped(scores: Callable, devices: Devices = parallel) -> Callable:
    """Map `eval_step` over all devices: `(tuned, frozen, batch) -> sums`; see `devices.protocol`."""
    return devices.replicate(functools.partial(eval_step, scores=scores), num_replicated=2)


class Evaluation(NamedTuple):
    """Scores of one network on a split, or of several with a leading axis `[networks]`.

    Attributes:
      means: of the scores, and `count`. `accuracy` is a fraction, `loss` is in nats.
      correct: whether each image is classified correctly, bool `[n]` in the order of the split; None for text.
      predictions: `logits [n, C]` and `label [n]`; None if logits are not among the scores.
    """

    means: dict[str, float]
    correct: np.ndarray | None
    predictions: dict[str, np.ndarray] | None = None


def evaluate(step: Callable, tuned: dict, frozen: dict, batches: Generator[dict], devices: Devices = parallel) -> Evaluation:
    """Run `step` over all batches.

    Sums stay on the device until the last batch; the host adds them up in float64, where counts are exact.
    """
    sums = jax.device_get([step(tuned, frozen, batch) for batch in devices.sharded(batches)])
    rows = {name: [batch.pop(name) for batch in sums] for name in ("correct", "logits", "label") if name in sums[0]}
    total = {name: sum(batch[name].astype(np.float64) for batch in sums) for name in sums[0]}
    count = int(np.max(total.pop("count")))
    means = {**{name: total[name] / count for name in sorted(total)}, "count": count}
    # Padding is at the end of the last batch.
    correct = np.concatenate(rows["correct"], axis=-1)[..., :count] > 0 if "correct" in rows else None
    predictions = {str(name): np.concatenate(rows[name])[:count] for name in ("logits", "label") if name in rows}
    return Evaluation(means, correct, predictions or None)
