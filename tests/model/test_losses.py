"""Scores: cross-entropy against NumPy, and parts that add up to what is minimised."""

import functools

import jax
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax.model import losses, steered

CLASSES, SIDE, TASK, VARIATIONAL = 3, 16, 0.7, 0.3


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
    """Of a network with random parameters: scores of both stages, its logits, its hidden tokens, and `back`."""

    @jax.jit
    def run(params):
        tuned = losses.tune(network, method)(params, batch())
        both = losses.pretune(network, method, task_weight=TASK, variational_weight=VARIATIONAL)(params, batch())
        alone = losses.pretune(network, method, task_weight=0.0, variational_weight=VARIATIONAL)(params, batch())
        logits, out = steered.apply(network, method, params, batch()["image"], call="explain")
        return tuned, both, alone, logits, out["look"]["hidden"]

    network, method = steered.build(tiny_config("", "toast"), CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return *jax.tree.map(np.asarray, run(params)), params["top_down"]["back"]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_of_every_example(scale):
    rng = np.random.default_rng(0)
    logits, labels = (scale * rng.normal(size=(6, 5))).astype(np.float32), rng.integers(0, 5, 6)
    ours = losses.cross_entropy(logits, {"label": labels})
    assert ours.shape == (6,)
    np.testing.assert_allclose(ours, cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)


def test_cross_entropy_with_targets_that_are_no_single_class():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(6, 5)).astype(np.float32), rng.dirichlet(np.ones(5), 6).astype(np.float32)
    expected = sum(target[:, c] * cross_entropy(logits, np.full(6, c)) for c in range(5))
    ours = losses.cross_entropy(logits, {"target": target, "label": np.zeros(6, np.int32)})
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_accuracy_asks_for_the_largest_target():
    logits, target = np.eye(3, dtype=np.float32)[[0, 1, 2]], np.eye(3, dtype=np.float32)[[0, 2, 2]]
    hits = losses._hits(logits, {"target": target, "label": np.array([1, 1, 1])})
    np.testing.assert_array_equal(hits, [1, 0, 1])
    np.testing.assert_array_equal(losses._hits(logits, {"label": np.array([1, 1, 1])}), [0, 1, 0])


def test_tuning_minimises_the_cross_entropy_of_the_final_look():
    scores, _, _, logits, _, _ = outputs()
    labels = batch()["label"]
    assert set(scores) == {"loss", "accuracy"}
    np.testing.assert_allclose(scores["loss"], cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(scores["accuracy"], logits.argmax(-1) == labels)


def test_pretuning_adds_the_weighted_variational_loss_of_the_final_look():
    tuned, scores, alone, _, hidden, back = outputs()
    assert set(scores) == {"loss", "accuracy", "task_loss", "variational_loss"}
    np.testing.assert_allclose(scores["task_loss"], tuned["loss"], rtol=1e-5)
    np.testing.assert_array_equal(scores["accuracy"], tuned["accuracy"])
    np.testing.assert_allclose(scores["loss"], TASK * scores["task_loss"] + VARIATIONAL * scores["variational_loss"], rtol=1e-6)
    rebuilt = np.stack([after @ matrix for after, matrix in zip(hidden[1:], back, strict=True)])
    expected = ((rebuilt - hidden[:-1]) ** 2).mean(axis=(2, 3)).sum(axis=0)
    assert expected.min() > 1e-2 and np.ptp(expected) > 1e-3
    np.testing.assert_allclose(scores["variational_loss"], expected, rtol=1e-4)
    # Without labels that is all there is.
    assert set(alone) == {"loss", "variational_loss"}
    np.testing.assert_allclose(alone["loss"], VARIATIONAL * expected, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["vit_ti8", "convnext_t"])
@pytest.mark.parametrize("method", ["lora", "toast_lite"])
def test_only_a_network_with_a_top_down_module_has_a_variational_loss(method, backbone):
    config = tiny_config("", method, backbone)
    network, row = steered.build(config, CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    scores = losses.pretune(network, row, task_weight=TASK, variational_weight=VARIATIONAL)
    image = np.zeros((8, config.data.image_size, config.data.image_size, 3), np.uint8)
    names = set(jax.eval_shape(scores, shapes, {**batch(), "image": image}))
    assert names == {"loss", "accuracy", "task_loss"} | ({"variational_loss"} if method == "toast_lite" else set())
