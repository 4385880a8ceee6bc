"""Attention maps: where a network looks, as maps over the image.

`attention [L, B, H, N, N]` holds the softmax weights of every block of a ViT (`out["look"]["attention"]` of `Steered.explain`).
The class token comes first and the patches last; prompts and registers may stand between them, and no map shows them. Without a
class token, `reads [B, H, N]` of a look takes the place of its attention. `grid` is the number of patches along a side.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply

FIRST, SELECTION, LAST = ORDER = "first look", "selection", "last look"  # jit sorts the keys of a dict
ROLLOUT, GRAD_CAM = "rollout", "like Grad-CAM"
ALL = (*ORDER, ROLLOUT, GRAD_CAM)
FIRST_ROLLOUT, FIRST_GRADIENT, GRADIENT = "rollout, first look", "gradient, first look", "gradient"
MEASURED = (*ORDER, FIRST_ROLLOUT, ROLLOUT, FIRST_GRADIENT, GRADIENT, GRAD_CAM)
PAIRS = {"attention": (FIRST, LAST), ROLLOUT: (FIRST_ROLLOUT, ROLLOUT), GRADIENT: (FIRST_GRADIENT, GRADIENT)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """Holds the details of a look; each a list of `[B, h, w]`.

    Attributes:
      first_heads, last_heads: attention of the class token in the last block, by head, in the first and the last look.
      top_down: norm over channels of the top-down input, by steered block of a ViT or stage of a ConvNeXt.
      unsteered: number of blocks or stages before these.
    """

    first_heads: list[jax.Array]
    last_heads: list[jax.Array]
    top_down: list[jax.Array]
    unsteered: int = dataclasses.field(default=0, metadata={"static": True})


def look(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classify images `[B, S, S, 3]` (see `Steered`) and map where the network looks.

    Returns:
      probabilities `[B, C]`, and maps `[B, g, g]` by name: `LAST`, the attention of the class token in the last look; for
      networks that look twice also `FIRST`, the same in the first look, and `SELECTION`, the mask of the feedback. A ConvNeXt
      has no attention, only the mask.
    """
    logits, out = apply(model, method, params, images, call="explain")
    return jax.nn.softmax(logits), _maps(model, out)


