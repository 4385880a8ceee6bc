"""Stochastic depth: residual branches dropped at random, per example."""

import jax
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Keys


def drop_path(x: Float[Array, "B ..."], rng: Keys | None, rate: Float[Array, ""] | float) -> Float[Array, "B ..."]:
    """Drop residual branches with probability `rate` and rescales the others (arXiv 1603.09382).

    Args:
      x: output of the branch.
      rng: None drops nothing.
      rate: probability of dropping.
    """
    if rng is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(rng)
    return x * (kept / (1.0 - rate)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
