"""The depthwise convolution: what a CPU computes is what XLA's convolution computes, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax.model.backbones.convnext import depthwise


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("size", [3, 7])
def test_sum_of_shifts_is_the_convolution_in_value_and_gradients(size):
    arguments = draw(2, 5, 4, 3), draw(size, size, 1, 3, seed=1)  # smaller than the kernel, and no square

    def value_and_grad(function):
        loss = lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)

    ours, theirs = value_and_grad(depthwise.sum_of_shifts), value_and_grad(depthwise.convolution)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_bfloat16_is_summed_in_float32():
    x, kernel = draw(1, 4, 4, 2, dtype=jnp.bfloat16), draw(7, 7, 1, 2, seed=1, dtype=jnp.bfloat16)
    ours = depthwise.sum_of_shifts(x, kernel)
    exact = depthwise.convolution(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(("platform", "convolves"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_accelerators_convolve(platform, convolves):
    module, x = depthwise.DepthwiseConv(), draw(1, 8, 8, 2)
    params = module.init(jax.random.key(0), x)
    assert jax.tree.map(np.shape, params["params"]) == {"kernel": (7, 7, 1, 2), "bias": (2,)}
    lowered = jax.jit(module.apply).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in lowered) == convolves
