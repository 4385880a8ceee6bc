"""The exact GELU."""

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
