"""Keeps activations split by example where devices share a batch."""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Float

_AXIS = "fsdp"  # of a mesh whose devices split one step, see `devices.fsdp`


def split_by_example(x: Float[jax.Array, "B ..."]) -> Float[jax.Array, "B ..."]:
    """Ask the compiler to split the leading axis of `x` over the devices of a step, if it has several.

    Otherwise the compiler derives the split from that of the weights: over the width, with the whole batch on every device.
    """
    if _AXIS not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(_AXIS))