def look_in_blocks(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Run `look` of a ViT, with `FIRST` and `LAST` in every block: `[B, L, g, g]`."""
    logits, out = apply(model, method, params, images, call="explain")
    attention = {FIRST: _attention(out["first_look"])} if "first_look" in out else {}
    attention[LAST] = _attention_to_the_last(out)
    of_looks = {name: of_blocks(weights, model.backbone.grid) for name, weights in attention.items()}
    return jax.nn.softmax(logits), _maps(model, out) | of_looks


def look_closely(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict, Parts]:
    """Run `look`, with the details and one expensive map: `ROLLOUT` of a ViT's last look, or `GRAD_CAM` of a ConvNeXt's.

    `GRAD_CAM` follows Selvaraju et al. (arXiv 1610.02391) on the last feature map, which a mean and a LayerNorm follow: each
    channel is weighted by the mean gradient of the predicted class's logit, and negative evidence is clipped to zero.
    """
    logits, out = apply(model, method, params, images, call="explain")
    maps, norms = _maps(model, out), [model.backbone.on_grid(jnp.linalg.norm(td, axis=-1)) for td in out.get("td", ())]
    if "attention" not in out["look"]:
        maps[GRAD_CAM] = _grad_cam(model, method, params, out["look"]["hidden"][-1], logits.argmax(axis=-1))
        return jax.nn.softmax(logits), maps, Parts([], [], norms, _unsteered(out))
    grid = maps[LAST].shape[-1]
    maps[ROLLOUT] = _rollout_of_last_look(model, out)
    first_heads = _heads(_attention(out["first_look"]), grid) if "first_look" in out else []
    return jax.nn.softmax(logits), maps, Parts(first_heads, _heads(_attention(out["look"]), grid), norms, _unsteered(out))


def look_to_measure(
    model: Steered, method: Method, params: dict, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Run `look` with every map of `MEASURED` that the network has, in both of its looks.

    `GRADIENT` is the norm, for each token that the last block (or the probe) reads, of the gradient of the right class's logit.
    Gradient times token would vanish: the block normalizes its tokens, so scaling one of them changes nothing. `FIRST_GRADIENT`
    is the same for the logit that the head would compute from the first look.

    Args:
      labels: the right classes `[B]`; where negative, the predicted class is used.

    Returns:
      logits `[B, C]`, and maps `[B, g, g]` by name.
    """
    logits, out = apply(model, method, params, images, call="explain")
    maps, predicted = _maps(model, out), logits.argmax(axis=-1)
    if "attention" not in out["look"]:
        maps[GRAD_CAM] = _grad_cam(model, method, params, out["look"]["hidden"][-1], predicted)
        return logits, maps
    classes = jnp.where(labels < 0, predicted, labels)
    gradient = functools.partial(_gradient, model, method, params, classes)
    maps[ROLLOUT] = _rollout_of_last_look(model, out)
    maps[GRADIENT] = gradient(out["look"], out["td"][-1] if "td" in out else None)
    if "first_look" in out:
        maps[FIRST_ROLLOUT] = rollout(_attention(out["first_look"]), maps[FIRST].shape[-1])
        maps[FIRST_GRADIENT] = gradient(out["first_look"], None)
    return logits, maps


def of_class_token(attention: jax.Array, grid: int) -> jax.Array:
    """Average the class token's attention to each patch in the last block over heads: `[B, grid, grid]`, of sum at most 1."""
    return of_heads(attention, grid).mean(axis=1)


def of_blocks(attention: jax.Array, grid: int) -> jax.Array:
    """Average the class token's attention to each patch over heads, by block: `[B, L, grid, grid]`."""
    return jnp.stack([of_class_token(block[None], grid) for block in attention], axis=1)


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
        maps[FIRST] = of_class_token(_attention(out["first_look"]), backbone.grid)
    if "selection" in out:
        maps[SELECTION] = backbone.on_grid(out["selection"][..., 0])
    if attends:
        maps[LAST] = of_class_token(_attention(out["look"]), backbone.grid)
    return maps


def _attention(look):
    """Return the attention of a look, whose token 0 is the class token, or one added after the last block that has `reads`."""
    if "reads" not in look:
        return look["attention"]
    attention = jnp.pad(look["attention"], ((0, 1), (0, 0), (0, 0), (1, 0), (1, 0)))
    return attention.at[:-1, :, :, 0, 0].set(1.0).at[-1, :, :, 0, 1:].set(look["reads"])


def _unsteered(out):
    """Return how many blocks or stages the second look skips."""
    return len(out["first_look"]["hidden"]) - len(out["look"]["hidden"]) if "first_look" in out else 0


def _attention_to_the_last(out):
    """Return the attention in all blocks behind the prediction; those that the second look skips are the first look's."""
    attention = _attention(out["look"])
    return jnp.concatenate([_attention(out["first_look"])[: _unsteered(out)], attention]) if _unsteered(out) else attention


def _rollout_of_last_look(model, out):
    attention, deep_prompts = _attention_to_the_last(out), 0
    if model.prompts is not None and model.prompts.layers > 1:
        deep_prompts = model.prompts.num
    return rollout(attention, model.backbone.grid, replaced=deep_prompts)


def _gradient(model, method, params, classes, look, td):
    def logit(tokens):
        logits = apply(model, method, params, tokens, td, call=classify)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    # A probe reads all tokens after the last block, a head without one the class token.
    site, classify = (-2, _classify_from_last) if model.probe is None else (-1, _classify_map)
    gradients = jax.grad(logit)(look["hidden"][site]).astype(jnp.float32)
    return model.backbone.on_grid(jnp.linalg.norm(gradients, axis=-1))


def _classify_from_last(model, tokens, td):
    return model.logits(model.backbone.pooled_from_last(tokens, td))


def _classify_map(model, tokens, td):
    return model.classify_map(tokens)


def _heads(weights, grid):
    return list(of_heads(weights, grid).swapaxes(0, 1))


def _grad_cam(model, method, params, last, predicted):
    def logit(hidden):
        return jnp.take_along_axis(apply(model, method, params, hidden, call="classify_map"), predicted[:, None], axis=1).sum()

    weights = jax.grad(logit)(last).mean(axis=tuple(range(1, last.ndim - 1)), keepdims=True)
    return model.backbone.on_grid(jax.nn.relu((weights * last).sum(axis=-1)))
