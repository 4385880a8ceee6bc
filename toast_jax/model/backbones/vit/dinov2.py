"""DINOv2 with or without registers (arXiv 2304.07193, 2309.16588): its features, `config.json` and parameter names."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.errors import InputError
from toast_jax.model.backbones.rename_rules import Layout, Rename
from toast_jax.model.backbones.vit import torch_names
from toast_jax.model.backbones.vit.features import Kind, Target, size_name

_ARCHITECTURE = r"vit_(small|base|large|giant)_patch(\d+)(?:_reg(\d+))?_dinov2"
_SIZES = {"small": {"size": "S"}, "base": {"size": "B"}, "large": {"size": "L"}, "giant": {"size": "g", "mlp": "swiglu"}}


def _described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if match := re.fullmatch(_ARCHITECTURE, content.get("architecture", "")):
        return {**_SIZES[match[1]], "patch": int(match[2]), "registers": int(match[3] or 0), "antialias": True}
    kind = content.get("model_type")
    if kind not in ("dinov2", "dinov2_with_registers") or not content.get("qkv_bias", True):
        return None
    registers = content.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0
    gated = content.get("use_swiglu_ffn", False)
    hidden = _hidden(content.get("mlp_ratio", 4), content["hidden_size"], gated)
    fields = {"mlp": "swiglu" if gated else "gelu", "registers": registers, "antialias": kind == "dinov2_with_registers"}
    return torch_names.of_transformers(content, hidden, eps=content.get("layer_norm_eps", 1e-6), **fields)


def _has(backbone: Any) -> bool:
    """A plain ViT of size S or B has no patches of 14 pixels."""
    features, hidden = backbone.features, backbone.hidden or 4 * backbone.width
    if features.registers or features.mlp == "swiglu":
        return True
    return backbone.patch == 14 and size_name(backbone.width, backbone.depth, backbone.num_heads, hidden)["size"] in ("S", "B")


def _timm(backbone: Any, size: str) -> Target | None:
    features, name = backbone.features, torch_names.timm_name(_SIZES, backbone, size)
    if not name or backbone.patch != 14 or features.registers not in (0, 4) or backbone.pool not in torch_names.TIMM_POOLS:
        return None
    registers = f"_reg{features.registers}" if features.registers else ""
    return Target(f"vit_{name}_patch14{registers}_dinov2", "dinov2_timm", torch_names.TIMM_POOLS[backbone.pool])


def _for_transformers(backbone: Any, image_size: int) -> Target:
    features, width, hidden = backbone.features, backbone.width, backbone.hidden or 4 * backbone.width
    gated = features.mlp == "swiglu"
    ratio = next((ratio for ratio in range(1, 17) if _hidden(ratio, width, gated) == hidden), None)
    if ratio is None:
        raise InputError(
            f"The MLP of a DINOv2 in transformers is a whole number of times the width, and here it has {hidden} channels for "
            f"{width}; write as=stablehlo."
        )
    name, kind = ("Dinov2WithRegisters", "dinov2_with_registers") if features.registers else ("Dinov2", "dinov2")
    fields = torch_names.for_transformers(backbone, image_size, mlp_ratio=ratio, use_swiglu_ffn=gated, qkv_bias=True)
    fields |= {"model_type": kind} | ({"num_register_tokens": features.registers} if features.registers else {})
    del fields["intermediate_size"]
    return Target(f"{name}ForImageClassification", "dinov2_transformers", fields, prefix=f"{kind}.", pools=("cls", "mean"))


def _hidden(ratio: int | float, width: int, gated: bool) -> int:
    """Return the channels inside the MLP as transformers computes them."""
    hidden = int(ratio * width)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _with_class_row(cls, registers, pos):
    """Put a class row of zeros before the positions of the patches."""
    rows = np.arange(-1, pos.shape[1])
    return cls, registers, pos[:, np.maximum(rows, 0)] * (rows >= 0)[:, None]


def _transformers(*mlp: str, **loose: Any) -> Layout:
    table = torch_names.in_transformers(
        registers="embeddings.register_tokens",
        mask="embeddings.mask_token:2",
        norms=("norm1", "norm2"),
        mlps=(mlp,),
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    )
    sign = r"embeddings\.register_tokens|encoder\.layer\.\d+\.mlp\.weights_in\.weight"
    return Layout("dinov2_transformers", table, "classifier", sign, **loose)


# Where there are registers, timm adds the position of the class token to it.
_FOLDED = Rename(
    ("cls_token", "reg_token", "pos_embed"),
    ("backbone/cls_token", "backbone/reg_token", "backbone/pos_embed"),
    _with_class_row,
    lambda cls, registers, pos: (cls + pos[:, :1], registers, pos[:, 1:]),
)
_SCALES, _STACKED = ("ls1.gamma", "ls2.gamma"), (("mlp.fc1", "mlp.fc1", "mlp.fc2"),)
KIND = Kind(
    "DINOv2",
    tag="dinov2",
    fields={},
    described=_described,
    has=_has,
    timm=_timm,
    transformers=_for_transformers,
    layouts=(
        _transformers("mlp.fc1", "mlp.fc2", **torch_names.LOOSE),
        _transformers("mlp.weights_in", "mlp.weights_in", "mlp.weights_out"),
        Layout("dinov2_timm", (_FOLDED, *torch_names.of_timm(scales=_SCALES)), "head"),
        Layout("dinov2_timm", (_FOLDED, *torch_names.of_timm(scales=_SCALES, mlps=_STACKED)), "head"),
    ),
    examples=("facebook/dinov2-base", "facebook/dinov2-with-registers-base", "timm/vit_base_patch14_reg4_dinov2.lvd142m"),
)
