"""Loading of batches on Grain, for images and text alike."""

import os
import sys
from collections.abc import Generator, Sized

import grain
import grain.experimental
import numpy as np
from absl import flags

from toast_jax.errors import InputError

Batch = dict[str, np.ndarray]
Example = dict[str, np.ndarray | np.generic]  # a row of a batch

# More decoding threads than this only contend for Python's global lock.
MAX_THREADS = 16


def steps_per_epoch(source: Sized, batch_size: int) -> int:
    """Count the whole global batches in one pass over the source.

    Raises:
        InputError: the source is smaller than one batch.
    """
    if len(source) < batch_size:
        raise InputError(
            f"The training data has {len(source)} examples, fewer than one batch of {batch_size}: "
            f"set --config.batch_size={len(source)} or less."
        )
    return len(source) // batch_size


def rows_per_host(batch_size: int, shard: tuple[int, int]) -> int:
    """Divide the rows of a global batch among `shard[1]` hosts; InputError if they do not divide evenly."""
    _, count = shard
    if batch_size % count:
        raise InputError(
            f"A batch of {batch_size} cannot be shared by {count} hosts: set --config.batch_size to a multiple of {count}."
        )
    return batch_size // count


def iterate(dataset: grain.MapDataset, workers: int) -> Generator[Batch]:
    """Iterate over a pipeline with threads, or with `workers` processes; closing the iterator stops them."""
    # One thread per worker process: more would contend for its lock.
    threads = 1 if workers else min(os.cpu_count() or 1, MAX_THREADS)
    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    loader = dataset.to_iter_dataset(read_options)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads its flags when it starts a process; notebooks and tests never parse them.
            flags.FLAGS.mark_as_parsed()
        # Pipes, because Grain leaks shared memory at exit and many containers have only 64 MB of it.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        loader = grain.experimental.WithOptionsIterDataset(loader, pipes)
        loader = loader.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    batches = iter(loader)
    try:
        yield from batches
    finally:
        batches.close()
