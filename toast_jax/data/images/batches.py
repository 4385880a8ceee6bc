"""Batches of images for training and evaluation.

Batch k depends only on the source, the seed and k: not on where the run was resumed, nor on the number of threads, processes or
hosts that load it.
"""

from collections.abc import Generator

import grain
import numpy as np

from toast_jax.data.images import pixels
from toast_jax.data.images.randaugment import randaugment
from toast_jax.data.images.sources import Source
from toast_jax.data.loader import Batch, Example, iterate, rows_per_host, steps_per_epoch
from toast_jax.errors import InputError


def train_batches(
    source: Source,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    views: int = 0,
    labels: np.ndarray | None = None,
    start_step: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    **view,
) -> Generator[Batch]:
    """Iterate over shuffled, augmented batches; each epoch has its own order and drops its last incomplete batch.

    Args:
        source: the training images.
        batch_size: images in a global batch, over all hosts.
        epochs: passes over the source.
        seed: of the order and the augmentation.
        views: how many fixed views each image has; the epochs cycle through them. 0 draws a new view in every epoch.
        labels: of all examples, for a step that needs no pixels; no image file is read then.
        start_step: number of batches to skip at the start, without loading them.
        workers: processes that load batches, 0 for threads of this process. Processes are spawned, so the main module needs an
            `if __name__ == '__main__':` guard.
        shard: (index, count) of this host; it gets rows [index * b, (index + 1) * b) of each global batch.
        view: crop and augmentation, see `train_view`.

    Returns:
        An iterator of epochs * steps_per_epoch - start_step dicts of image uint8 [b, size, size, 3] (unless labels are given),
        label int32 [b], mask float32 [b], all ones, index int32 [b], the position in the source, and view int32 [b], 0 for new
        views, with b = batch_size // count. Closing it stops its threads or processes.

    Raises:
        InputError: the source is smaller than one batch, the hosts cannot share a batch evenly, or the crop exceeds the
            resized image. While iterating: an image cannot be decoded.
    """
    rows = rows_per_host(batch_size, shard)
    _check_crop(**view)
    epoch_size = steps_per_epoch(source, batch_size) * batch_size

    def new_view(index: int, rng: np.random.Generator) -> Example:
        return _example(source, index, 0, rng, view)

    def fixed_view(position: int, index: int) -> Example:
        number = position // epoch_size % max(views, 1)
        if labels is None:
            return _fixed_view(source, index, number, seed, view)
        return _row(labels[index], index, number)

    # Slicing and repeating preserve the epoch number: each pass is shuffled anew.
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()[:epoch_size].repeat(epochs)
    always_new = not views and labels is None
    dataset = dataset.random_map(new_view) if always_new else dataset.map_with_index(fixed_view)
    return iterate(dataset.batch(rows)[shard[0] :: shard[1]][start_step:], workers)


def fixed_views(source: Source, *, batch_size: int, seed: int, views: int, workers: int = 0, **view) -> Generator[Batch]:
    """Iterate over all fixed views that `train_batches` cycles through; row i * views + v is view v of example i.

    Args:
        source, seed, views, workers, view: as in `train_batches`.
        batch_size: images in a batch; the last one is padded.

    Returns:
        An iterator of dicts as in `train_batches`. Padding has mask 0 and repeats the last example.
    """
    _check_crop(**view)
    count = len(source) * views

    def example(row: int) -> Example:
        index, number = divmod(min(row, count - 1), views)
        return {**_fixed_view(source, index, number, seed, view), "mask": np.float32(row < count)}

    return iterate(grain.MapDataset.range(-(-count // batch_size) * batch_size).map(example).batch(batch_size), workers)


def train_view(
    image: np.ndarray, rng: np.random.Generator, *, randaugment_ops: int = 0, randaugment_magnitude: float = 9.0, **crop
) -> np.ndarray:
    """Crop, flip and augment an image uint8 [H, W, 3]: `pixels.train_view`, then `randaugment`; uint8 [size, size, 3].

    Args:
        randaugment_ops, randaugment_magnitude: of `randaugment`.
        crop: sizes, smallest area and flip, see `pixels.train_view`.
    """
    return randaugment(pixels.train_view(image, rng, **crop), rng, num_ops=randaugment_ops, magnitude=randaugment_magnitude)


def _fixed_view(source, index, number, seed, view) -> Example:
    return _example(source, index, number, np.random.default_rng((seed, index, number)), view)


def _example(source, index, number, rng, view) -> Example:
    example = source[index]
    return {"image": train_view(pixels.decode_example(example), rng, **view), **_row(example["label"], index, number)}


def _row(label, index, number) -> Example:
    return {"label": np.int32(label), "mask": np.float32(1), "index": np.int32(index), "view": np.int32(number)}


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    resize: int,
    size: int,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Batch]:
    """Iterate over every example once, in order; the last batch is padded.

    Args:
        source: the images to evaluate on.
        batch_size: images in a global batch, over all hosts.
        resize: length of the shorter side before the crop, in pixels.
        size: side of the central square crop, in pixels.
        workers: as in `train_batches`.
        shard: as in `train_batches`; every host gets the same number of batches.

    Returns:
        An iterator of dicts of image uint8 [b, size, size, 3], label int32 [b], mask float32 [b] and index int32 [b],
        the position in the source, with b = batch_size // count. Padding is image 0, label 0, mask 0 and index -1.

    Raises:
        InputError: the hosts cannot share a batch evenly, or the crop exceeds the resized image. While iterating: an
            image cannot be decoded.
    """
    rows = rows_per_host(batch_size, shard)
    _check_crop(resize, size)

    def row(index: int) -> Example:
        if index >= len(source):
            blank = np.zeros((size, size, 3), np.uint8)
            return {"image": blank, "label": np.int32(0), "mask": np.float32(0), "index": np.int32(-1)}
        example = source[index]
        view = pixels.eval_view(pixels.decode_example(example), resize=resize, size=size)
        return {"image": view, "label": np.int32(example["label"]), "mask": np.float32(1), "index": np.int32(index)}

    steps = -(-len(source) // batch_size)
    dataset = grain.MapDataset.range(steps * batch_size).map(row)
    return iterate(dataset.batch(rows)[shard[0] :: shard[1]], workers)


def _check_crop(resize: int, size: int, **_) -> None:
    if size > resize:
        raise InputError(
            f"A crop of {size} pixels does not fit in images resized to {resize}: set --config.data.resize={size} or more."
        )
