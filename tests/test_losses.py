"""Losses: cross-entropy against NumPy, and metrics that add up to what is minimised."""

import functools

import jax
import numpy as np
import pytest
from conftest import tiny_config

from toast_jax import losses, model

CLASSES, SIDE, WEIGHT = 3, 16, 0.3


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, SIDE, SIDE, 3), dtype=np.uint8),
        "label": np.arange(8, dtype=np.int32) % CLASSES,
    }


@functools.cache
def outputs():
    """Of a network with random parameters: the two losses with their metrics, its logits, its hidden tokens, and `back`."""

    @jax.jit
    def run(params):
        tuned = losses.tune(network, method)(params, batch(), None)
        pretuned = losses.pretune(network, method, WEIGHT)(params, batch(), None)
        logits, out = model.apply(network, method, params, batch()["image"], call="explain")
        return tuned, pretuned, logits, out["look"]["hidden"]

    network, method = model.build(tiny_config("", "toast"), CLASSES)
    shapes = jax.eval_shape(lambda: model.init(network, method, jax.random.key(0), SIDE))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return *jax.tree.map(np.asarray, run(params)), params["top_down"]["back"]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_of_every_example(scale):
    rng = np.random.default_rng(0)
    logits, labels = (scale * rng.normal(size=(6, 5))).astype(np.float32), rng.integers(0, 5, 6)
    ours = losses.cross_entropy(logits, labels)
    assert ours.shape == (6,)
    np.testing.assert_allclose(ours, cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)


def test_tuning_minimises_the_mean_cross_entropy_of_the_final_look():
    (value, metrics), _, logits, _, _ = outputs()
    labels = batch()["label"]
    np.testing.assert_allclose(value, cross_entropy(logits, labels).mean(), rtol=1e-5)
    assert set(metrics) == {"accuracy"}
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == labels).mean())


def test_pretuning_adds_the_weighted_variational_loss_of_the_final_look():
    (task, _), (value, metrics), _, hidden, back = outputs()
    assert set(metrics) == {"accuracy", "task_loss", "variational_loss"}
    np.testing.assert_allclose(metrics["task_loss"], task, rtol=1e-5)
    np.testing.assert_allclose(value, metrics["task_loss"] + WEIGHT * metrics["variational_loss"], rtol=1e-6)
    rebuilt = np.stack([after @ matrix for after, matrix in zip(hidden[1:], back, strict=True)])
    expected = ((rebuilt - hidden[:-1]) ** 2).mean(axis=(1, 2, 3)).sum()
    assert expected > 1e-2
    np.testing.assert_allclose(metrics["variational_loss"], expected, rtol=1e-4)
