"""Compute dtypes of networks."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from toast_jax.errors import InputError, choose

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


@jax.jit
def _multiplied(x):
    return x @ x
