"""Where a ViT looks: maps of the image from the attention weights of a look.

All functions take `attention [L, B, H, N, N]`, softmax weights of every block (`out["look"]["attention"]` of
`Steered.explain`), the class token first and the patches last; prompts may stand between them. `grid` is how many patches are
along a side.
"""

import jax
import jax.numpy as jnp


def of_class_token(attention: jax.Array, grid: int) -> jax.Array:
    """How much the class token attends to each patch in the last block, averaged over heads.

    Returns:
      `[B, grid, grid]`, weights that sum to at most 1.
    """
    return of_heads(attention, grid).mean(axis=1)


def of_heads(attention: jax.Array, grid: int) -> jax.Array:
    """The same for each head, `[B, H, grid, grid]`."""
    weights = attention[-1, :, :, 0, -grid * grid :]
    return weights.reshape(*weights.shape[:2], grid, grid)


def rollout(attention: jax.Array, grid: int, replaced: int = 0) -> jax.Array:
    """Attention rollout (Abnar & Zuidema, arXiv 2005.00928): how much of each patch reaches the class token at the end.

    A block passes on half of what a token was and half of what it attends to, `0.5 I + 0.5 A` with A the mean over heads; the
    product over blocks follows what flows from block to block.

    Args:
      replaced: how many tokens after the class token are new at the input of every block (deep prompts). What is read from
        them comes from no patch.

    Returns:
      `[B, grid, grid]`, shares that sum to at most 1.
    """

    def back_through(share, weights):
        share = 0.5 * share + 0.5 * jnp.einsum("bm,bmn->bn", share, weights)
        return share.at[:, 1 : 1 + replaced].set(0.0), None

    mean = attention.mean(axis=2)
    start = jnp.zeros(mean.shape[1:3]).at[:, 0].set(1.0)
    share, _ = jax.lax.scan(back_through, start, mean, reverse=True)
    return share[:, -grid * grid :].reshape(-1, grid, grid)
