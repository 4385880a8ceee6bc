"""The exact GELU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from toast_jax.model.layers.gelu import gelu


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_it_is_x_times_the_normal_distribution_function(dtype, tolerance):
    x = jnp.linspace(-12, 12, 2001, dtype=dtype)
    exact = np.asarray(x, np.float64)
    exact = exact * ndtr(exact)
    y = gelu(x)
    assert y.dtype == dtype
    assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= tolerance * np.maximum(np.abs(exact), 1.0))


def test_bfloat16_keeps_the_negative_tail():
    x = jnp.linspace(-8, -1, 2001, dtype=jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    error = [np.abs(np.asarray(y, np.float64) - wide * ndtr(wide)) for y in (gelu(x), jax.nn.gelu(x, approximate=False))]
    assert error[0].max() <= min(error[1].max(), 5e-4)  # half a step of bfloat16 at gelu(-1)
