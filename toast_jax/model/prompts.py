"""Learned prompt tokens: visual prompt tuning (Jia et al., arXiv 2203.12119)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class Prompts(nn.Module):
    """`tokens [L, P, D]`: P prompts for the input of each of L blocks (deep), or L = 1 for the first block alone (shallow).

    Attributes:
      layers: how many blocks get prompts of their own.
      num: prompts per block, P.
      width: D.
      patch: side of a patch in pixels; the range of the initial values depends on it.
      dropout: rate at which entries are dropped, per example.
    """

    layers: int
    num: int
    width: int
    patch: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, rng: jax.Array | None = None) -> jax.Array:
        """Returns `[L, 1, P, D]`, or `[L, B, P, D]` when dropout acts; `rng [B]` holds a key per example or is None."""
        bound = math.sqrt(6.0 / (3 * self.patch**2 + self.width))
        tokens = self.param("tokens", _symmetric_uniform(bound), (self.layers, self.num, self.width))
        if rng is None or not self.dropout:
            return tokens[:, None]
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, tokens.shape), out_axes=1)(rng)
        return tokens[:, None] * keep / (1.0 - self.dropout)


def _symmetric_uniform(bound):
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
