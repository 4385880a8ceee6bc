"""Learned prompt tokens: visual prompt tuning (Jia et al., arXiv 2203.12119)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Keys


class Prompts(nn.Module):
    """Holds the prompts of every block (deep) or of the first block (shallow), `tokens [L, P, D]`.

    Attributes:
      layers: L, the number of blocks with prompts of their own; 1 for shallow prompts.
      num: P, prompts per block.
      width: D.
      patch: side of a patch in pixels; sets the range of the initial values.
      dropout: rate at which entries are dropped, per example.
    """

    layers: int
    num: int
    width: int
    patch: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, rng: Keys | None = None) -> Float[Array, "{self.layers} _ {self.num} {self.width}"]:
        """Return prompts `[L, 1, P, D]`, or `[L, B, P, D]` with dropout; no dropout if `rng` is None."""
        bound = math.sqrt(6.0 / (3 * self.patch**2 + self.width))
        tokens = self.param("tokens", _symmetric_uniform(bound), (self.layers, self.num, self.width))
        if rng is None or not self.dropout:
            return tokens[:, None]
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.dropout, tokens.shape), out_axes=1)(rng)
        return tokens[:, None] * keep / (1.0 - self.dropout)


def _symmetric_uniform(bound):
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
