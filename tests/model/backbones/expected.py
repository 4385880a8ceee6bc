"""What tests of several backbones compare with."""

import jax
import numpy as np


def assert_close(ours, theirs, tolerance=1e-5):
    """All leaves agree relative to the largest number of their array, or to 0.01 where all numbers are smaller."""

    def check(a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-2))

    jax.tree.map(check, ours, theirs)


def layer_norm(x, params):
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]
