"""Where a network looks, as maps over the image."""

import dataclasses

import jax
import jax.numpy as jnp

from toast_jax.analysis import rollout
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply

FIRST, SELECTION, LAST = ORDER = "first look", "selection", "last look"  # jit returns a dict in the order of its keys
ROLLOUT, GRAD_CAM = "rollout", "like Grad-CAM"
ALL = (*ORDER, ROLLOUT, GRAD_CAM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """What the maps of a look are made of, and what lies between them; each a list of `[B, h, w]`.

    Attributes:
      first_heads, last_heads: attention of the class token in the last block, for each head of the first and the last look.
      top_down: the norm over channels of the top-down input of every block of a ViT, or of every stage of a ConvNeXt.
    """

    first_heads: list[jax.Array]
    last_heads: list[jax.Array]
    top_down: list[jax.Array]


def look(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Looks at images `[B, S, S, 3]` (see `Steered`).

    Returns:
      probabilities `[B, C]`, and maps `[B, g, g]` by name: what the class token attends to in the last look and, for networks
      that look twice, in the first, and the mask that selects what is fed back. A ConvNeXt has no attention, only the mask.
    """
    logits, out = apply(model, method, params, images, call="explain")
    return jax.nn.softmax(logits), _maps(model, out)


def look_closely(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict, Parts]:
    """As `look`, with the maps that cost more: `ROLLOUT` of a ViT's last look, `GRAD_CAM` of a ConvNeXt's; and the parts.

    `GRAD_CAM` follows Selvaraju et al. (arXiv 1610.02391) on the last map, behind which are one mean and one LayerNorm: each
    channel is weighted by the mean gradient of the named class's logit, and what speaks against the class is cut off.
    """
    logits, out = apply(model, method, params, images, call="explain")
    maps, first_heads, last_heads = _maps(model, out), [], []
    if "attention" in out["look"]:
        grid, last = model.backbone.grid, out["look"]["attention"]
        deep_prompts = model.prompts.num if model.prompts is not None and model.prompts.layers > 1 else 0
        maps[ROLLOUT] = rollout.rollout(last, grid, replaced=deep_prompts)
        first_heads = _heads(out["first_look"]["attention"], grid) if "first_look" in out else []
        last_heads = _heads(last, grid)
    else:
        maps[GRAD_CAM] = _grad_cam(model, method, params, out["look"]["hidden"][-1], logits.argmax(axis=-1))
    norms = [model.backbone.on_grid(jnp.linalg.norm(td, axis=-1)) for td in out.get("td", ())]
    return jax.nn.softmax(logits), maps, Parts(first_heads, last_heads, norms)


def _maps(model, out):
    backbone, attends, maps = model.backbone, "attention" in out["look"], {}
    if attends and "first_look" in out:
        maps[FIRST] = rollout.of_class_token(out["first_look"]["attention"], backbone.grid)
    if "selection" in out:
        maps[SELECTION] = backbone.on_grid(out["selection"][..., 0])
    if attends:
        maps[LAST] = rollout.of_class_token(out["look"]["attention"], backbone.grid)
    return maps


def _heads(weights, grid):
    return list(rollout.of_heads(weights, grid).swapaxes(0, 1))


def _grad_cam(model, method, params, last, named):
    def logit(hidden):
        return jnp.take_along_axis(apply(model, method, params, hidden, call="classify_map"), named[:, None], axis=1).sum()

    weights = jax.grad(logit)(last).mean(axis=tuple(range(1, last.ndim - 1)), keepdims=True)
    return model.backbone.on_grid(jax.nn.relu((weights * last).sum(axis=-1)))
