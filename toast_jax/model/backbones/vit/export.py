"""A plain ViT for timm and for transformers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from toast_jax.errors import InputError
from toast_jax.model.backbones.exports.formats import Format, Preprocessing, renamer, timm_config, transformers_config
from toast_jax.model.backbones.vit.features import Features
from toast_jax.model.backbones.vit.network import SIZES, ViT

_TIMM_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
_TIMM_PATCHES = {"Ti": (16,), "S": (8, 16, 32), "B": (8, 16, 32), "L": (14, 16, 32), "H": (14,)}


def _require_plain(backbone: ViT, eps: float) -> None:
    """Refuse a network that the plain ViT of the other library cannot hold."""
    plain = dataclasses.replace(Features(), eps=eps, antialias=backbone.features.antialias)
    if backbone.features != plain or backbone.pool == "attention" or backbone.hidden not in (0, 4 * backbone.width):
        raise InputError(
            "Only a plain ViT is written for another library: with a class token, a GELU of 4 times the width and learned "
            "positions, without registers; write as=stablehlo."
        )


def _of_timm(backbone: ViT, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    _require_plain(backbone, eps=1e-6)
    sides = (backbone.width, backbone.depth, backbone.num_heads)
    size = next((name for name, size in SIZES.items() if (size.width, size.depth, size.num_heads) == sides), "")
    arguments: dict[str, Any] = {} if preprocessing.size == 224 else {"img_size": preprocessing.size}
    if backbone.patch in _TIMM_PATCHES.get(size, ()):
        architecture = f"vit_{_TIMM_SIZES[size]}_patch{backbone.patch}_224"
    elif size in ("S", "B") and backbone.patch == 14:
        architecture = f"vit_{_TIMM_SIZES[size]}_patch14_dinov2"
        # LayerScale is folded into the layers before it.
        arguments = {"img_size": preprocessing.size, "init_values": None}
    else:
        raise InputError(
            f"timm has no name for a ViT of width {sides[0]}, {sides[1]} blocks, {sides[2]} heads and patch {backbone.patch}; "
            "write as=hf or as=stablehlo."
        )
    if backbone.pool == "mean":
        arguments |= {"global_pool": "avg", "fc_norm": False}  # without fc_norm=False timm would pool before its last norm
    pool = "avg" if backbone.pool == "mean" else "token"
    names: dict[str, Any] = {"layers": ("patch_embed.proj", "head"), "pool": pool, "fixed_size": True}
    return timm_config(architecture, backbone.width, classes, preprocessing, **names, **arguments)


def _of_transformers(backbone: ViT, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    _require_plain(backbone, backbone.features.eps)
    if backbone.pool == "mean":
        raise InputError(
            "The ViT of transformers classifies the class token, and this one the mean of the patches; write as=timm or "
            "as=stablehlo."
        )
    return transformers_config(
        "ViTForImageClassification",
        "vit",
        classes,
        hidden_size=backbone.width,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.num_heads,
        intermediate_size=4 * backbone.width,
        image_size=preprocessing.size,
        patch_size=backbone.patch,
        layer_norm_eps=backbone.features.eps,
        hidden_act="gelu",
        qkv_bias=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


# The release's names, which are timm's, with queries, keys and values apart, and those in the files of transformers.
_NAMES = (
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(\w+)", r"vit.embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"vit.encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"vit.encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.(query|key|value)\.(\w+)", r"vit.encoder.layer.\1.attention.attention.\2.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"vit.encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"vit.encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"vit.encoder.layer.\1.output.dense.\2"),
    (r"norm\.(\w+)", r"vit.layernorm.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
)


def _arrays_of_transformers(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    apart: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if ".attn.qkv." in name:
            parts = (name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value"))
            apart |= zip(parts, np.split(array, 3), strict=True)
        else:
            apart[name] = array
    return renamer(_NAMES)(apart)


FORMATS = {"timm": Format(dict, _of_timm), "hf": Format(_arrays_of_transformers, _of_transformers)}
