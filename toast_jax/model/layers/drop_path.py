"""Stochastic depth: whole residual branches left out at random, per example."""

import jax


def drop_path(x: jax.Array, rng: jax.Array | None, rate: jax.Array | float) -> jax.Array:
    """Drops whole residual branches `x [B, ...]` with probability `rate` and rescales the rest (arXiv 1603.09382).

    `rng [B]` holds one key per example, so that the result does not depend on how a batch is split over devices.
    `None` keeps every branch.
    """
    if rng is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate))(rng)
    return x * (kept / (1.0 - rate)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
