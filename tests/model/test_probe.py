"""The attentive probe: its numbers by hand, its running statistics, and the tokens that it reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.model import batch_norm, methods, steered
from toast_jax.model.batch_norm import BatchNorm, without_statistics
from toast_jax.model.probe import AttentionProbe
from toast_jax.train import optim

B, N, D, Q = 6, 5, 8, 2


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def on_devices(function, x, devices):
    """Map over a batch that is split over devices, as `pmap` does, with gradients averaged."""
    return jax.vmap(function, axis_name=batch_norm.AXIS)(x.reshape(devices, -1, *x.shape[1:]))


def test_a_query_averages_its_own_channels():
    probe, tokens = AttentionProbe(D, Q, reduction=2), draw(B, N, D)
    params = {"queries": draw(Q, D, seed=1), "values": draw(D, D // 2, seed=2)}
    statistics = {"norm": {"running_mean": draw(D // 2, seed=3), "running_var": np.ones(D // 2, np.float32)}}
    features = probe.apply({"params": params | statistics}, tokens)
    values, group = tokens @ params["values"], D // 2 // Q
    for q in range(Q):
        weights = np.asarray(jax.nn.softmax(tokens @ params["queries"][q] / D**0.5))
        pooled = np.einsum("bn,bnc->bc", weights, values[..., q * group : (q + 1) * group])
        pooled -= statistics["norm"]["running_mean"][q * group : (q + 1) * group]
        np.testing.assert_allclose(features[:, q * group : (q + 1) * group], pooled, rtol=1e-4, atol=1e-5)


def test_first_values_are_those_of_the_paper():
    params = AttentionProbe(256, 32).init(jax.random.key(0), jnp.zeros((1, 2, 256)))["params"]
    assert trees.shapes(params["norm"]) == {"running_mean": (256,), "running_var": (256,)}
    assert 0.019 < params["queries"].std() < 0.021
    assert np.abs(params["values"]).max() <= 1 / 16 and 0.97 / 16 < np.sqrt(3) * params["values"].std() < 1.03 / 16


@pytest.mark.parametrize("devices", [1, 2])
def test_running_statistics_follow_the_batch_of_all_devices(devices):
    """The optimizer subtracts their gradient, which does not depend on the loss, without decay."""
    x, mean, var = 3 + 2 * draw(B, D), draw(D, seed=1), np.abs(draw(D, seed=2))
    params = {"probe": {"running_mean": mean, "running_var": var}}
    norm = lambda params, x: BatchNorm().apply({"params": params["probe"]}, x, training=True)  # noqa: E731
    gradient = jax.grad(lambda params, x: 7 * jnp.sin(norm(params, x)).mean())
    gradients = jax.tree.map(lambda leaf: leaf.mean(axis=0), on_devices(functools.partial(gradient, params), x, devices))
    mask = jax.tree.map(lambda leaf: True, params)
    options = {"momentum": 0.9, "weight_decay": 0.1, "no_decay": (), "clip": 1e-3}
    tx = optim.optimizer(name="sgd", schedule=lambda step: 0.5, mask=mask, **options)
    updates, _ = tx.update(gradients, tx.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)["probe"]
    np.testing.assert_allclose(after["running_mean"], 0.9 * mean + 0.1 * x.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["running_var"], 0.9 * var + 0.1 * x.var(axis=0, ddof=1), rtol=1e-5, atol=1e-6)
    normed = on_devices(functools.partial(norm, params), x, devices).reshape(B, D)
    np.testing.assert_allclose(normed, (x - x.mean(axis=0)) / x.std(axis=0), rtol=1e-3, atol=1e-5)


def test_a_batch_of_one_image_is_finite():
    params = {"running_mean": np.zeros(D), "running_var": np.ones(D)}
    gradient = jax.grad(lambda params, x: BatchNorm().apply({"params": params}, x, training=True).sum())
    assert all(np.isfinite(leaf).all() for leaf in on_devices(functools.partial(gradient, params), draw(1, D), 1).values())


def test_statistics_are_no_parameters():
    params = {"probe": {"queries": 1, "norm": {"running_mean": 2, "running_var": 3}}, "running": {"mean": 4}}
    assert without_statistics(params) == {"probe": {"queries": 1}, "running": {"mean": 4}}


@pytest.mark.parametrize(
    ("backbone", "tokens", "count"), [("vit_ti8", "patches", 4), ("vit_ti8", "all", 5), ("convnext_t", "patches", 1)]
)
def test_which_tokens_are_read(backbone, tokens, count):
    config = tiny_config("", "ep", backbone)
    config.probe.tokens = tokens
    network, row = steered.build(config, 3)
    image = jnp.zeros((2, config.data.image_size, config.data.image_size, 3))
    params = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    features = jax.eval_shape(functools.partial(steered.apply, network, row, call="frozen_features"), params, image)
    assert features["pooled"].shape == (2, count, 16)


def test_module_files_hold_no_probe():
    params = {"head": {"bias": 0}, "probe": {"queries": 0}, "backbone": {"norm": 0}, "top_down": {"prior": 0, "transform": 0}}
    mask = jax.tree.map(lambda leaf: True, params) | {"backbone": {"norm": False}}
    assert methods.module_paths(mask) == {"top_down/prior", "top_down/transform"}
    assert not methods.METHODS["ep"].pretunes and methods.METHODS["toast_ep"].pretunes
