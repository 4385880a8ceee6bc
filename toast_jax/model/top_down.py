"""The paper: select the tokens that matter to the task, and feed them back.

Shi et al., "Refocusing Is Key to Transfer Learning" (arXiv 2305.15542), section 3. In the PyTorch release: the methods
`forward_features`, `feedback` and `get_var_loss` of the top-down transformers.

Letters in shapes: B batch, N tokens, D width, L sites (one per block of a ViT); of a ConvNeXt, `[B, h, w, C]` a map, C_i the
channels that stage i gets and S_i its stride.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from toast_jax.model.layers import patches


def select(tokens: jax.Array, prior: jax.Array) -> jax.Array:
    """How relevant each token is to the task: `clip(cos(token, prior), 0, 1)`.

    Args:
      tokens: `[..., D]`, those of a ViT or the places of a map.
      prior: `[D]`, the task's direction, xi in the paper.

    Returns:
      `[..., 1]`, between 0 (ignored) and 1 (passed on whole), float32.
    """
    return jnp.clip(_unit(tokens.astype(jnp.float32)) @ _unit(prior)[:, None], 0.0, 1.0)


def _unit(x: jax.Array) -> jax.Array:
    # The square root of a sum that is clipped first has a finite gradient at zero; the bound is torch's F.normalize's.
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


class _Selection(nn.Module):
    """What every top-down module begins with: `prior [D]` and `transform [D, D]` (P in the paper, identity at the start)."""

    def _create_selection(self, width):
        self.prior = self.param("prior", nn.initializers.normal(1.0), (width,))
        self.transform = self.param("transform", lambda _, shape: jnp.eye(*shape), (width, width))

    def _selected(self, compared, fed_back):
        """The tokens that go back, scaled by their relevance and transformed, and the mask of relevance."""
        mask = select(compared, self.prior)
        return (mask.astype(self.dtype) * fed_back) @ self.transform.astype(self.dtype), mask


class TopDown(_Selection):
    """Selection and feedback for a network whose sites all carry tokens of one width.

    Parameters: `prior`, `transform` and, for every site l, two bias-free linears: `back [L, D, D]` carries the signal from the
    output of block l to its input (A_l), `out [L, D, D]` turns it into the top-down input of block l (B_l).
    """

    sites: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width, sites = self.width, self.sites
        self._create_selection(width)
        feedback = nn.initializers.normal(0.02)
        self.back = self.param("back", feedback, (sites, width, width))
        self.out = self.param("out", feedback, (sites, width, width))

    def __call__(self, compared: jax.Array, fed_back: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Forms the top-down signal.

        Args:
          compared: `[B, N, D]`, tokens whose direction is compared with the prior.
          fed_back: `[B, N, D]`, tokens that are scaled and fed back; for a ViT the same array.

        Returns:
          top-down inputs `[L, B, N, D]` and the selection mask `[B, N, 1]`.
        """
        z, mask = self._selected(compared, fed_back)

        def through_block(z, layer):
            back, out = layer
            z = z @ back
            return z, z @ out

        _, td = jax.lax.scan(through_block, z, (self.back.astype(self.dtype), self.out.astype(self.dtype)), reverse=True)
        return td, mask

    def variational_loss(self, hidden: jax.Array) -> jax.Array:
        """How badly the feedback path predicts each block's input from its output (paper, section 3.3).

        The sum over blocks of `mean((A_l sg(out_l) - sg(in_l))^2)`, sg being the stop of gradients: only `back` learns from it.

        Args:
          hidden: `[L + 1, B, N, D]`, the input of every block and the output of the last.

        Returns:
          float32 `[B]`, the loss of every example, to be averaged and weighted by the caller.
        """
        hidden = jax.lax.stop_gradient(hidden)
        rebuilt = jax.vmap(lambda output, back: output @ back)(hidden[1:], self.back.astype(hidden.dtype))
        error = rebuilt.astype(jnp.float32) - hidden[:-1].astype(jnp.float32)
        return jnp.mean(jnp.square(error), axis=(2, 3)).sum(axis=0)


class ConvTopDown(_Selection):
    """Selection and feedback for a network of stages, whose maps differ in size and in width.

    Parameters: `prior`, `transform` and, for every stage i, two convolutions without biases, written as matrices:
    `back_i [C_{i+1}, S_i * S_i * C_i]`, a transposed one whose kernel is its stride, carries the signal from the output of the
    stage to its input (A_i); `out_i [C_i, C_i]`, of kernel 1, turns it into the top-down input of the stage (B_i).

    Attributes:
      widths: channels C_0, ..., C_L: of the input of every stage (the first is the image) and of the output of the last.
      strides: S_0, ..., S_{L-1}, by which the stages shrink their input.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self._create_selection(self.widths[-1])
        self.layers = [
            (
                self.param(f"back_{i}", _as_conv_transpose, (self.widths[i + 1], stride**2 * width)),
                self.param(f"out_{i}", nn.initializers.normal(0.02), (width, width)),
            )
            for i, (width, stride) in enumerate(zip(self.widths[:-1], self.strides, strict=True))
        ]

    def __call__(self, compared: jax.Array, fed_back: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Forms the top-down signal.

        Args:
          compared: `[B, h, w, C_L]`, the map whose places are compared with the prior.
          fed_back: `[B, h, w, C_L]`, the map that is scaled and fed back.

        Returns:
          the top-down inputs, shaped as the inputs of the stages, and the selection mask `[B, h, w, 1]`.
        """
        z, mask = self._selected(compared, fed_back)
        td = []
        for i in reversed(range(len(self.strides))):
            z = self._back(i, z)
            td.append(z @ self.layers[i][1].astype(self.dtype))
        return tuple(reversed(td)), mask

    def variational_loss(self, hidden: tuple[jax.Array, ...]) -> jax.Array:
        """How badly the feedback path predicts each stage's input from its output; see `TopDown.variational_loss`.

        Args:
          hidden: the input of every stage, without its top-down input, and the output of the last.
        """
        hidden = jax.lax.stop_gradient(hidden)
        loss = 0.0
        for i, (given, output) in enumerate(zip(hidden[:-1], hidden[1:], strict=True)):
            error = self._back(i, output).astype(jnp.float32) - given.astype(jnp.float32)
            loss += jnp.mean(jnp.square(error), axis=(1, 2, 3))
        return loss

    def _back(self, i, x):
        """From the output of stage i to its input."""
        return patches.join(x.astype(self.dtype) @ self.layers[i][0].astype(self.dtype), self.strides[i])


def _as_conv_transpose(key, shape):
    """The start that torch gives a transposed convolution, and the release leaves it."""
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
