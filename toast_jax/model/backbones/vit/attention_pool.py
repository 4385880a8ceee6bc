"""Attention pooling, the head of SigLIP (arXiv 2303.15343)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from toast_jax.model.backbones.vit.blocks import Mlp
from toast_jax.model.backbones.vit.features import Features
from toast_jax.model.layers.arrays import Array, Tokens
from toast_jax.model.layers.attention import attend_with_weights
from toast_jax.model.layers.linear import Linear


class AttentionPool(nn.Module):
    """Pools tokens by the attention of one learned query, and an MLP (the head of SigLIP, arXiv 2303.15343)."""

    num_heads: int
    hidden: int
    features: Features
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> tuple[Float[Array, "B D"], Float32[Array, "B {self.num_heads} N"]]:
        """Return the pooled output, and the attention to each token."""
        width = x.shape[-1]
        heads = lambda x: x.reshape(*x.shape[:2], self.num_heads, -1)  # noqa: E731
        layer = lambda name, x: Linear(width, dtype=self.dtype, name=name)(x)  # noqa: E731
        latent = self.param("latent", nn.initializers.normal(0.02), (1, 1, width)).astype(x.dtype)
        query = jnp.broadcast_to(layer("q", latent), (x.shape[0], 1, width))
        mixed, weights = attend_with_weights(heads(query), heads(layer("k", x)), heads(layer("v", x)))
        y = layer("proj", mixed.reshape(-1, 1, width))
        normed = nn.LayerNorm(self.features.eps, self.dtype, name="norm")(y)
        y = y + Mlp(self.features.mlp, self.hidden, self.dtype, name="mlp")(normed)
        return y[:, 0], weights[:, :, 0]
