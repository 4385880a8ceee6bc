"""Tuned networks that were not trained: every parameter is random, so that each one shows in the outputs."""

import dataclasses
import functools

import jax
import numpy as np

from configs import alpaca
from tests.conftest import CLASSES, tiny_config
from toast_jax import trees
from toast_jax.model import steered
from toast_jax.train.saved_run import SavedRun


def tuned(method, backbone="vit_ti8", **backbone_fields):
    """A run on images, with a config of its own; its size is tiny unless `backbone_fields` has another."""
    run = _tuned(method, backbone, tuple(backbone_fields.items()))
    return dataclasses.replace(run, config=run.config.copy_and_resolve_references())


@functools.cache
def _tuned(method, backbone, backbone_fields):
    config = tiny_config("data/birds", method, backbone)
    config.backbone.update(dict(backbone_fields))
    config.data.normalize = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    return of_config(config, CLASSES)


@functools.cache
def text_run(method, size="stories260k", vocabulary=0):
    config = alpaca.get_config(f"method={method},backbone=stories260k")
    config.backbone.update({"weights": "random", "size": size, "vocabulary": vocabulary})
    return of_config(config, ())


def of_config(config, classes):
    model, row = steered.build(config, len(classes))
    shapes = trees.flat(jax.eval_shape(lambda: steered.init(model, row, jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = {path: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32) for path, leaf in shapes.items()}
    params |= {path: 1 + leaf for path, leaf in params.items() if path.endswith(("/scale", "/gamma"))}
    return SavedRun(config, tuple(classes), 1, model, row, trees.nested(params), "runs/birds")


def pixels(run, count=3):
    side = run.config.data.image_size
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def logits(run, inputs):
    return np.asarray(jax.jit(lambda params, inputs: steered.apply(run.model, run.method, params, inputs))(run.params, inputs))


RESULT = {
    "val": {"accuracy": 0.9, "loss": 0.25, "count": 6},
    "test": {"accuracy": 0.875, "loss": 0.5, "count": 1200},
    "seed": 42,
    "steps": 1200,
    "tuned_parameters": {"all": 99, "without_head": 48},
    "versions": {"toast_jax": "0.1.0", "jax": "0.10.2"},
}
