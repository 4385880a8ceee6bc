"""What tuning does not change: computed once for many runs and, where epochs repeat views, once for all of them."""

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import sources
from toast_jax.devices import parallel
from toast_jax.model.losses import inputs
from toast_jax.model.methods import BACKBONE, Method
from toast_jax.model.steered import Steered
from toast_jax.train import images

log = logging.getLogger(__name__)


def known_of(model: Steered, method: Method) -> Callable | None:
    """`(frozen, batch, rng) -> dict`, see `Steered.known`; None where a method has no such thing, or changes it."""
    looks_once = not method.signal and not method.lora
    if BACKBONE not in method.frozen or not (looks_once or method.signal == "top_down"):
        return None

    def known(frozen, batch, rng=None):
        return model.apply({"params": {"backbone": frozen["backbone"]}}, inputs(batch), rng, method="known")

    return known


def has_fixed_views(config: ConfigDict) -> bool:
    """Whether epochs repeat what the backbone sees of an image: views that are numbered or all alike, and no drop-path."""
    augment = config.augment
    varied = augment.flip, augment.min_crop_area < 1, augment.randaugment_ops
    # Images of VTAB are stretched to the square that is cropped.
    alike = config.data.format == "vtab" and config.data.resize == config.data.image_size and not any(varied)
    changed_later = augment.erasing, augment.mixup, augment.cutmix, config.backbone.drop_path
    return bool(config.data.views or alike) and not any(changed_later)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is known of every view of a source.

    Attributes:
      arrays: what `Steered.known` returned, each `[n * views, ...]`: view v of example i is row i * views + v.
      labels: `[n]`, of the examples.
      views: how many an example has.
    """

    arrays: dict[str, np.ndarray]
    labels: np.ndarray
    views: int

    @property
    def suffices(self) -> bool:
        """Whether a step needs nothing else of an image."""
        return "pooled" in self.arrays

    def attached(self, batch: dict) -> dict:
        """A batch of `batches.train_batches` with what is known of its views."""
        rows = batch["index"] * self.views + batch["view"]
        return {**batch, "known": {name: array[rows] for name, array in self.arrays.items()}}


def keep(config: ConfigDict, known: Callable, frozen: dict, source: sources.Source, folder: Path) -> Kept | None:
    """Computes what is known of every view of a source, and keeps it in memory or in a file.

    Args:
      config: of a run whose views are fixed.
      known: of `known_of`.
      frozen: placed parameters.
      folder: for a file, which is gone when the process ends, however it does.

    Returns:
      None where it would take more than half of the free memory and of the free disk, or the source is shared by several hosts.
    """
    if jax.process_count() > 1:
        return None

    def everywhere(frozen, batch):
        return jax.tree.map(lambda a: jax.lax.all_gather(a, parallel.AXIS, tiled=True), known(frozen, batch))

    step, views = parallel.replicate(everywhere, num_replicated=1), max(1, config.data.views)
    count, rows, arrays = len(source) * views, 0, {}
    labels = np.empty(len(source), np.int32)
    with contextlib.closing(images.fixed_views(config, source)) as loader:
        for batch in loader:
            labels[batch["index"]] = batch["label"]
            found = parallel.fetch(step(frozen, parallel.shard(batch)))
            if not arrays:
                arrays = _room({name: ((count, *array.shape[1:]), array.dtype) for name, array in found.items()}, folder)
                if arrays is None:
                    return None
            for name, array in found.items():
                arrays[name][rows : rows + len(array)] = array[: count - rows]
            rows += config.batch_size
    return Kept(arrays, labels, views)


def _room(shapes: dict, folder: Path) -> dict[str, np.ndarray] | None:
    """Arrays of some shapes and dtypes, in memory if it has room, else in a file."""
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if size <= _free_memory() // 2:
        log.info("What no step changes is computed once for each view and kept in memory (%s MB).", f"{size >> 20:,}")
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    if size <= shutil.disk_usage(folder).free // 2:
        with contextlib.suppress(OSError):  # less room than was told, by a quota for example
            files = {name: _in_a_file(shape, dtype, folder) for name, (shape, dtype) in shapes.items()}
            log.info("What no step changes is computed once for each view and kept in a file (%s MB).", f"{size >> 20:,}")
            return files
    log.info("What no step changes (%s MB) is computed in every epoch: memory and disk are short.", f"{size >> 20:,}")
    return None


def _in_a_file(shape, dtype, folder):
    with tempfile.TemporaryFile(dir=folder) as file:  # has no name, so that nothing is left of it
        if hasattr(os, "posix_fallocate"):  # a disk that is full when a page is written would end the process without a word
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
        return np.memmap(file, dtype, "w+", shape=shape)


def _free_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
