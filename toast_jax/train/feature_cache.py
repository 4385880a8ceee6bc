"""Cache the frozen features: once per step for a grid, once per run if views repeat."""

import contextlib
import dataclasses
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import sources
from toast_jax.devices import parallel
from toast_jax.model.losses import inputs
from toast_jax.model.methods import BACKBONE, Method
from toast_jax.model.steered import Steered
from toast_jax.train import image_runs

log = logging.getLogger(__name__)


def features_of(model: Steered, method: Method) -> Callable | None:
    """Return the function that computes the features that tuning leaves as they are.

    Returns:
      `(frozen, batch, rng) -> dict`, see `Steered.frozen_features`; None for a method that tunes the backbone or its input.
    """
    looks_once = not method.signal and not method.added
    if BACKBONE not in method.frozen or not (looks_once or method.signal == "top_down"):
        return None

    def features(frozen, batch, rng=None):
        return model.apply({"params": {"backbone": frozen["backbone"]}}, inputs(batch), rng, method="frozen_features")

    return features


def is_cached(config: ConfigDict, features: Callable | None) -> bool:
    """Return whether a run computes its frozen features before the first step, memory permitting."""
    return bool(features and config.get("keep_known") and has_fixed_views(config) and jax.process_count() == 1)


def has_fixed_views(config: ConfigDict) -> bool:
    """Return whether epochs repeat what the backbone sees: numbered or identical views of each image, and no drop-path."""
    augment = config.augment
    varied = augment.flip, augment.min_crop_area < 1, augment.randaugment_ops
    # Images of VTAB are stretched to the square that is cropped.
    identical = config.data.format == "vtab" and config.data.resize == config.data.image_size and not any(varied)
    changed_later = augment.erasing, augment.mixup, augment.cutmix, config.backbone.drop_path
    return bool(config.data.views or identical) and not any(changed_later)


def replaces_images(features: Mapping[str, Any]) -> bool:
    """Return whether a network with these features looks at no images, see `Steered.frozen_features`."""
    return "pooled" in features or "start" in features


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """The frozen features of every view of a source.

    Attributes:
      arrays: by the names of `Steered.frozen_features`, each `[n * views, ...]`: view v of example i is row i * views + v. On
        the devices where they have room, else on the host.
      labels: `[n]`, of the examples.
      views: how many views an example has.
    """

    arrays: Mapping[str, Any]
    labels: np.ndarray
    views: int

    @property
    def replaces_images(self) -> bool:
        """Whether a step needs no images beside the features."""
        return replaces_images(self.arrays)

    def sharded(self, batch: dict) -> dict:
        """Split a batch of `batches.train_batches` over the devices, with the features of its views as `features`."""
        rows = batch["index"] * self.views + batch["view"]
        if not self.on_devices:
            return parallel.shard({**batch, "features": {name: array[rows] for name, array in self.arrays.items()}})
        return {**parallel.shard(batch), "features": parallel.take(self.arrays, parallel.shard({"rows": rows})["rows"])}

    @property
    def on_devices(self) -> bool:
        return any(isinstance(array, jax.Array) for array in self.arrays.values())


def build(config: ConfigDict, features: Callable, frozen: dict, source: sources.Source, folder: Path) -> FeatureCache | None:
    """Compute the features of every view of a source, in memory or in a file.

    Args:
      config: of a run for which `is_cached` is true.
      features: see `features_of`.
      frozen: placed parameters.
      folder: for the file, which is gone when the process ends, however it ends.

    Returns:
      the cache, or None if it would take more than half of the free memory and of the free disk.
    """

    def gathered(frozen, batch):
        return jax.tree.map(lambda a: jax.lax.all_gather(a, parallel.AXIS, tiled=True), features(frozen, batch))

    step, views = parallel.replicate(gathered, num_replicated=1), image_runs.num_views(config)
    count, row = len(source) * views, 0
    arrays: dict[str, np.ndarray] = {}
    labels = np.empty(len(source), np.int32)
    with contextlib.closing(image_runs.fixed_views(config, source)) as loader:
        for batch in loader:
            labels[batch["index"]] = batch["label"]
            computed = parallel.fetch(step(frozen, parallel.shard(batch)))
            if not arrays:
                shapes = {name: ((count, *array.shape[1:]), array.dtype) for name, array in computed.items()}
                room = _room(shapes, folder)
                if room is None:
                    return None
                arrays = room
            for name, array in computed.items():
                arrays[name][row : row + len(array)] = array[: count - row]
            row += config.batch_size
    size = sum(array.nbytes for array in arrays.values())
    if is_placed(size, min(map(_free_on_device, jax.local_devices()))):
        log.info("They are copied to the devices.")
        return FeatureCache(parallel.place(arrays), labels, views)
    return FeatureCache(arrays, labels, views)


def is_placed(size: int, free: int) -> bool:
    """Return whether a cache of so many bytes is copied to devices with so many `free` ones each."""
    return size <= free // 4


def _room(shapes: dict, folder: Path) -> dict[str, np.ndarray] | None:
    """Return empty arrays of these shapes and dtypes, in memory or else in a file; None if both are short."""
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if size <= _free_memory() // 2:
        log.info("Frozen features are computed once for each view and cached in memory (%s MB).", f"{size >> 20:,}")
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    if size <= shutil.disk_usage(folder).free // 2:
        with contextlib.suppress(OSError):  # less room than the disk reports, because of a quota for example
            files = {name: _in_a_file(shape, dtype, folder) for name, (shape, dtype) in shapes.items()}
            log.info("Frozen features are computed once for each view and cached in a file (%s MB).", f"{size >> 20:,}")
            return files
    log.info("Frozen features (%s MB) are computed in every epoch: memory and disk are short.", f"{size >> 20:,}")
    return None


def _in_a_file(shape, dtype, folder):
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name, so the system removes it
        if hasattr(os, "posix_fallocate"):  # else a full disk kills the process when a page is written
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
        return np.memmap(file, dtype, "w+", shape=shape)


def _free_on_device(device: jax.Device) -> int:
    """Return the free bytes of an accelerator's memory; 0 if it reports none, as CPUs do."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)


def _free_memory() -> int:
    """Return the bytes of memory that can be used without swapping."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
