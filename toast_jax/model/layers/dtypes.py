"""Compute dtypes of networks."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from toast_jax.errors import InputError, choose
from toast_jax.model.layers.arrays import Array

FIELD = "config.backbone.dtype"
# Not float16, which needs loss scaling, and not float64, which accelerators lack.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def named(name: str) -> DTypeLike:
    """Return the dtype that a config names.

    Raises:
      InputError: an unknown name.
    """
    return choose(FIELD, name, DTYPES)


def check(name: str) -> None:
    """Check that the devices of this process can multiply matrices of the dtype that a config names.

    Raises:
      InputError: they cannot, or the name is unknown.
    """
    dtype = named(name)
    if dtype == jnp.float32:
        return
    try:
        jax.block_until_ready(_multiplied(jnp.ones((8, 8), dtype)))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{FIELD} is {name!r}, which {jax.devices()[0].device_kind} cannot compute in ({reason}); set it to float32."
        ) from error


def to_bits(x: Float[jax.Array, "*shape"]) -> Shaped[jax.Array, "*shape"]:
    """View 16-bit floats as integers, to slice and to write them; XLA's CPU backend converts all of a float array for that."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def from_bits(bits: Shaped[Array, "*shape"], dtype: DTypeLike) -> Float[Array, "*shape"]:
    """Undo `to_bits`."""
    return jax.lax.bitcast_convert_type(bits, dtype) if bits.dtype != dtype else bits


@jax.jit
def _multiplied(x):
    return x @ x
