"""The top-down module of the paper: select the tokens that matter to the task, and feed them back.

Shi et al., "Refocusing Is Key to Transfer Learning" (arXiv 2305.15542), section 3. In the PyTorch release: the methods
`forward_features`, `feedback` and `get_var_loss` of the top-down transformers.

Letters in shapes: B batch, N tokens, D width, L sites (one per steered block of a transformer). For networks of stages,
`[B, h, w, C]` is a map, C_i the input channels of stage i and S_i its stride.
"""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from toast_jax.model.layers import patches, stack
from toast_jax.model.layers.arrays import Array, Maps


def select(tokens: Float[Array, "*N D"], prior: Float[Array, " D"]) -> Float32[Array, "*N 1"]:
    """Compute the relevance of each token to the task, `clip(cos(token, prior), 0, 1)`.

    Args:
      tokens: tokens or the places of a map.
      prior: direction of the task, xi in the paper.

    Returns:
      values between 0 (dropped) and 1 (kept as it is).
    """
    return jnp.clip(_exact(_unit(tokens.astype(jnp.float32)), _unit(prior)[:, None]), 0.0, 1.0)


def _unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    # Clipping before the square root keeps the gradient finite at zero; the bound is that of torch's F.normalize.
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _exact(x, kernel):
    """Multiply in full float32, whatever `config.precision` is; for cosines and small differences between arrays."""
    with jax.default_matmul_precision("highest"):
        return x @ kernel  # an operator, as the kernel may be a `LowRank`


class _Selection(nn.Module):
    """Selects tokens with `prior [D]` and `transform [D, D]` (P in the paper, initialized to the identity)."""

    def _create_selection(self, width):
        self.prior = self.param("prior", nn.initializers.normal(1.0), (width,))
        self.transform = self.param("transform", lambda _, shape: jnp.eye(*shape), (width, width))

    def _selected(self, compared, fed_back):
        """Return the selected tokens, scaled by their relevance and transformed, and the relevance."""
        mask = select(compared, self.prior)
        return (mask.astype(self.dtype) * fed_back) @ self.transform.astype(self.dtype), mask


class TopDown(_Selection):
    """Selects and feeds back in a network whose blocks all have one width.

    Parameters are `prior`, `transform` and two linear layers without biases per block l: `back [L, D, D]` (A_l) maps the signal
    from the output of the block to its input, and `out [L, D, D]` (B_l) maps it to the top-down input of the block.
    """

    sites: int
    width: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        width, sites = self.width, self.sites
        self._create_selection(width)
        feedback = nn.initializers.normal(0.02)
        self.back = stack.parameter(self, "back", feedback, (sites, width, width))
        self.out = stack.parameter(self, "out", feedback, (sites, width, width))

    def __call__(
        self, compared: Float[Array, "B N {self.width}"], fed_back: Float[Array, "B N {self.width}"]
    ) -> tuple[Float[Array, "{self.sites} B N {self.width}"], Float32[Array, "B N 1"]]:
        """Form the top-down signal.

        Args:
          compared: tokens to compare with the prior.
          fed_back: tokens to scale and feed back; often the same array.

        Returns:
          top-down inputs and the relevance of each token.
        """
        z, mask = self._selected(compared, fed_back)

        def through_block(z, layer):
            back, out = layer
            z = z @ back
            return z, z @ out

        _, td = stack.backwards(through_block, z, (self.back.astype(self.dtype), self.out.astype(self.dtype)))
        return td, mask

    def variational_loss(self, hidden: Float[Array, "{self.sites}+1 B N {self.width}"]) -> Float32[Array, " B"]:
        """Measure how well the feedback path reconstructs each block's input from its output (paper, section 3.3).

        The loss is the sum over blocks of `mean((A_l sg(output_l) - sg(input_l))^2)`, where sg stops gradients, so only `back`
        gets a gradient.

        Args:
          hidden: the input of every steered block and the output of the last.

        Returns:
          one loss per example, neither averaged nor weighted.
        """
        hidden = jax.lax.stop_gradient(hidden)

        # One block at a time: devices that split `back` gather one layer of it, and no block's error is saved.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_block(layer):
            block, back = layer
            rebuilt = _exact(hidden[block + 1], back.astype(hidden.dtype))
            error = rebuilt.astype(jnp.float32) - hidden[block].astype(jnp.float32)
            return jnp.mean(jnp.square(error), axis=(1, 2))

        return jax.lax.map(of_block, (jnp.arange(self.sites), self.back)).sum(axis=0)


class ConvTopDown(_Selection):
    """Selects and feeds back in a network of stages, whose maps differ in size and width.

    Parameters are `prior`, `transform` and two convolutions without biases per stage i, stored as matrices:
    `back_i [C_{i+1}, S_i * S_i * C_i]` (A_i), a transposed convolution whose kernel size is its stride, maps the signal from
    the output of the stage to its input; `out_i [C_i, C_i]` (B_i), of kernel size 1, to its top-down input.

    Attributes:
      widths: C_0, ..., C_L, the channels of every stage's input (the image first) and of the last output.
      strides: S_0, ..., S_{L-1}, the down-sampling factors of the stages.
      steered: how many of the last stages have a top-down input; 0 for all.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: DTypeLike = jnp.float32
    steered: int = 0

    def setup(self):
        self._create_selection(self.widths[-1])
        self.layers = [
            (
                stride,
                self.param(f"back_{i}", _as_conv_transpose, (self.widths[i + 1], stride**2 * self.widths[i])),
                self.param(f"out_{i}", nn.initializers.normal(0.02), (self.widths[i], self.widths[i])),
            )
            for i, stride in list(enumerate(self.strides))[-self.steered :]
        ]

    def __call__(
        self, compared: Float[Array, "B h w C"], fed_back: Float[Array, "B h w C"]
    ) -> tuple[Maps, Float32[Array, "B h w 1"]]:
        """Form the top-down signal.

        Args:
          compared: map to compare with the prior, place by place.
          fed_back: map to scale and feed back.

        Returns:
          top-down inputs, shaped as the inputs of the stages, and the relevance of each place.
        """
        z, mask = self._selected(compared, fed_back)
        td = []
        for stride, back, out in reversed(self.layers):
            z = self._back(z, back, stride)
            td.append(z @ out.astype(self.dtype))
        return tuple(reversed(td)), mask

    def variational_loss(self, hidden: Maps) -> Float32[Array, " B"]:
        """Measure how well the feedback path reconstructs each stage's input; see `TopDown.variational_loss`.

        Args:
          hidden: the input of every steered stage, without its top-down input, and the output of the last.
        """
        hidden = jax.lax.stop_gradient(hidden)
        loss = jnp.zeros(())
        for stage_input, output, (stride, back, _) in zip(hidden[:-1], hidden[1:], self.layers, strict=True):
            error = self._back(output, back, stride, _exact).astype(jnp.float32) - stage_input.astype(jnp.float32)
            loss += jnp.mean(jnp.square(error), axis=(1, 2, 3))
        return loss

    def _back(self, x, back, stride, product=operator.matmul):  # kernels of `toast_lite` implement `@` alone
        """Map the signal from the output of a stage to its input."""
        return patches.join(product(x.astype(self.dtype), back.astype(self.dtype)), stride)


def _as_conv_transpose(key, shape):
    """Initialize a transposed convolution as torch does by default, and the release with it."""
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
