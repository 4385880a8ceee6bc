"""Kernels in the layout in which a CPU reads them once per token.

XLA's CPU backend copies a layer out of a stack before it multiplies by it, converts all of a `bfloat16` stack to float32 to
slice it, and multiplies a single row on one core. It reads a transposed matrix, as integers if it has 16 bits, in one fused
loop over all cores.

Letters in shapes: D inputs, F outputs, V vocabulary.
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int, Shaped

from toast_jax.model.layers import dtypes
from toast_jax.model.layers.arrays import Array

_FEW = 8  # rows that are multiplied one by one; for more, a product of matrices takes less time
_FUSED = 2048  # XLA fuses the slice and the conversion of a matrix into its product with vectors of less than 16 KiB


@no_type_check  # maps over trees put other things than arrays in the fields
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Transposed:
    """Multiplies like the matrix `[D, F]` that `of` was called with, in `dtype`.

    Attributes:
      bits: the rows of the transposed matrix, see `dtypes.to_bits`, in the shape `[D, F]`, which Linen checks.
      dtype: of the matrix.
    """

    bits: Shaped[Array, "*layers D F"]
    dtype: DTypeLike = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, kernel: Float[jax.Array, "*layers D F"], dtype: DTypeLike) -> "Transposed":
        """Transpose a matrix, or each of a stack, and cast it."""
        return cls(dtypes.to_bits(jnp.swapaxes(kernel.astype(dtype), -1, -2)).reshape(kernel.shape), dtype)

    def astype(self, dtype: DTypeLike) -> "Transposed":
        """Return the matrix itself, as it already has the compute dtype."""
        if dtype != self.dtype:
            raise TypeError(f"a matrix stored for products in {self.dtype} cannot be cast to {dtype}")
        return self

    def __rmatmul__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        return self.product(x).astype(self.dtype)

    def product(self, x: Float[Array, "*rows D"]) -> Float32[Array, "*rows F"]:
        """Multiply with float32 sums."""
        width, features = self.bits.shape
        rows = x.reshape(-1, width)
        # Without the barriers XLA converts the matrix before the loop over tokens, or undoes the order of the operands.
        rows, bits = jax.lax.optimization_barrier((rows, self.bits.reshape(features, width)))
        kernel = dtypes.from_bits(bits, self.dtype)
        if len(rows) > _FEW:
            columns = jax.lax.optimization_barrier(rows.astype(jnp.float32).T)
            y = jax.lax.optimization_barrier(kernel.astype(jnp.float32) @ columns).T
        else:
            y = jnp.concatenate([_fused(rows[i : i + 1], kernel) for i in range(len(rows))])
        return y.reshape(*x.shape[:-1], features)


@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Table:
    """Looks up rows like the array `[V, D]` that `of` was called with, and multiplies like its transpose."""

    bits: Shaped[Array, "V D"]
    dtype: DTypeLike = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, table: Float[jax.Array, "V D"], dtype: DTypeLike) -> "Table":
        return cls(dtypes.to_bits(table.astype(dtype)), dtype)

    def __getitem__(self, index: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
        return dtypes.from_bits(self.bits[index], self.dtype)

    @property
    def T(self) -> Transposed:  # noqa: N802, the name of arrays
        return Transposed(self.bits.reshape(self.bits.shape[::-1]), self.dtype)


def product(x: Float[Array, "*rows D"], kernel: Float[Array, "D F"] | Transposed) -> Float32[Array, "*rows F"]:
    """Multiply with float32 sums, whatever the dtype of both."""
    return kernel.product(x) if isinstance(kernel, Transposed) else jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _fused(row, kernel):
    """Multiply one row, part by part of its width, by a transposed matrix."""
    edges = np.linspace(0, row.shape[1], -(-row.shape[1] // _FUSED) + 1).astype(int)
    parts = ((row[:, a:b], kernel[:, a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True))
    return sum(jnp.matmul(x, part.T, preferred_element_type=jnp.float32) for x, part in parts)
