"""Residual branches: dropped at random, per example (stochastic depth), and added to blocks by methods."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Depth, Keys


def drop_path(x: Float[Array, "B ..."], rng: Keys | None, rate: Float[Array, ""] | float) -> Float[Array, "B ..."]:
    """Drop residual branches with probability `rate` and rescale the others (arXiv 1603.09382).

    Args:
      x: output of the branch.
      rng: None drops nothing.
      rate: probability of dropping.
    """
    if rng is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(rng)
    return x * (kept / (1.0 - rate)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class BlockOutput(nn.Module):
    """Returns the output of a block, plus that of a branch if a method has attached one.

    A branch is an object among the parameters, `branch`: a pytree with the block's layer axis, and a function of the last axis
    (see `additions.adapter.Bottleneck`). The module creates no parameters.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], depth: Depth = (0, 0.0), rng: Keys | None = None) -> Float[Array, "B ..."]:
        """Add the branch; as one of the block, it is dropped at the rate in `depth`, with keys of the block from `rng`."""
        branch: Callable | None = self.get_variable("params", "branch")
        if branch is None:
            return x
        index, rate = depth
        keys = None if rng is None else jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, index), 2))(rng)
        return x + drop_path(branch(x), keys, rate)
