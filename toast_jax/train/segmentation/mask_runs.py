"""The part of a run that is specific to semantic segmentation: data sources, batches, scores and evaluation.

`train.image_runs` has the same functions for classification; the step and the loop work with either.
"""

import functools
import logging
from collections.abc import Callable, Generator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.data.images.segmentation import batches, masks, sets
from toast_jax.data.images.segmentation.labels import IGNORED
from toast_jax.data.images.segmentation.masks import MaskedSource
from toast_jax.data.images.segmentation.views import EvalView, TrainView
from toast_jax.data.loader import Batch
from toast_jax.devices import parallel
from toast_jax.devices.protocol import Devices
from toast_jax.errors import InputError
from toast_jax.model import families
from toast_jax.model.layers.arrays import Keys
from toast_jax.model.methods import Method
from toast_jax.model.segmentation import losses, segmenter
from toast_jax.model.segmentation.counting import count_pixels
from toast_jax.model.segmentation.segmenter import Segmenter, segment
from toast_jax.train import image_runs
from toast_jax.train.evaluation import Evaluation
from toast_jax.train.segmentation import metrics

log = logging.getLogger(__name__)

UNIT = "images"  # of counts and speed
_CANVAS = 512  # pixels; see `EvalView.canvas`


def open_splits(config: ConfigDict, run: object = None) -> dict[str, MaskedSource]:
    """Open all splits of a config, decoding no image."""
    return {name: sets.open_split(config.data, name) for name in ("train", "val", "test") if config.data.splits[name]}


def open_sources(
    config: ConfigDict, *, verified: bool, run: object = None, opened: Mapping[str, MaskedSource] | None = None
) -> tuple[MaskedSource, dict[str, MaskedSource]]:
    """Open the training source and, by name, the evaluation sources; decode all of them once as a check unless `verified`.

    Splits that `open_splits` has `opened` are not opened again.
    """
    data, opened = config.data, dict(opened or open_splits(config))
    if data.verify and not verified:
        least = tuple(side / config.augment.factors[1] for side in data.crop)
        faults = []
        for name, source in opened.items():
            try:
                if name == "train":
                    masks.check_classes(source, masks.verify(source, least=least, box=tuple(data.scale)))
                else:
                    masks.verify(source)
            except InputError as error:
                faults.append(str(error))
        if faults:  # of all splits at once
            raise InputError(" ".join(faults))
    log.info("%d classes; %s images.", len(opened["train"].classes), ", ".join(f"{n} {len(s):,}" for n, s in opened.items()))
    train = opened.pop("train")
    trained = {train.name(i) for i in range(len(train))}
    for name, source in opened.items():
        if shared := sum(source.name(i) in trained for i in range(len(source))):
            log.warning("%d of the %d images of %s are also training images.", shared, len(source), name)
    return train, opened


def redraw(config: ConfigDict, train: MaskedSource, evals: dict[str, MaskedSource], run: object = None):
    """Return the sources as they are: they do not depend on the seed."""
    return train, evals


def records(config: ConfigDict, train: MaskedSource, evals: dict[str, MaskedSource]) -> dict[str, dict]:
    """Return no files: lists on disk define the splits."""
    return {}


def train_batches(config: ConfigDict, source: MaskedSource, start_step: int) -> Generator[Batch]:
    """Return this host's share of the training batches from a step on."""
    fields = config.augment
    view = TrainView(tuple(config.data.scale), tuple(fields.factors), tuple(config.data.crop), fields.flip, fields.distortion)
    return batches.train_batches(
        source,
        view=view,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
    )


def eval_batches(config: ConfigDict, source: MaskedSource) -> Generator[Batch]:
    """Return this host's share of the batches of an evaluation split, an image for each device."""
    view, shard = eval_view(config, len(source.classes)), (jax.process_index(), jax.process_count())
    return batches.eval_batches(source, view=view, batch_size=jax.device_count(), workers=config.data.workers, shard=shard)


