"""Kernels packed for generation on CPUs, which read all of them for every token.

XLA's CPU backend copies a layer out of a stack before multiplying by it, converts a whole `bfloat16` stack to float32 to slice
it, and multiplies a single row on one core. A transposed matrix, stored as integers if it has 16 bits, is read in one fused
loop over all cores instead. `generation.packed` converts the parameters.

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

_FEW = 8  # up to this many rows are multiplied one by one; more take less time as a product of matrices
_FUSED = 2048  # XLA fuses slice and conversion of a matrix into its product with a vector if the vector has less than 16 KiB


@no_type_check  # maps over trees put other things than arrays in the fields
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Transposed:
    """Multiplies like the matrix `[D, F]` that was passed to `of`.

    Attributes:
      bits: `dtypes.to_bits` of the transposed matrix, reshaped to `[D, F]` because Linen checks the shape.
      dtype: of the matrix.
    """

    bits: Shaped[Array, "*layers D F"]
    dtype: DTypeLike = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, kernel: Float[jax.Array, "*layers D F"], dtype: DTypeLike) -> "Transposed":
        """Transpose a matrix, or each of a stack, and cast it."""
        return cls(dtypes.to_bits(jnp.swapaxes(kernel.astype(dtype), -1, -2)).reshape(kernel.shape), dtype)

    def astype(self, dtype: DTypeLike) -> "Transposed":
        """Return itself; the matrix was packed in the compute dtype.

        Raises:
          TypeError: `dtype` is another.
        """
        if dtype != self.dtype:
            raise TypeError(f"a matrix stored for products in {self.dtype} cannot be cast to {dtype}")
        return self

    def __rmatmul__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        return self.product(x).astype(self.dtype)

    def product(self, x: Float[Array, "*rows D"]) -> Float32[Array, "*rows F"]:
        """Multiply rows by the matrix and accumulate in float32."""
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
    """Looks up rows like the array `[V, D]` that was passed to `of`; `T` multiplies like its transpose."""

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
    """Multiply rows by a kernel, packed or not, and accumulate in float32."""
    return kernel.product(x) if isinstance(kernel, Transposed) else jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _fused(row, kernel):
    """Multiply one row by a transposed matrix, in parts of its width that XLA fuses."""
    edges = np.linspace(0, row.shape[1], -(-row.shape[1] // _FUSED) + 1).astype(int)
    parts = ((row[:, a:b], kernel[:, a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True))
    return sum(jnp.matmul(x, part.T, preferred_element_type=jnp.float32) for x, part in parts)
