"""SigLIP and SigLIP 2 of fixed resolution (arXiv 2303.15343, 2502.14786): features, `config.json` and parameter names."""

import re
from collections.abc import Mapping
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.rename_rules import Layout, Rename, Unusable, norm
from toast_jax.model.backbones.vit import torch_names
from toast_jax.model.backbones.vit.features import Kind, Target

_FIELDS = {"class_token": False, "pool": "attention"}
_ARCHITECTURE = r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip(_gap)?_(\d+)"
_SIZES = {"base": "B", "large": "L", "so400m": "So400m", "giantopt": "giant-opt"}
# timm's other networks have the exact GELU, though all were trained with the approximate one.
_TANH = r"base_patch32.*|large_patch16_siglip_512|so400m_patch16.*|giantopt.*"
# Transformers leaves these out of a `config.json` that agrees with them.
_DEFAULTS: dict[str, Any] = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_DEFAULTS |= {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}
_NAFLEX = (
    "it is a NaFlex SigLIP 2, which reads patches of images of any shape, and not one of fixed resolution, such as "
    "google/siglip2-base-patch16-224"
)
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if match := re.fullmatch(_ARCHITECTURE, content.get("architecture", "")):
        mlp = "gelu_tanh" if re.fullmatch(_TANH, match[0].removeprefix("vit_")) else "gelu"
        pool = "mean" if match[3] else "attention"
        return {**_FIELDS, "pool": pool, "size": _SIZES[match[1]], "patch": int(match[2]), "mlp": mlp, "antialias": True}
    if content.get("model_type") in ("siglip2", "siglip2_vision_model"):
        raise Unusable(_NAFLEX)
    if content.get("model_type") not in ("siglip", "siglip_vision_model"):
        return None
    vision = {**_DEFAULTS, **content.get("vision_config", content)}
    if (act := vision["hidden_act"]) not in _ACTIVATIONS:
        return None
    pool = "attention" if vision.get("vision_use_head", True) else "mean"
    fields = _FIELDS | {"pool": pool, "mlp": _ACTIVATIONS[act], "eps": vision["layer_norm_eps"]}
    return torch_names.of_transformers(vision, vision["intermediate_size"], act, **fields)


def _timm(backbone: Any, size: str) -> Target | None:
    name = next((name for name, own in _SIZES.items() if own == size), "")
    side = {("base", 32): 256, ("base", 16): 224, ("large", 16): 256, ("so400m", 14): 224, ("so400m", 16): 256}
    side |= {("giantopt", 16): 256}
    if (name, backbone.patch) not in side or backbone.features.mlp not in _ACTIVATIONS.values():
        return None
    pool = "_gap" if backbone.pool == "mean" else ""
    architecture = f"vit_{name}_patch{backbone.patch}_siglip{pool}_{side[name, backbone.patch]}"
    return Target(architecture, "siglip_timm", {"act_layer": backbone.features.mlp})


def _for_transformers(backbone: Any, image_size: int) -> Target:
    if backbone.pool != "mean":
        raise InputError(
            "The SigLIP of transformers classifies the mean of the patches, and this one what its attention pools; write "
            "as=timm or as=stablehlo."
        )
    act = next((name for name, own in _ACTIVATIONS.items() if own == backbone.features.mlp), "gelu")
    vision = torch_names.for_transformers(backbone, image_size, act, vision_use_head=False, model_type="siglip_vision_model")
    fields = {"model_type": "siglip", "vision_config": vision}
    return Target("SiglipForImageClassification", "siglip_transformers", fields, prefix="vision_model.")


_POOL = "backbone/attn_pool"
_TRANSFORMERS = (
    *torch_names.of_input("embeddings.patch_embedding"),
    Rename(("embeddings.position_embedding.weight",), ("backbone/pos_embed",), lambda w: (w[None],), lambda w: (w[0],)),
    *torch_names.of_block(
        "encoder.layers.{i}",
        norms=("layer_norm1", "layer_norm2"),
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        proj="self_attn.out_proj",
        mlps=(("mlp.fc1", "mlp.fc2"),),
    ),
    *norm("post_layernorm", "backbone/norm"),
    Rename(("head.probe",), (f"{_POOL}/latent",)),
    *torch_names.of_stacked("head.attention.in_proj_*", *(f"{_POOL}/{part}" for part in "qkv")),
    *torch_names.of_layer("head.attention.out_proj", f"{_POOL}/proj"),
    *norm("head.layernorm", f"{_POOL}/norm"),
    *(row for name in ("fc1", "fc2") for row in torch_names.of_layer(f"head.mlp.{name}", f"{_POOL}/mlp/{name}")),
)
KIND = Kind(
    "SigLIP",
    tag="siglip",
    fields=_FIELDS | {"mlp": "gelu_tanh"},
    described=_described,
    has=lambda backbone: not backbone.features.class_token,
    timm=_timm,
    transformers=_for_transformers,
    layouts=(
        Layout(
            "siglip_transformers",
            _TRANSFORMERS,
            "classifier",
            sign=r"embeddings\.patch_embedding\.weight",
            unused=r"text_model\..*|logit_(scale|bias)|embeddings\.position_ids",
            refusal=lambda arrays: _NAFLEX if arrays["embeddings.patch_embedding.weight"].ndim == 2 else "",
        ),
        Layout("siglip_timm", torch_names.of_timm(), "head"),
    ),
    examples=("google/siglip-base-patch16-224", "google/siglip2-base-patch16-224", "timm/vit_base_patch16_siglip_224.webli"),
)
