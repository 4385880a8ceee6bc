"""The depthwise convolution of ConvNeXt, with an implementation of its own for CPUs.

Accelerators use XLA's convolution, which `benchmarks.accelerator --parts choices` compares there. On CPUs XLA's is 5 to 15
times slower than a sum of shifted images, and its gradient with respect to the kernel is slower still.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array


class DepthwiseConv(nn.Module):
    """Convolves each channel with its own kernel and adds a bias; zero padding keeps the size.

    Parameters are `kernel [size, size, 1, C]` and `bias [C]`.
    """

    size: int = 7
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (self.size, self.size, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        y = jax.lax.platform_dependent(x.astype(self.dtype), kernel.astype(self.dtype), cpu=sum_of_shifts, default=convolution)
        return y + bias.astype(self.dtype)


def convolution(x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "K K 1 C"]) -> Float[jax.Array, "B h w C"]:
    """Convolve with a kernel, K odd, by XLA."""
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes, feature_group_count=x.shape[-1])


@jax.custom_vjp
def sum_of_shifts(x: Float[Array, "B h w C"], kernel: Float[Array, "K K 1 C"]) -> Float[Array, "B h w C"]:
    """Compute `convolution` as K * K products of the shifted map and one weight per channel, summed in float32."""
    size, (_, h, w, _) = kernel.shape[0], x.shape
    padded, weights = _padded(x, size), kernel.astype(jnp.float32)
    terms = (padded[:, i : i + h, j : j + w] * weights[i, j, 0] for i in range(size) for j in range(size))
    return sum(terms).astype(x.dtype)


def _padded(x, size):
    # Without the barrier the compiler recomputes the padded map, and the layers before it, for every shift.
    border = (size // 2, size // 2)
    return jax.lax.optimization_barrier(jnp.pad(x.astype(jnp.float32), ((0, 0), border, border, (0, 0))))


def _forward(x, kernel):
    return sum_of_shifts(x, kernel), (x, kernel)


def _backward(saved, gradient):
    """Compute both gradients by hand: the automatic gradient of slices is a slow sum of padded maps."""
    x, kernel = saved
    size, (_, h, w, _) = kernel.shape[0], x.shape
    padded, gradient = _padded(x, size), jax.lax.optimization_barrier(gradient)

    def row(i):  # one row at a time keeps compilation short
        rows = jax.lax.dynamic_slice_in_dim(padded, i, h, axis=1)
        return jnp.stack([jnp.sum(rows[:, :, j : j + w] * gradient, axis=(0, 1, 2)) for j in range(size)])

    of_kernel = jax.lax.map(row, jnp.arange(size)).reshape(kernel.shape)
    return sum_of_shifts(gradient, kernel[::-1, ::-1]), of_kernel.astype(kernel.dtype)


sum_of_shifts.defvjp(_forward, _backward)
