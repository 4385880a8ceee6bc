"""Batches of images with labels, for training and evaluation; see `data.images.batches` for their order."""

from collections.abc import Generator

import grain
import numpy as np

from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.data.images.segmentation.masks import MaskedSource
from toast_jax.data.images.segmentation.views import EvalView, TrainView
from toast_jax.data.loader import Batch, Example, iterate, rows_per_host, steps_per_epoch


def train_batches(
    source: MaskedSource,
    *,
    view: TrainView,
    batch_size: int,
    steps: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Batch]:
    """Iterate over shuffled, augmented batches; each pass has its own order and drops the last incomplete batch.

    Args:
        source, batch_size, seed, start_step, workers, shard: as in `data.images.batches.train_batches`.
        view: the random view of each image.
        steps: number of batches.

    Returns:
        An iterator of steps - start_step dicts of image uint8 [b, h, w, 3], label uint8 [b, h, w], size int32 [b, 2] (height
        and width without padding), mask float32 [b], all ones, and index int32 [b], the position in the source.
    """
    rows = rows_per_host(batch_size, shard)
    of_pass = steps_per_epoch(source, batch_size)

    def example(index: int, rng: np.random.Generator) -> Example:
        image, labels, size = view(*source[index], rng)
        row = {"image": image, "label": labels, "size": np.array(size, np.int32)}
        return {**row, "mask": np.float32(1), "index": np.int32(index)}

    passes = -(-steps // of_pass)
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()[: of_pass * batch_size].repeat(passes)
    batches = dataset.random_map(example).batch(rows)[shard[0] :: shard[1]]
    return iterate(batches[start_step:steps], workers)


def eval_batches(
    source: MaskedSource, *, view: EvalView, batch_size: int, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> Generator[Batch]:
    """Iterate over every image once, grouped by the shapes of their arrays.

    Args:
        source, workers, shard: as in `train_batches`.
        view: makes the arrays of an image.
        batch_size: images in a global batch, over all hosts; padded where shapes change.

    Returns:
        An iterator of dicts of the arrays of `EvalView`, with a leading axis, mask float32 [b] and index int32 [b]. Padding
        repeats an image without counted labels, with mask 0 and index -1.
    """
    rows = rows_per_host(batch_size, shard)
    alike: dict[tuple, list[int]] = {}
    for index in range(len(source)):
        alike.setdefault(view.shapes(source.sides(index)), []).append(index)
    order: list[tuple[int, bool]] = []
    for _, indices in sorted(alike.items()):
        order += [(index, True) for index in indices] + [(indices[0], False)] * (-len(indices) % batch_size)

    def example(place: int) -> Example:
        index, counts = order[place]
        row = view(*source[index])
        label = row["label"] if counts else np.full_like(row["label"], IGNORED)
        return {**row, "label": label, "mask": np.float32(counts), "index": np.int32(index if counts else -1)}

    batches = grain.MapDataset.range(len(order)).map(example).batch(rows)[shard[0] :: shard[1]]
    return iterate(batches, workers)
