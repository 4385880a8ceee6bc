"""Where a network looks: maps of the image, from attention weights or from what the top-down module selects."""

import jax


def maps(backbone, out: dict) -> list[jax.Array]:
    """The maps `[B, g, g]` that `out`, the dict of `Steered.explain`, has for a network.

    A ViT has one for each look. A ConvNeXt, which has no attention, has one if it is steered: the selection that it feeds back.
    """
    if "attention" not in out["look"]:
        return [out["selection"][..., 0]] if "selection" in out else []
    return [of_class_token(out[name]["attention"], backbone.grid) for name in ("first_look", "look") if name in out]


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
