"""The paper: select the tokens that matter to the task, and feed them back.

Shi et al., "Refocusing Is Key to Transfer Learning" (arXiv 2305.15542), section 3. In the PyTorch release: the methods
`forward_features`, `feedback` and `get_var_loss` of the top-down transformers.

Letters in shapes: B batch, N tokens, D width, L sites (one per block).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def select(tokens: jax.Array, prior: jax.Array) -> jax.Array:
    """How relevant each token is to the task: `clip(cos(token, prior), 0, 1)`.

    Args:
      tokens: `[B, N, D]`.
      prior: `[D]`, the task's direction, xi in the paper.

    Returns:
      `[B, N, 1]`, between 0 (ignored) and 1 (passed on whole), float32.
    """
    return jnp.clip(_unit(tokens.astype(jnp.float32)) @ _unit(prior)[:, None], 0.0, 1.0)


def _unit(x: jax.Array) -> jax.Array:
    # The square root of a sum that is clipped first has a finite gradient at zero; the bound is torch's F.normalize's.
    return x / jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


class TopDown(nn.Module):
    """Selection and feedback for a network whose sites all carry tokens of one width.

    Parameters: `prior [D]`, `transform [D, D]` (P in the paper, identity at the start) and, for every site l, two bias-free
    linears: `back [L, D, D]` carries the signal from the output of block l to its input (A_l), `out [L, D, D]` turns it into
    the top-down input of block l (B_l).
    """

    sites: int
    width: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width, sites = self.width, self.sites
        self.prior = self.param("prior", nn.initializers.normal(1.0), (width,))
        self.transform = self.param("transform", lambda _, shape: jnp.eye(*shape), (width, width))
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
        mask = select(compared, self.prior)
        z = (mask.astype(self.dtype) * fed_back) @ self.transform.astype(self.dtype)

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
