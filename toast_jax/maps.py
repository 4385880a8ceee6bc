"""Where a network looks, as maps over the image."""

import jax

from toast_jax import attention
from toast_jax.methods import Method
from toast_jax.model import Steered, apply

FIRST, SELECTION, LAST = ORDER = "first look", "selection", "last look"  # jit returns a dict in the order of its keys


def look(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Looks at images `[B, S, S, 3]` (see `Steered`).

    Returns:
      probabilities `[B, C]`, and maps `[B, g, g]` by name: what the class token attends to in the last look and, for networks
      that look twice, in the first, and the mask that selects what is fed back. A ConvNeXt has no attention, only the mask.
    """
    logits, out = apply(model, method, params, images, call="explain")
    if "attention" not in out["look"]:
        return jax.nn.softmax(logits), {SELECTION: out["selection"][..., 0]} if "selection" in out else {}
    grid, maps = model.backbone.grid, {}
    if "first_look" in out:
        maps[FIRST] = attention.of_class_token(out["first_look"]["attention"], grid)
        maps[SELECTION] = out["selection"][:, -grid * grid :].reshape(-1, grid, grid)
    maps[LAST] = attention.of_class_token(out["look"]["attention"], grid)
    return jax.nn.softmax(logits), maps
