"""The one linear layer of every network here."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class Linear(nn.Module):
    """`y = x @ kernel + bias` over the last axis: `[..., D] -> [..., features]`.

    Unlike `nn.Dense`, the product is written as `@`, so a kernel may be any object that knows how to be multiplied:
    `lora.LowRank` relies on it, and no network needs to know that low-rank deltas exist.

    Attributes:
      features: width of the output.
      use_bias: whether a bias is added.
      dtype: compute dtype; parameters are cast to it, they are stored as they come.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = nn.initializers.normal(0.02)  # as trunc_normal_(std=0.02) of timm and torch, which cut at +-2
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array, bias_scale: float = 1.0) -> jax.Array:
        """Maps `x [..., D]` to `[..., features]`; the bias is added `bias_scale` times."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + bias_scale * bias.astype(self.dtype)
        return y
