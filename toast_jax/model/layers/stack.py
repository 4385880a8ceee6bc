"""Looks through a stack of layers, scanned or layer by layer, from its first layer or from a later one."""

import dataclasses
from collections.abc import Callable
from typing import Any, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
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

    def astype(self, dtype: DTypeLike) -> "Unstacked":
        return Unstacked(tuple(layer.astype(dtype) for layer in self.layers))


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Any:
    """Create a parameter of all layers, or return what is stored in its place; Linen would refuse `Unstacked` by its shape."""
    stored: Any = module.get_variable("params", name)
    return stored if has_unstacked(stored) else module.param(name, init, shape)


def whole(leaf: Any) -> Any:
    """Return an array of all layers along a leading axis from one that may be `Unstacked`."""
    return jnp.stack(leaf.layers) if _is_unstacked(leaf) else leaf


def backwards(step: Callable, carry: Any, per_layer: Any) -> tuple[Any, Any]:
    """Apply `step` to every layer like `jax.lax.scan`, from the last to the first one; layers may be `Unstacked`."""
    if not has_unstacked(per_layer):
        return jax.lax.scan(step, carry, per_layer, reverse=True)
    outputs = []
    for index in reversed(range(_depth(per_layer))):
        carry, output = step(carry, _of_layer(index, per_layer))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs[::-1])


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
      the last output, and the intermediates of all applied layers: along a leading axis, or `Unstacked` if the layers are.
    """
    params = stack.variables.get("params", {})  # empty while they are created
    if has_unstacked(params):
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
    seen = []
    for index in range(first, _depth(params)):
        arguments = _of_layer(index - first, per_layer)
        x, intermediates = layer.apply({"params": _of_layer(index, params)}, x, *arguments, *shared)
        seen.append(intermediates)
    return x, jax.tree.map(lambda *leaves: Unstacked(leaves), *seen)


def _of_layer(index, tree):
    """Return the part of a layer of all arrays, stacked or not."""
    of = lambda leaf: leaf.layers[index] if _is_unstacked(leaf) else leaf[index]  # noqa: E731
    return jax.tree.map(of, tree, is_leaf=_is_unstacked)


def _depth(tree):
    return next(len(leaf.layers) for leaf in jax.tree.leaves(tree, is_leaf=_is_unstacked) if _is_unstacked(leaf))


def has_unstacked(tree: Any) -> bool:
    """Return whether a leaf of a tree is `Unstacked`."""
    return any(map(_is_unstacked, jax.tree.leaves(tree, is_leaf=_is_unstacked)))


def _is_unstacked(leaf):
    return isinstance(leaf, Unstacked)
