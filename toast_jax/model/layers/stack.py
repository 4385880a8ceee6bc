"""Looks through a stack of layers, scanned or layer by layer, from its first layer or from a later one."""

import dataclasses
import functools
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from toast_jax.model.layers.arrays import Array


@no_type_check  # maps over trees put other things than arrays in the field
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Unstacked:
    """Holds one array per layer in place of a stacked parameter.

    XLA's CPU backend copies a layer out of a stack before it multiplies by it.
    """

    layers: tuple[Shaped[Array, "*shape"], ...]

    @classmethod
    def of(cls, leaf: Shaped[jax.Array, "*shape"]) -> "Unstacked":
        """Split a parameter along its leading axis, that of layers, and delete it."""
        layers = tuple(leaf)
        leaf.delete()
        return cls(layers)


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
    params = stack.variables.get("params", {})  # empty while they are created
    if any(_is_unstacked(leaf) for leaf in jax.tree.leaves(params, is_leaf=_is_unstacked)):
        return _one_by_one(params, layer, first, x, per_layer, shared)
    if not first:
        return stack(x, *per_layer, *shared)
    # Each step reads its layer from the whole stack, as in `nn.scan`; a slice of the stack would be copied in every call.

    def step(x, arguments):
        index, arguments = arguments
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params)
        return layer.apply({"params": own}, x, *arguments, *shared)

    return jax.lax.scan(step, x, (jnp.arange(first, len(jax.tree.leaves(params)[0])), per_layer), unroll=unroll)


def _one_by_one(params, layer, first, x, per_layer, shared):
    depth = next(len(leaf.layers) for leaf in jax.tree.leaves(params, is_leaf=_is_unstacked) if _is_unstacked(leaf))
    seen = []
    for index in range(first, depth):
        own = jax.tree.map(functools.partial(_of_layer, index), params, is_leaf=_is_unstacked)
        arguments = jax.tree.map(functools.partial(_of_layer, index - first), per_layer)
        x, intermediates = layer.apply({"params": own}, x, *arguments, *shared)
        seen.append(intermediates)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)


def _of_layer(index, leaf):
    return leaf.layers[index] if _is_unstacked(leaf) else leaf[index]


def _is_unstacked(leaf):
    return isinstance(leaf, Unstacked)
