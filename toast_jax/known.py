"""What tuning does not change: computed once for many runs and, where every image has one view, once for all epochs."""

import logging
import os
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax import parallel
from toast_jax.data import batches, sources
from toast_jax.losses import inputs
from toast_jax.methods import BACKBONE, Method
from toast_jax.model import Steered

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
    """Whether the backbone sees the same of an image in every epoch: no augmentation, no drop-path, the whole image."""
    augment = config.augment
    changes = augment.flip, augment.min_crop_area < 1, augment.randaugment_ops, augment.erasing, augment.mixup, augment.cutmix
    # Images of VTAB are stretched to the square that is cropped.
    whole = config.data.format == "vtab" and config.data.resize == config.data.image_size
    return whole and not any(changes) and not config.backbone.drop_path


def keep(config: ConfigDict, known: Callable, frozen: dict, source: sources.Source) -> dict | None:
    """Computes what is known of every image of a source, and keeps it on the host.

    Args:
      config: of a run whose views are fixed.
      known: of `known_of`.
      frozen: placed parameters.

    Returns:
      a dict of arrays `[n, ...]` in the order of the source; None where it would take more than half of the free memory, or the
      source is shared by several hosts.
    """
    if jax.process_count() > 1:
        return None

    def everywhere(frozen, batch):
        return jax.tree.map(lambda a: jax.lax.all_gather(a, parallel.AXIS, tiled=True), known(frozen, batch))

    step, kept, rows = parallel.replicate(everywhere, num_replicated=1), None, 0
    data = config.data
    loader = batches.eval_batches(
        source, batch_size=config.batch_size, resize=data.resize, size=data.image_size, workers=data.workers
    )
    for batch in parallel.sharded(loader):
        found = parallel.fetch(step(frozen, batch))
        if kept is None:
            size = sum(array.nbytes for array in found.values()) // config.batch_size * len(source)
            if size > _free_memory() // 2:
                log.info("What is known of the images (%s MB) is computed in every epoch: memory is short.", f"{size >> 20:,}")
                return None
            log.info("What no step changes is computed once for each image and kept (%s MB).", f"{size >> 20:,}")
            kept = {name: np.empty((len(source), *array.shape[1:]), array.dtype) for name, array in found.items()}
        for name, array in found.items():
            kept[name][rows : rows + len(array)] = array[: len(source) - rows]
        rows += config.batch_size
    return kept


def attached(kept: dict, batch: dict) -> dict:
    """The batch with what is kept of its images; without the images where nothing else of them is needed."""
    batch = {**batch, "known": {name: array[batch["index"]] for name, array in kept.items()}}
    if "pooled" in kept:
        del batch["image"]
    return batch


def _free_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
