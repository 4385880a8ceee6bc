"""Batch normalization: its running statistics, over one device or several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax.model.layers.batch_norm import AXIS, BatchNorm, without_statistics
from toast_jax.train import optim

B, D = 6, 8


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def on_devices(function, x, devices):
    """Map over a batch that is split over devices, as `pmap` does, with gradients averaged."""
    return jax.vmap(function, axis_name=AXIS)(x.reshape(devices, -1, *x.shape[1:]))


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