def eval_view(config: ConfigDict, num_classes: int) -> EvalView:
    """Return the view of an evaluation."""
    family, data = families.of_config(config), config.data
    return EvalView(
        tuple(data.scale),
        tuple(data.window),
        tuple(data.stride),
        multiple=family.image_multiple(config.backbone),
        cell=segmenter.cell(segmenter.build(config, num_classes)[0]),
        canvas=min(_CANVAS, max(data.scale)),
    )


def augmentation(config: ConfigDict, source: MaskedSource) -> Callable:
    """Return the augmentation on the device, `(batch, rng) -> batch`: the scale of the loss by `segmentation.average`."""
    return {"all": _of_all, "counted": _of_counted}[config.segmentation.average]


def _of_all(batch: dict, rng: Keys) -> dict:
    return batch


def _of_counted(batch: dict, rng: Keys) -> dict:
    """Scale losses that are means over all pixels to means over the counted pixels of the global batch."""
    counted = jax.lax.pmean((batch["label"] != IGNORED).mean(), parallel.AXIS)
    return {**batch, "scale": jnp.full(len(batch["label"]), 1 / jnp.maximum(counted, 1e-6))}


def scores(config: ConfigDict, network, predictions: bool = False) -> Callable:
    """Return the scores of training of a `setup.Network`, see `segmentation.losses`; `predictions` are of classification."""
    return losses.tune(network.model, network.method, config.segmentation.auxiliary_weight)


def eval_step(config: ConfigDict, network, devices: Devices, predictions: bool = False) -> Callable:
    """Map the evaluation step over all devices: `(tuned, frozen, batch) -> sums`; arguments as of `scores`.

    The sums are `confusion [C, C]` and `loss`, the cross-entropy, of all counted pixels.
    """
    step = functools.partial(_eval_step, model=network.model, method=network.method)
    return devices.replicate(step, num_replicated=2)


def of_windows(model: Segmenter, method: Method, params: dict, batch: Batch) -> jax.Array:
    """Compute the logits of the windows of images, see `EvalView`, side by side: `[B, rows * h, columns * w, C]`."""
    count, rows, columns, *window = batch["image"].shape
    size = jnp.repeat(batch["size"], rows * columns, axis=0)
    logits = segment(model, method, params, batch["image"].reshape(-1, *window), size=size)
    height, width, classes = logits.shape[1:]
    side_by_side = logits.reshape(count, rows, columns, height, width, classes).swapaxes(2, 3)
    return side_by_side.reshape(count, rows * height, columns * width, classes)


def _eval_step(tuned: dict, frozen: dict, batch: dict, *, model: Segmenter, method: Method) -> dict:
    logits = of_windows(model, method, trees.merge(tuned, frozen), batch)
    arrays = (logits, batch["rows"], batch["columns"], batch["label"])
    confusion, loss = jax.lax.map(lambda image: count_pixels(*image), arrays)
    return jax.lax.psum({"confusion": confusion.sum(axis=0), "loss": loss.sum()}, parallel.AXIS)


def evaluate(
    config: ConfigDict, source: MaskedSource, step: Callable, tuned: dict, frozen: dict, devices: Devices
) -> Evaluation:
    """Evaluate a network on a split with a mapped `eval_step`.

    Returns:
      `metrics.of_split`, and `loss` in nats per counted pixel.
    """
    sums = jax.device_get([step(tuned, frozen, batch) for batch in devices.sharded(eval_batches(config, source))])
    confusion = np.asarray([batch["confusion"] for batch in sums]).sum(axis=0, dtype=np.int64)
    loss = sum(float(batch["loss"]) for batch in sums) / max(1, confusion.sum())
    return Evaluation({**metrics.of_split(confusion, source.classes), "loss": loss, "count": len(source)}, None)


def timing(config: ConfigDict, steps_per_epoch: int) -> tuple[int, int, int]:
    """Return 1, as segmentation counts in steps instead of epochs, and the length and warm-up of a run in steps."""
    return 1, config.steps, config.warmup_steps


examples, summary = image_runs.examples, image_runs.summary
