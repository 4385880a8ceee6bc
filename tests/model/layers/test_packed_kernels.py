"""Kernels in the layout of generation multiply like the matrices that they were made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax.model.layers.packed_kernels import Table, Transposed, product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [2, 9])
def test_a_transposed_kernel_multiplies_like_its_matrix(dtype, rows):
    """Of a stack, wider than a part that XLA fuses; few rows and many."""
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(2, 2100, 6)), dtype)
    x = jnp.asarray(rng.normal(size=(rows, 1, 2100)), dtype)
    stacked = Transposed.of(kernels, dtype)
    assert stacked.bits.shape == kernels.shape and stacked.bits.nbytes == kernels.nbytes
    _, (rounded, exact) = jax.lax.scan(lambda _, kernel: (None, (x @ kernel, product(x, kernel))), None, stacked)
    expected = np.einsum("bnd,ldf->lbnf", np.asarray(x, np.float32), np.asarray(kernels, np.float32))
    assert rounded.dtype == dtype and exact.dtype == jnp.float32
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(rounded, exact.astype(dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_table_is_read_and_multiplies_like_its_array(dtype):
    array = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), dtype)
    table = Table.of(array, dtype)
    np.testing.assert_array_equal(table[jnp.array([[6, 0]])], array[jnp.array([[6, 0]])])
    np.testing.assert_allclose(product(array[:3], table.T), product(array[:3], array.T), rtol=1e-5, atol=1e-6)


def test_a_stored_kernel_keeps_its_dtype():
    with pytest.raises(TypeError, match="cannot be cast"):
        Transposed.of(jnp.ones((2, 3)), jnp.bfloat16).astype(jnp.float32)
