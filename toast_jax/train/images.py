"""What is particular to a run on images: its data, and what is done to a batch.

`language` has the same functions for text; the step and the loop know neither.
"""

import functools
import logging
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import batches, sources
from toast_jax.data.images.verify import verify
from toast_jax.train.augment import augment

log = logging.getLogger(__name__)

UNIT = "images"  # what is counted


def open_sources(config: ConfigDict, *, verified: bool) -> tuple[sources.Source, dict[str, sources.Source]]:
    """The training source, and by name the evaluation sources that the config has.

    Unless they are `verified` already, and if the config says so, every image is decoded once.
    """
    names = ["train"] + [name for name in ("val", "test") if config.data.splits[name]]
    opened = {name: sources.open_split(config.data, name) for name in names}
    if config.data.skip_corrupt or (config.data.verify and not verified):
        opened = {name: verify(one, skip_corrupt=config.data.skip_corrupt) for name, one in opened.items()}
    log.info("%d classes; %s images.", len(opened["train"].classes), ", ".join(f"{n} {len(s):,}" for n, s in opened.items()))
    return opened.pop("train"), opened


def train_batches(
    config: ConfigDict, source: sources.Source, start_step: int, labels: np.ndarray | None = None
) -> Iterator[dict]:
    """This host's share of the training batches from a step on; without images, if the labels of all examples are given."""
    shard = (jax.process_index(), jax.process_count())
    epochs, views = config.epochs, config.data.views
    return batches.train_batches(
        source, epochs=epochs, views=views, labels=labels, start_step=start_step, shard=shard, **_loading(config)
    )


def fixed_views(config: ConfigDict, source: sources.Source) -> Iterator[dict]:
    """All that the epochs show of a source whose images have fixed views."""
    return batches.fixed_views(source, views=max(1, config.data.views), **_loading(config))


def _loading(config):
    names = ("min_crop_area", "flip", "randaugment_ops", "randaugment_magnitude")
    return {
        **{"batch_size": config.batch_size, "seed": config.seed, "workers": config.data.workers},
        **{"resize": config.data.resize, "size": config.data.image_size},
        **{name: config.augment[name] for name in names},
    }


def eval_batches(config: ConfigDict, source: sources.Source) -> Iterator[dict]:
    """This host's share of an evaluation split."""
    data, shard = config.data, (jax.process_index(), jax.process_count())
    return batches.eval_batches(
        source, batch_size=config.batch_size, resize=data.resize, size=data.image_size, workers=data.workers, shard=shard
    )


def augmentation(config: ConfigDict, source: sources.Source) -> Callable:
    """What happens to a training batch on the device, `(batch, rng) -> batch`."""
    fields = config.augment
    return functools.partial(
        augment,
        num_classes=len(source.classes),
        erasing=fields.erasing,
        mixup=fields.mixup,
        cutmix=fields.cutmix,
        smoothing=fields.label_smoothing,
    )


def examples(config: ConfigDict) -> int:
    """What a batch counts for, in `UNIT`."""
    return config.batch_size


def summary(scores: dict[str, float]) -> dict[str, float]:
    """The scores of a split, and what follows from them."""
    return scores
