"""PyTorch's names of a ViT (the release's, DeiT's and timm's), and its sizes in their files."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.model.backbones.rename_rules import (
    ADDED,
    STEERED,
    Names,
    Rename,
    bias,
    bottleneck,
    linear,
    norm,
    patches,
    scale_and_shift,
    token_feedback,
    transposed,
)
from toast_jax.model.backbones.vit import SIZES, ViT

_TORCH, _PATH = "blocks.{i}", "backbone/blocks/{i}"


def _qkv(suffix: str, prefix: str = "") -> tuple[str, ...]:
    return tuple(f"{prefix}{_PATH}/attn/{part}/{suffix}" for part in "qkv")


def _thirds(w):
    return tuple(part.T for part in np.split(w, 3))


def _joined(*parts):
    return (np.concatenate([part.T for part in parts]),)


_TABLE = (
    Rename(("cls_token",), ("backbone/cls_token",)),
    Rename(("pos_embed",), ("backbone/pos_embed",)),
    patches("patch_embed.proj", "backbone/patch_embed"),
    bias("patch_embed.proj", "backbone/patch_embed"),
    *norm(f"{_TORCH}.norm1", f"{_PATH}/norm1"),
    Rename((f"{_TORCH}.attn.qkv.weight",), _qkv("kernel"), _thirds, _joined),
    Rename((f"{_TORCH}.attn.qkv.bias",), _qkv("bias"), _thirds, _joined),
    linear(f"{_TORCH}.attn.proj", f"{_PATH}/attn/proj"),
    bias(f"{_TORCH}.attn.proj", f"{_PATH}/attn/proj"),
    *norm(f"{_TORCH}.norm2", f"{_PATH}/norm2"),
    *(row(f"{_TORCH}.mlp.{fc}", f"{_PATH}/mlp/{fc}") for fc in ("fc1", "fc2") for row in (linear, bias)),
    *norm("norm", "backbone/norm"),
    *STEERED,
    *token_feedback(),
    # Low-rank deltas: one A for the joint qkv kernel, and its B in three.
    transposed(f"{_TORCH}.attn.qkv.lora_A", f"lora/{_PATH}/attn/a"),
    Rename((f"{_TORCH}.attn.qkv.lora_B",), _qkv("b", "lora/"), _thirds, _joined),
    *bottleneck(_TORCH, _PATH),
    # SSF numbers the operations of each part of a network.
    *scale_and_shift("patch_embed.", ("backbone/patch_embed",), "_1"),
    *scale_and_shift(f"{_TORCH}.", (f"{_PATH}/norm1",), "_1"),
    *scale_and_shift(f"{_TORCH}.", (f"{_PATH}/norm2",), "_2"),
    *scale_and_shift(f"{_TORCH}.attn.", tuple(f"{_PATH}/attn/{part}" for part in "qkv"), "_1"),
    *scale_and_shift(f"{_TORCH}.attn.", (f"{_PATH}/attn/proj",), "_2"),
    *scale_and_shift(f"{_TORCH}.mlp.", (f"{_PATH}/mlp/fc1",), "_1"),
    *scale_and_shift(f"{_TORCH}.mlp.", (f"{_PATH}/mlp/fc2",), "_2"),
    *scale_and_shift("", ("backbone/norm",), "_1"),
    # Deep prompts are two parameters in the release: the first block's, and all others'.
    Rename(
        ("prompt_embeddings", "deep_prompt_embeddings"),
        ("prompts/tokens",),
        lambda first, others: (np.concatenate([first, others]),),
        lambda tokens: (tokens[:1], tokens[1:]),
    ),
    Rename(("prompt_embeddings",), ("prompts/tokens",)),
)
NAMES = Names(
    _TABLE,
    own_paths=rf"backbone/(cls_token|patch_embed/)|{ADDED}backbone/(blocks/(\d+/)?|last_\d+/)(attn/proj|mlp/fc1)/",
    has_name=lambda name, array: name.startswith(("cls_token", "patch_embed.", "blocks.")),
)


def sized(arrays: dict[str, np.ndarray], head_width: int) -> ViT:
    """Build the ViT that parameters belong to, from their shapes.

    Args:
      arrays: by path, stacked.
      head_width: K of the attention, which no shape shows.
    """
    width = arrays["backbone/cls_token"].shape[-1]
    last = len({path.split("/")[1] for path in arrays if path.startswith("backbone/last_")})
    return ViT(
        width=width,
        depth=last + len(arrays.get("backbone/blocks/norm1/scale", ())),
        num_heads=width // head_width,
        patch=round((arrays["backbone/patch_embed/kernel"].shape[0] / 3) ** 0.5),
        grid=round((arrays["backbone/pos_embed"].shape[1] - 1) ** 0.5),
        last_blocks=last,
    )


_TIMM = r"(?:vit|deit|deit3)_(tiny|small|base|large|huge)_patch(\d+)_(?:\d+|dinov2)"
_TIMM_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network."""
    common = {"pool": "cls", "drop_path": 0.1}  # the release leaves drop-path on while it tunes a ViT
    if match := re.fullmatch(_TIMM, content.get("architecture", "")):
        return {"size": _TIMM_SIZES[match[1]], "patch": int(match[2]), **common}
    if content.get("model_type") not in ("vit", "dinov2") or not content.get("qkv_bias", True):
        return None
    sides = (content["hidden_size"], content["num_hidden_layers"], content["num_attention_heads"])
    size = next((name for name, size in SIZES.items() if (size.width, size.depth, size.num_heads) == sides), None)
    has_plain_mlp = content.get("intermediate_size", 4 * sides[0]) == content.get("mlp_ratio", 4) * sides[0] == 4 * sides[0]
    if size is None or not has_plain_mlp or content.get("use_swiglu_ffn"):
        return None
    return {"size": size, "patch": int(content["patch_size"]), **common}
