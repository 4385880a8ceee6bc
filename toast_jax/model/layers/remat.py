"""Rematerialization: what is saved for the backward pass and what is recomputed."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array

_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names("product")
)


def product(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Mark an expensive non-matmul result (a depthwise convolution) to be saved for the backward pass."""
    return checkpoint_name(x, "product")


def remat(
    block: Callable, *, everything: bool, scanned: bool, unrolled: bool = False, static_argnums: tuple[int, ...] = ()
) -> Callable:
    """Wrap a block so that it saves little for its backward pass.

    Products with kernels are saved. Norms, activations and attention weights are recomputed, which takes less time than to
    write and read them; this halves the memory of a step and makes it faster on a CPU.

    Args:
      block: a module.
      everything: whether to save nothing inside the block and recompute all of it.
      scanned: whether the block is part of a scan, where the compiler cannot merge both computations anyway.
      unrolled: whether that scan is. The compiler may then merge both, which is faster, unless `everything` asks for memory; on
        CPUs XLA merges them all the same.
      static_argnums: indices of arguments that are not arrays.
    """
    policy = None if everything else _PRODUCTS
    return nn.remat(block, policy=policy, prevent_cse=not scanned or (everything and unrolled), static_argnums=static_argnums)
