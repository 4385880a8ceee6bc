"""Heads by hand; `tests/testing/test_segmentation_parity.py` compares UPerNet with mmsegmentation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax import trees
from toast_jax.model.layers.batch_norm import AXIS, BatchNorm, without_statistics
from toast_jax.model.segmentation import heads, losses


def test_bins_of_pooling_overlap_where_the_sides_do_not_divide():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    np.testing.assert_allclose(heads.pool(x, 3)[0, :, 0, 0], [0.5, 2, 3.5])


def test_the_linear_head_reads_the_last_map_place_by_place():
    maps = (jnp.zeros((1, 4, 4, 3)), jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3, 5)).astype(np.float32)))
    head = heads.LinearHead(4)
    params = head.init(jax.random.key(0), maps)["params"]
    logits, auxiliary = head.apply({"params": params}, maps)
    layer = params["classifier"]["linear"]
    np.testing.assert_allclose(logits, maps[1] @ layer["kernel"] + layer["bias"], atol=1e-6)
    assert auxiliary is None


def test_the_loss_is_a_mean_over_all_pixels_and_ignored_ones_add_nothing():
    logits = jnp.array([[[[2.0, 0.0], [0.0, 2.0]]]])
    labels = jnp.array([[[0, losses.IGNORED]]])
    loss, accuracy = losses.of_pixels(logits, labels)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-2.0)) / 2, rtol=1e-6)
    assert accuracy == 1
    loss, accuracy = losses.of_pixels(logits, jnp.full((1, 1, 2), losses.IGNORED))
    assert (loss, accuracy) == (0, 0)


@pytest.mark.parametrize("devices", [2])
def test_statistics_of_maps_are_those_of_the_batch_of_all_devices(devices):
    x = np.random.default_rng(0).normal(3, 2, (8, 2, 3, 4)).astype(np.float32)
    params = BatchNorm(affine=True).init(jax.random.key(0), x, training=False)["params"]
    assert set(params) == {"running_mean", "running_var", "scale", "bias"}

    def normed(params, part):
        return BatchNorm(affine=True).apply({"params": params}, part, training=True)

    def gradient(params, part):
        return jax.lax.pmean(jax.grad(lambda params: jnp.sin(normed(params, part)).mean())(params), AXIS)

    parts = x.reshape(devices, -1, *x.shape[1:])
    values = jax.vmap(functools.partial(normed, params), axis_name=AXIS)(parts).reshape(x.shape)
    np.testing.assert_allclose(values, (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), atol=1e-4)
    whole, split = (jax.vmap(functools.partial(gradient, params), axis_name=AXIS)(rows) for rows in (x[None], parts))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-6), whole, split)
    np.testing.assert_allclose(1 - split["running_var"][0], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-4)


def test_upernet_has_as_many_parameters_as_mmsegmentation():
    maps = (jax.ShapeDtypeStruct((1, 6, 6, 768), jnp.float32),) * 4
    params = jax.eval_shape(lambda maps: heads.UperNet(21).init(jax.random.key(0), maps), maps)["params"]
    auxiliary = without_statistics(params.pop("auxiliary"))
    counts = trees.count(without_statistics(params)), trees.count(auxiliary)
    assert counts == (32_256_000 + 513 * 21, 1_769_984 + 257 * 21)
