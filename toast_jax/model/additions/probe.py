"""An attentive probe with several queries (efficient probing, Psomas et al., arXiv 2506.10178)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float32

from toast_jax.model.layers.arrays import Array, Tokens
from toast_jax.model.layers.batch_norm import BatchNorm


class AttentionProbe(nn.Module):
    """Pools tokens by learned queries and normalizes the result over the batch.

    The value channels are split into Q groups; query q averages group q over the tokens, with weights
    `softmax(query @ token / sqrt(D))`. Tokens are not projected to keys. Parameters are `queries [Q, D]`,
    `values [D, D / reduction]` and the running statistics of the norm.

    Attributes:
      width: D of the tokens.
      num_queries: Q; `Q * reduction` divides D.
      reduction: D divided by the number of value channels.
      every_token: whether the probe also reads the class token.
    """

    width: int
    num_queries: int = 32
    reduction: int = 1
    every_token: bool = False

    def setup(self):
        channels = self.width // self.reduction
        # As torch's linear layer.
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.queries = self.param("queries", nn.initializers.normal(0.02), (self.num_queries, self.width))
        self.values = self.param("values", uniform, (self.width, channels))
        self.norm = BatchNorm()

    def __call__(self, tokens: Tokens, training: bool = False) -> Float32[Array, "B F"]:
        """Compute the features `[B, D / reduction]`; `training` as in `BatchNorm`."""
        return self.norm(self.pool(tokens)[0], training)

    def pool(self, tokens: Tokens) -> tuple[Float32[Array, "B F"], Float32[Array, "B {self.num_queries} N"]]:
        """Return the pooled values before the norm, and the attention of each query to each token."""
        tokens = tokens.astype(jnp.float32)
        attention = jax.nn.softmax(jnp.einsum("qd,bnd->bqn", self.queries, tokens) / self.width**0.5)
        # Averaging before the projection to values gives the same result and projects Q vectors instead of N tokens.
        averages = jnp.einsum("bqn,bnd->bqd", attention, tokens)
        groups = self.values.reshape(self.width, self.num_queries, -1)
        pooled = jnp.einsum("bqd,dqc->bqc", averages, groups)
        return pooled.reshape(tokens.shape[0], -1), attention
