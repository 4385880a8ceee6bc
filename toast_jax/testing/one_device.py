"""Run a function as a step on one device does, without `pmap`."""

from collections.abc import Callable
from typing import Any

import jax

from toast_jax.devices import parallel


def on_one_device(function: Callable, *args: Any) -> Any:
    """Compile and run a function with the axis of devices, of size one, that a step has."""
    mapped = jax.vmap(function, in_axes=None, axis_name=parallel.AXIS, axis_size=1)
    return jax.tree.map(lambda a: a[0], jax.jit(mapped)(*args))
