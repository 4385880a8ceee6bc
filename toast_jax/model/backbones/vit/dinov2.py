"""DINOv2 with or without registers (arXiv 2304.07193, 2309.16588): its features, `config.json` and parameter names."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.model.backbones.rename_rules import Layout, Rename, norm
from toast_jax.model.backbones.vit import torch_names
from toast_jax.model.backbones.vit.features import Kind

_ARCHITECTURE = r"vit_(small|base|large|giant)_patch(\d+)(?:_reg(\d+))?_dinov2"
_SIZES = {"small": {"size": "S"}, "base": {"size": "B"}, "large": {"size": "L"}, "giant": {"size": "g", "mlp": "swiglu"}}


def _described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if match := re.fullmatch(_ARCHITECTURE, content.get("architecture", "")):
        return {**_SIZES[match[1]], "patch": int(match[2]), "registers": int(match[3] or 0), "antialias": True}
    kind = content.get("model_type")
    if kind not in ("dinov2", "dinov2_with_registers") or not content.get("qkv_bias", True):
        return None
    registers = content.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0
    hidden, gated = int(content.get("mlp_ratio", 4) * content["hidden_size"]), content.get("use_swiglu_ffn", False)
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    fields = {"mlp": "swiglu" if gated else "gelu", "registers": registers, "antialias": kind == "dinov2_with_registers"}
    return torch_names.of_transformers(content, hidden, eps=content.get("layer_norm_eps", 1e-6), **fields)


def _with_class_row(cls, registers, pos):
    """Put a class row of zeros before the positions of the patches."""
    rows = np.arange(-1, pos.shape[1])
    return cls, registers, pos[:, np.maximum(rows, 0)] * (rows >= 0)[:, None]


def _transformers(*mlp: str) -> Layout:
    table = (
        *torch_names.of_input(
            "embeddings.patch_embeddings.projection",
            "embeddings.cls_token",
            "embeddings.register_tokens",
            mask="embeddings.mask_token:2",
        ),
        Rename(("embeddings.position_embeddings",), ("backbone/pos_embed",)),
        *torch_names.of_block(
            "encoder.layer.{i}",
            norms=("norm1", "norm2"),
            attention=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            proj="attention.output.dense",
            mlps=(mlp,),
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
        *norm("layernorm", "backbone/norm"),
    )
    # Files without registers and gates are read by the names that DINOv2 shares with transformers' plain ViT.
    sign = r"embeddings\.register_tokens|encoder\.layer\.\d+\.mlp\.weights_in\.weight"
    return Layout("dinov2_transformers", table, sign, unused=r"classifier\..*")


# Where there are registers, timm adds the position of the class token to it.
_FOLDED = Rename(
    ("cls_token", "reg_token", "pos_embed"),
    ("backbone/cls_token", "backbone/reg_token", "backbone/pos_embed"),
    _with_class_row,
    lambda cls, registers, pos: (cls + pos[:, :1], registers, pos[:, 1:]),
)
_SCALES = ("ls1.gamma", "ls2.gamma")
KIND = Kind(
    "DINOv2",
    tag="dinov2",
    fields={},
    described=_described,
    layouts=(
        _transformers("mlp.fc1", "mlp.fc2"),
        _transformers("mlp.weights_in", "mlp.weights_in", "mlp.weights_out"),
        Layout("dinov2_timm", (_FOLDED, *torch_names.of_timm(scales=_SCALES))),
        Layout("dinov2_timm", (_FOLDED, *torch_names.of_timm(scales=_SCALES, mlps=(("mlp.fc1", "mlp.fc1", "mlp.fc2"),)))),
    ),
    examples=("facebook/dinov2-base", "facebook/dinov2-with-registers-base", "timm/vit_base_patch14_reg4_dinov2.lvd142m"),
)
