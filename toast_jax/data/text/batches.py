"""Batches of token sequences for training and evaluation; batch k depends on the source, the seed and k alone."""

import functools
from collections.abc import Generator

import grain
import numpy as np

from toast_jax.data.loader import Batch, iterate, rows_per_host, steps_per_epoch
from toast_jax.data.text.sequences import Sequences


def train_batches(
    source: Sequences,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Batch]:
    """Iterate over shuffled batches; each epoch has its own order and drops its last incomplete batch.

    Args: as in `data.images.batches.train_batches`.

    Returns:
      An iterator of dicts of the arrays of `source[i]`, stacked, and `index` int32 `[b]`, the position i.
    """
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    dataset = dataset[: steps_per_epoch(source, batch_size) * batch_size].repeat(epochs)
    rows = rows_per_host(batch_size, shard)
    return iterate(dataset.map(functools.partial(_item, source)).batch(rows)[shard[0] :: shard[1]][start_step:], workers)


def eval_batches(source: Sequences, *, batch_size: int, workers: int = 0, shard: tuple[int, int] = (0, 1)) -> Generator[Batch]:
    """Iterate over every sequence once, in order; the last batch is padded with zeros and index -1.

    Args, returns: as in `train_batches`.
    """
    steps = -(-len(source) // batch_size)
    dataset = grain.MapDataset.range(steps * batch_size).map(functools.partial(_item, source))
    return iterate(dataset.batch(rows_per_host(batch_size, shard))[shard[0] :: shard[1]], workers)


def _item(source, index):
    if index < len(source):
        return {**source[index], "index": np.int32(index)}
    return {**{name: np.zeros_like(array) for name, array in source[0].items()}, "index": np.int32(-1)}
