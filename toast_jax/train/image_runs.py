"""The part of a run that is specific to images: data sources, batches and augmentation.

`train.text_runs` has the same functions for text; the step and the loop work with either.
"""

import functools
import logging
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.images import batches, few_shot, image_files, sources
from toast_jax.data.images.labels import held_out
from toast_jax.data.images.verify import Subset, verify_splits
from toast_jax.data.loader import Batch
from toast_jax.devices.protocol import Devices
from toast_jax.model.backbones.normalize import statistics_of
from toast_jax.train import evaluation
from toast_jax.train.augment import augment
from toast_jax.train.evaluation import Evaluation

log = logging.getLogger(__name__)

UNIT = "images"  # of counts and speed


def open_splits(config: ConfigDict, run: str | Path | None = None) -> dict[str, sources.Source]:
    """Open all splits of a config, decoding no image; the folder of a `run` that has begun says which images it holds out.

    Few shots are drawn, unless corrupt images are to be left out first, so that a class keeps its number of images.
    """
    opened = sources.open_splits(config.data, seed=config.seed, run=run)
    return opened if config.data.skip_corrupt else _with_shots(config, opened)


def _with_shots(config, opened) -> dict[str, sources.Source]:
    return {**opened, "train": few_shot.draw(opened["train"], config.data.get("shots", 0), config.seed)}


def open_sources(
    config: ConfigDict, *, verified: bool, run: str | Path | None = None, opened: Mapping[str, sources.Source] | None = None
) -> tuple[sources.Source, dict[str, sources.Source]]:
    """Open the training source and, by name, the evaluation sources of a config.

    If the config asks for it, every image is decoded once as a check, unless the sources are `verified` already. Splits that
    `open_splits` has `opened` are not opened again; `run` is as there.
    """
    opened = dict(opened or open_splits(config, run))
    if config.data.skip_corrupt:
        opened = _with_shots(config, verify_splits(opened, skip_corrupt=True))
    elif config.data.verify and not verified:
        opened = verify_splits(opened, skip_corrupt=False)
    log.info("%d classes; %s images.", len(opened["train"].classes), ", ".join(f"{n} {len(s):,}" for n, s in opened.items()))
    return opened.pop("train"), opened


def redraw(
    config: ConfigDict, train: sources.Source, evals: dict[str, sources.Source], run: str | Path | None = None
) -> tuple[sources.Source, dict[str, sources.Source]]:
    """Return the sources of a config that differs from that of opened ones in its seed; `run` as in `open_sources`."""
    if config.data.get("held_out", 0):
        return open_sources(config, verified=True, run=run)
    if config.data.get("shots") and isinstance(train, Subset):  # from the images that are open already
        train = few_shot.draw(train.source, config.data.shots, config.seed)
    return train, evals


def records(config: ConfigDict, train: sources.Source, evals: dict[str, sources.Source]) -> dict[str, dict]:
    """Return the JSON files, by path in the folder of a run, that say which images it holds out."""
    if not config.data.get("held_out", 0):
        return {}
    root = image_files.image_root(config.data)
    parts = {"train": train, held_out.VAL: evals[held_out.VAL]}
    return {f"{held_out.FOLDER}/{name}.json": held_out.record(_as_drawn(source), root) for name, source in parts.items()}


def _as_drawn(source):
    """Return the files before any were left out, so that a run that resumes leaves the same ones out of the same files."""
    return _as_drawn(source.source) if isinstance(source, Subset) else source


def train_batches(
    config: ConfigDict, source: sources.Source, start_step: int, labels: np.ndarray | None = None
) -> Generator[Batch]:
    """Return this host's share of the training batches from a step on; with `labels` of all examples, without images."""
    shard = (jax.process_index(), jax.process_count())
    epochs, views = config.epochs, config.data.views
    return batches.train_batches(
        source, epochs=epochs, views=views, labels=labels, start_step=start_step, shard=shard, **_loading(config)
    )


def num_views(config: ConfigDict) -> int:
    """Return how many fixed views of an image a run sees: not more than it has epochs."""
    return min(max(1, config.data.views), config.epochs)


def fixed_views(config: ConfigDict, source: sources.Source) -> Generator[Batch]:
    """Return batches of every fixed view of every image, in order."""
    return batches.fixed_views(source, views=num_views(config), **_loading(config))


def _loading(config):
    names = ("min_crop_area", "flip", "randaugment_ops", "randaugment_magnitude")
    return {
        **{"batch_size": config.batch_size, "seed": config.seed, "workers": config.data.workers},
        **{"resize": config.data.resize, "size": config.data.image_size},
        **{name: config.augment[name] for name in names},
    }


def eval_batches(config: ConfigDict, source: sources.Source) -> Generator[Batch]:
    """Return this host's share of the batches of an evaluation split."""
    data, shard = config.data, (jax.process_index(), jax.process_count())
    return batches.eval_batches(
        source, batch_size=config.batch_size, resize=data.resize, size=data.image_size, workers=data.workers, shard=shard
    )


def evaluate(
    config: ConfigDict, source: sources.Source, step: Callable, tuned: dict, frozen: dict, devices: Devices
) -> Evaluation:
    """Evaluate a network on a split with a mapped `evaluation.eval_step`."""
    return evaluation.evaluate(step, tuned, frozen, eval_batches(config, source), devices)


def timing(config: ConfigDict, steps_per_epoch: int) -> tuple[int, float, float]:
    """Return the steps of the unit that a run counts in, an epoch, and its length and warm-up in this unit."""
    return steps_per_epoch, config.epochs, config.warmup_epochs


def augmentation(config: ConfigDict, source: sources.Source) -> Callable:
    """Return the augmentation on the device, `(batch, rng) -> batch`."""
    fields, distills = config.augment, config.stage == "pretune" and config.distillation_weight > 0
    return functools.partial(
        augment,
        num_classes=len(source.classes),
        erasing=fields.erasing,
        mixup=fields.mixup,
        cutmix=fields.cutmix,
        smoothing=fields.label_smoothing,
        degradation=fields.degradation if distills else 0.0,
        statistics=statistics_of(config.data),
    )


def examples(config: ConfigDict) -> int:
    """Return how many images a batch has."""
    return config.batch_size


def summary(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores of a split; nothing is derived from them."""
    return scores
