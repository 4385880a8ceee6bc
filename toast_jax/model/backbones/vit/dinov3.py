"""The ViTs of DINOv3 (arXiv 2508.10104): their features, `config.json` and parameter names."""

import re
from collections.abc import Mapping
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.rename_rules import Layout, norm
from toast_jax.model.backbones.vit import torch_names
from toast_jax.model.backbones.vit.features import Kind, Target

_FIELDS = {"registers": 4, "rotary": 100.0, "eps": 1e-5}
_ARCHITECTURE = r"vit_(small|small_plus|base|large|huge_plus|7b)_patch(\d+)_dinov3(_qkvb)?"
_SIZES = {
    "small": {"size": "S"},
    "small_plus": {"size": "S", "mlp": "swiglu"},
    "base": {"size": "B"},
    "large": {"size": "L"},
    "huge_plus": {"size": "H+", "mlp": "swiglu"},
    "7b": {"size": "7B", "mlp": "swiglu"},
}

_POOLS = {"cls": "token", "mean": "avg"}


def _described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if match := re.fullmatch(_ARCHITECTURE, content.get("architecture", "")):
        pool = {"token": "cls"}.get(content.get("global_pool", "avg"), "mean")
        bias = "qv" if match[3] else "none"
        return {**_FIELDS, **_SIZES[match[1]], "patch": int(match[2]), "pool": pool, "qkv_bias": bias}
    biases = tuple(content.get(f"{name}_bias", name != "key") for name in ("query", "key", "value"))
    named = {(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"}
    if content.get("model_type") != "dinov3_vit" or biases not in named:
        return None
    gated = content.get("use_gated_mlp", False)
    return torch_names.of_transformers(
        content,
        content["intermediate_size"],
        act="silu" if gated else "gelu",
        mlp="swiglu" if gated else "gelu",
        registers=content.get("num_register_tokens", 0),
        rotary=float(content.get("rope_theta", 100.0)),
        qkv_bias=named[biases],
        eps=content.get("layer_norm_eps", 1e-5),
    )


def _timm(backbone: Any, size: str) -> Target | None:
    features, name = backbone.features, torch_names.timm_name(_SIZES, backbone, size)
    biases = {"qv": "_qkvb"}.get(features.qkv_bias, "")
    if not name or backbone.patch != 16 or backbone.pool not in _POOLS or (name, biases) == ("7b", "_qkvb"):
        return None
    return Target(f"vit_{name}_patch16_dinov3{biases}", "dinov3_timm", {"global_pool": _POOLS[backbone.pool]})


def _for_transformers(backbone: Any, image_size: int) -> Target:
    raise InputError("transformers has no classifier for the ViT of DINOv3; write as=timm or as=stablehlo.")


_TRANSFORMERS = (
    *torch_names.of_input(
        "embeddings.patch_embeddings", "embeddings.cls_token", "embeddings.register_tokens", mask="embeddings.mask_token:3"
    ),
    *torch_names.of_block(
        "layer.{i}",
        norms=("norm1", "norm2"),
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        proj="attention.o_proj",
        mlps=(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ("mlp.up_proj", "mlp.down_proj")),
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
    *norm("norm", "backbone/norm"),
)
_TIMM = torch_names.of_timm(scales=("gamma_1", "gamma_2"), mlps=(torch_names.GATED, ("mlp.fc1", "mlp.fc2")))
KIND = Kind(
    "DINOv3",
    tag="dinov3",
    fields=_FIELDS | {"qkv_bias": "qv"},
    described=_described,
    has=lambda backbone: backbone.features.rotary > 0,
    timm=_timm,
    transformers=_for_transformers,
    layouts=(
        Layout("dinov3_transformers", _TRANSFORMERS, sign=r"layer\.\d+\.attention\.o_proj\.weight"),
        Layout("dinov3_timm", _TIMM, "head"),
    ),
    examples=("facebook/dinov3-vitb16-pretrain-lvd1689m", "timm/vit_base_patch16_dinov3.lvd1689m"),
)
