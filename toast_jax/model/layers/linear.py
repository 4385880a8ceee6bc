"""The linear layer of all networks."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array


class Linear(nn.Module):
    """Computes `x @ kernel + bias` over the last axis.

    Unlike `nn.Dense` it uses `@`, so the kernel may be any object with a matrix product, such as `packed_kernels.Transposed` or
    `additions.lora.LowRank`.

    Attributes:
      features: width of the output.
      use_bias: whether to add a bias.
      dtype: compute dtype; parameters are cast to it for the product.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = nn.initializers.normal(0.02)  # as trunc_normal_(std=0.02) of timm and torch, which truncate at +-2
    bias_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"], bias_scale: float = 1.0) -> Float[Array, "*rows {self.features}"]:
        """Add the bias `bias_scale` times."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = y + bias_scale * bias.astype(self.dtype)
        return y
