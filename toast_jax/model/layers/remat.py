"""What the backward pass finds stored, and what it computes again."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names("product")
)


def product(x: jax.Array) -> jax.Array:
    """Marks what took as long to compute as a product of matrices, and is none."""
    return checkpoint_name(x, "product")


def remat(block: Callable, *, everything: bool, scanned: bool, static_argnums: tuple[int, ...] = ()) -> Callable:
    """A block of a network that stores little for its backward pass.

    Products with kernels are stored. Norms, activations and attention weights take less time to compute again than to write and
    to read back; that halves the memory of a step, and on a CPU makes it faster.

    Args:
      block: a module.
      everything: store nothing inside of the block, and compute it again as a whole.
      scanned: whether it stands in a scan, where the compiler cannot merge the second computation with the first one anyway.
      static_argnums: arguments that are no arrays.
    """
    policy = None if everything else _PRODUCTS
    return nn.remat(block, policy=policy, prevent_cse=not scanned, static_argnums=static_argnums)
