"""Where a ViT looks: one map of the image from the attention weights of a look."""

import jax


def of_class_token(attention: jax.Array, grid: int) -> jax.Array:
    """How much the class token attends to each patch in the last block, averaged over heads.

    Args:
      attention: `[L, B, H, N, N]`, softmax weights of every block (`out["look"]["attention"]` of `Steered.explain`), the class
        token first and the patches last; prompts may stand between them.
      grid: patches along a side.

    Returns:
      `[B, grid, grid]`, weights that sum to at most 1.
    """
    weights = attention[-1, :, :, 0, -grid * grid :].mean(axis=1)
    return weights.reshape(-1, grid, grid)
