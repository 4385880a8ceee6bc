"""Looks through a scanned stack of layers, from its first layer or from a later one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array


def look(
    stack: nn.Module,
    layer: nn.Module,
    first: int,
    x: Float[Array, "B N D"],
    per_layer: tuple,
    shared: tuple,
    unroll: bool = False,
) -> tuple[Float[Array, "B N D"], Any]:
    """Apply the layers `first`, `first + 1`, ... of a stack.

    Args:
      stack: the module that `nn.scan` made.
      layer: a single layer without a parent.
      first: index of the first layer to apply.
      x: its input.
      per_layer: arguments after `x`, with one entry for each applied layer along a leading axis, or None.
      shared: further arguments, the same for all layers.
      unroll: whether to compile every layer for itself instead of one for all, as `stack` does with its own field.

    Returns:
      the last output, and the intermediates of all applied layers along a leading axis.
    """
    if not first:
        return stack(x, *per_layer, *shared)
    # Each step reads its layer from the whole stack, as in `nn.scan`; a slice of the stack would be copied in every call.
    params = stack.variables["params"]

    def step(x, arguments):
        index, arguments = arguments
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params)
        return layer.apply({"params": own}, x, *arguments, *shared)

    return jax.lax.scan(step, x, (jnp.arange(first, len(jax.tree.leaves(params)[0])), per_layer), unroll=unroll)
