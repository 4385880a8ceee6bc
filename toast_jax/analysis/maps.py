"""Attention maps: where a network looks, as maps over the image.

`attention [L, B, H, N, N]` holds the softmax weights of every block of a ViT (`out["look"]["attention"]` of `Steered.explain`).
The class token comes first and the patches last; prompts may stand between them. `grid` is the number of patches along a side.
"""

import dataclasses

import jax
import jax.numpy as jnp

from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply

FIRST, SELECTION, LAST = ORDER = "first look", "selection", "last look"  # jit sorts the keys of a dict
ROLLOUT, GRAD_CAM = "rollout", "like Grad-CAM"
ALL = (*ORDER, ROLLOUT, GRAD_CAM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """Holds the details of a look; each a list of `[B, h, w]`.

    Attributes:
      first_heads, last_heads: attention of the class token in the last block, by head, in the first and the last look.
      top_down: norm over channels of the top-down input, by block of a ViT or by stage of a ConvNeXt.
    """

    first_heads: list[jax.Array]
    last_heads: list[jax.Array]
    top_down: list[jax.Array]


def look(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classify images `[B, S, S, 3]` (see `Steered`) and map where the network looks.

    Returns:
      probabilities `[B, C]`, and maps `[B, g, g]` by name: `LAST`, the attention of the class token in the last look; for
      networks that look twice also `FIRST`, the same in the first look, and `SELECTION`, the mask of the feedback. A ConvNeXt
      has no attention, only the mask.
    """
    logits, out = apply(model, method, params, images, call="explain")
    return jax.nn.softmax(logits), _maps(model, out)


def look_closely(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict, Parts]:
    """Run `look`, with the details and one expensive map: `ROLLOUT` of a ViT's last look, or `GRAD_CAM` of a ConvNeXt's.

    `GRAD_CAM` follows Selvaraju et al. (arXiv 1610.02391) on the last feature map, which a mean and a LayerNorm follow: each
    channel is weighted by the mean gradient of the predicted class's logit, and negative evidence is clipped to zero.
    """
    logits, out = apply(model, method, params, images, call="explain")
    maps, norms = _maps(model, out), [model.backbone.on_grid(jnp.linalg.norm(td, axis=-1)) for td in out.get("td", ())]
    if "attention" not in out["look"]:
        maps[GRAD_CAM] = _grad_cam(model, method, params, out["look"]["hidden"][-1], logits.argmax(axis=-1))
        return jax.nn.softmax(logits), maps, Parts([], [], norms)
    grid, last = maps[LAST].shape[-1], out["look"]["attention"]
    deep_prompts = model.prompts.num if model.prompts is not None and model.prompts.layers > 1 else 0
    maps[ROLLOUT] = rollout(last, grid, replaced=deep_prompts)
    first_heads = _heads(out["first_look"]["attention"], grid) if "first_look" in out else []
    return jax.nn.softmax(logits), maps, Parts(first_heads, _heads(last, grid), norms)


def of_class_token(attention: jax.Array, grid: int) -> jax.Array:
    """Average the class token's attention to each patch in the last block over heads: `[B, grid, grid]`, of sum at most 1."""
    return of_heads(attention, grid).mean(axis=1)


def of_heads(attention: jax.Array, grid: int) -> jax.Array:
    """Return the class token's attention to each patch in the last block, by head: `[B, H, grid, grid]`."""
    weights = attention[-1, :, :, 0, -grid * grid :]
    return weights.reshape(*weights.shape[:2], grid, grid)


def rollout(attention: jax.Array, grid: int, replaced: int = 0) -> jax.Array:
    """Compute attention rollout (Abnar & Zuidema, arXiv 2005.00928): each patch's share in the final class token.

    A block mixes each token half from itself and half from its attention, `0.5 I + 0.5 A` with A the mean over heads; rollout
    is the class token's row of the product over blocks.

    Args:
      replaced: number of tokens after the class token that every block replaces at its input (deep prompts). They carry
        nothing of the patches.

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


def _maps(model, out):
    backbone, attends, maps = model.backbone, "attention" in out["look"], {}
    if attends and "first_look" in out:
        maps[FIRST] = of_class_token(out["first_look"]["attention"], backbone.grid)
    if "selection" in out:
        maps[SELECTION] = backbone.on_grid(out["selection"][..., 0])
    if attends:
        maps[LAST] = of_class_token(out["look"]["attention"], backbone.grid)
    return maps


def _heads(weights, grid):
    return list(of_heads(weights, grid).swapaxes(0, 1))


def _grad_cam(model, method, params, last, predicted):
    def logit(hidden):
        return jnp.take_along_axis(apply(model, method, params, hidden, call="classify_map"), predicted[:, None], axis=1).sum()

    weights = jax.grad(logit)(last).mean(axis=tuple(range(1, last.ndim - 1)), keepdims=True)
    return model.backbone.on_grid(jax.nn.relu((weights * last).sum(axis=-1)))
