"""What networks compute in."""

import jax
import jax.numpy as jnp

from toast_jax.errors import InputError, choose

FIELD = "config.backbone.dtype"
# float16 would need its losses scaled, and accelerators have no float64.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def named(name: str) -> jnp.dtype:
    """The dtype of a config; InputError for another one."""
    return choose(FIELD, name, DTYPES)


def check(name: str) -> None:
    """Raises InputError unless the dtype of a config is one that the devices of this process multiply matrices in."""
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
