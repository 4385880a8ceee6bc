"""Stochastic depth: residual branches dropped at random, per example."""

import jax


def drop_path(x: jax.Array, rng: jax.Array | None, rate: jax.Array | float) -> jax.Array:
    """Drops residual branches with probability `rate` and rescales the others (arXiv 1603.09382).

    Args:
      x: `[B, ...]`, output of the branch.
      rng: `[B]` keys, one per example, so that the result does not depend on the number of devices; None drops nothing.
      rate: probability of dropping.
    """
    if rng is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(rng)
    return x * (kept / (1.0 - rate)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
