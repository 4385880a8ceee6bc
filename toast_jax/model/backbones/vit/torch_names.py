"""PyTorch's names of a ViT (the release's, DeiT's and timm's), and the rows for names of other layouts. Imports no JAX."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.errors import InputError
from toast_jax.model.backbones.rename_rules import (
    STEERED,
    Layout,
    Rename,
    bias,
    bottleneck,
    linear,
    norm,
    parts,
    patches,
    scale_and_shift,
    scaled,
    token_feedback,
    transposed,
)
from toast_jax.model.backbones.vit.features import Kind, Target, size_name

_TORCH, _PATH = "blocks.{i}", "backbone/blocks/{i}"
_ATTN, _MLP, _POOL = f"{_PATH}/attn", f"{_PATH}/mlp", "backbone/attn_pool"


def _qkv(suffix: str, prefix: str = _ATTN) -> tuple[str, ...]:
    return tuple(f"{prefix}/{part}/{suffix}" for part in "qkv")


def of_layer(torch: str, path: str) -> tuple[Rename, Rename]:
    """Rename weight and bias of a linear layer."""
    return linear(torch, path), bias(torch, path)


def of_stacked(torch: str, *paths: str) -> tuple[Rename, Rename]:
    """Rename weight and bias of linear layers that PyTorch stacks into one; `*` in its name is "weight" or "bias"."""
    ends = (("weight", "kernel"), ("bias", "bias"))
    weight, bias = (parts(torch.replace("*", old), tuple(f"{path}/{new}" for path in paths)) for old, new in ends)
    return weight, bias


def of_input(patch: str, class_token: str = "", registers: str = "", mask: str = "") -> tuple[Rename, ...]:
    """Rename the embedding of patches and the special tokens; the mask token of pre-training is written as zeros.

    Args:
      patch, class_token, registers: PyTorch's names; "" for none.
      mask: PyTorch's name of the mask token and the number of its axes, as in "mask_token:3"; "" for none.
    """
    rows = []
    if mask:
        name, axes = mask.split(":")
        blank = (1,) * (int(axes) - 1)
        both = (class_token, name), ("backbone/cls_token",)
        rows.append(Rename(*both, lambda cls, mask: (cls,), lambda cls: (cls, np.zeros((*blank, cls.shape[-1]), cls.dtype))))
    rows += [Rename((class_token,), ("backbone/cls_token",))] if class_token else []
    rows += [Rename((registers,), ("backbone/reg_token",))] if registers else []
    return (*rows, patches(patch, "backbone/patch_embed"), bias(patch, "backbone/patch_embed"))


def of_block(
    block: str,
    *,
    norms: tuple[str, str],
    attention: tuple[str, ...],
    proj: str,
    mlps: tuple[tuple[str, ...], ...],
    scales: tuple[str, str] = ("", ""),
) -> tuple[Rename, ...]:
    """Rename the parameters of a block.

    Args:
      block: PyTorch's name of the block; all others are relative to it.
      norms: both LayerNorms.
      attention: the layers of queries, keys and values, or a joint one.
      proj: the layer after attention.
      mlps: the layers `gate, fc1, fc2` of a gated MLP, where equal names are one stacked array, and `fc1, fc2` of a plain one.
      scales: LayerScale after attention and after the MLP; "" for none.
    """
    full = lambda name: name and f"{block}.{name}"  # noqa: E731
    rows = [row for own, path in zip(norms, ("norm1", "norm2"), strict=True) for row in norm(full(own), f"{_PATH}/{path}")]
    rows += _first_layers(tuple(map(full, attention)), tuple(f"{_ATTN}/{part}" for part in "qkv"))
    last = [(proj, scales[0], f"{_ATTN}/proj")]
    for *first, fc2 in mlps:
        rows += _first_layers(tuple(map(full, first)), (f"{_MLP}/gate", f"{_MLP}/fc1")[-len(first) :])
        last.append((fc2, scales[1], f"{_MLP}/fc2"))
    for name, scale, path in dict.fromkeys(last):
        rows += [scaled(full(name), full(scale), path)] if scale else of_layer(full(name), path)
    return tuple(rows)


def _first_layers(names, paths):
    """Rename layers of the same input, which PyTorch may stack."""
    if len(set(names)) < len(paths):
        return of_stacked(f"{names[0]}.*", *paths)
    if len(paths) == 2:
        # Gate and fc1 in one row each, so that fc1 without a gate is left to the plain MLP.
        return [_pair(names, paths, "weight", "kernel"), _pair(names, paths, "bias", "bias")]
    return [row for name, path in zip(names, paths, strict=True) for row in of_layer(name, path)]


def _pair(names, paths, old, new):
    swap = lambda *arrays: tuple(array.T for array in arrays)  # noqa: E731
    return Rename(tuple(f"{name}.{old}" for name in names), tuple(f"{path}/{new}" for path in paths), swap, swap)


# Biases of queries and values beside a joint kernel without biases (DINOv3), and SigLIP's pooling, as in timm.
_TIMM_ALONE = (
    Rename((f"{_TORCH}.attn.q_bias",), (f"{_ATTN}/q/bias",)),
    Rename((f"{_TORCH}.attn.v_bias",), (f"{_ATTN}/v/bias",)),
    Rename(("attn_pool.latent",), (f"{_POOL}/latent",)),
    *of_layer("attn_pool.q", f"{_POOL}/q"),
    *of_stacked("attn_pool.kv.*", f"{_POOL}/k", f"{_POOL}/v"),
    *(
        row
        for name in ("proj", "mlp.fc1", "mlp.fc2")
        for row in of_layer(f"attn_pool.{name}", f"{_POOL}/{name}".replace(".", "/"))
    ),
    *norm("attn_pool.norm", f"{_POOL}/norm"),
)
_BLOCK: dict[str, Any] = {
    "norms": ("norm1", "norm2"),
    "attention": ("attn.qkv",),
    "proj": "attn.proj",
    "mlps": (("mlp.fc1", "mlp.fc2"),),
}
_TIMM_INPUT = of_input("patch_embed.proj", "cls_token", "reg_token")
_POSITIONS = Rename(("pos_embed",), ("backbone/pos_embed",))
_NORM = norm("norm", "backbone/norm")


def of_timm(**block: Any) -> tuple[Rename, ...]:
    """Rename timm's parameters; arguments as in `of_block`, where they differ from those of a plain ViT."""
    return (*_TIMM_INPUT, _POSITIONS, *of_block(_TORCH, **_BLOCK | block), *_TIMM_ALONE, *_NORM)


# A block whose queries, keys and values are separate layers, and whose LayerScale is not folded.
APART = of_block(_TORCH, **_BLOCK | {"attention": ("attn.q", "attn.k", "attn.v"), "scales": ("ls1.gamma", "ls2.gamma")})
GATED = ("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")  # the gate in an array of its own
TABLE = (
    *of_timm(mlps=(GATED, ("mlp.fc1", "mlp.fc2"))),
    *STEERED,
    *token_feedback(),
    # Low-rank deltas: one A for the joint qkv kernel, and its B in three.
    transposed(f"{_TORCH}.attn.qkv.lora_A", f"lora/{_PATH}/attn/a"),
    parts(f"{_TORCH}.attn.qkv.lora_B", _qkv("b", f"lora/{_ATTN}")),
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
    # Parts that the paper's network lacks are named after themselves; keys without a bias have no shift.
    *(row for part in "qkv" for row in scale_and_shift(f"{_TORCH}.attn.{part}.", (f"{_ATTN}/{part}",))),
    *scale_and_shift(f"{_TORCH}.mlp.gate.", (f"{_MLP}/gate",)),
    *(
        row
        for name in ("q", "k", "v", "proj", "norm", "mlp.fc1", "mlp.fc2")
        for row in scale_and_shift(f"attn_pool.{name}.", (f"{_POOL}/{name}".replace(".", "/"),))
    ),
    # Deep prompts are two parameters in the release: the first block's, and all others'.
    Rename(
        ("prompt_embeddings", "deep_prompt_embeddings"),
        ("prompts/tokens",),
        lambda first, others: (np.concatenate([first, others]),),
        lambda tokens: (tokens[:1], tokens[1:]),
    ),
    Rename(("prompt_embeddings",), ("prompts/tokens",)),
)


_ARCHITECTURE = r"(?:vit|deit|deit3)_(tiny|small|base|large|huge)_patch(\d+)_\d+"
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}


def _described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    if match := re.fullmatch(_ARCHITECTURE, content.get("architecture", "")):
        return {"size": _SIZES[match[1]], "patch": int(match[2]), "antialias": True}
    if content.get("model_type") != "vit" or not content.get("qkv_bias", True):
        return None
    # Transformers' default, 1e-12, stands for the 1e-6 that Google's networks were trained with, and timm has.
    eps = content.get("layer_norm_eps", 1e-12)
    return of_transformers(content, content.get("intermediate_size"), eps=1e-6 if eps == 1e-12 else eps)


def of_transformers(content: Mapping[str, Any], hidden: int | None, act: str = "gelu", **fields: Any) -> dict[str, Any] | None:
    """Read size and patch from the `config.json` of transformers; None for another activation or an odd number of heads.

    Args:
      content: of the file.
      hidden: channels inside the MLP; None for four times the width.
      act: the activation of the network.
      fields: further fields of `config.backbone`, returned with them.
    """
    width, depth, heads = (content[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if width % heads or content.get("hidden_act", act) != act:
        return None
    size = size_name(width, depth, heads, 4 * width if hidden is None else hidden)
    return {**size, "patch": int(content["patch_size"]), **fields}


def for_transformers(backbone: Any, image_size: int, act: str = "gelu", **fields: Any) -> dict[str, Any]:
    """Return the fields of a `ViT` in the `config.json` of transformers; undoes `of_transformers`."""
    return {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.hidden or 4 * backbone.width,
        "image_size": image_size,
        "patch_size": backbone.patch,
        "layer_norm_eps": backbone.features.eps,
        "hidden_act": act,
        **fields,
    }


# Of timm's `VisionTransformer`, by pooling; without fc_norm=False it would pool the mean before its last norm.
TIMM_POOLS: dict[str, dict[str, Any]] = {"cls": {}, "mean": {"global_pool": "avg", "fc_norm": False}}
_PATCHES = {"Ti": (16,), "S": (8, 16, 32), "B": (8, 16, 32), "L": (14, 16, 32), "H": (14,)}


def timm_name(sizes: Mapping[str, Mapping[str, Any]], backbone: Any, size: str) -> str:
    """Return timm's name of a size, from the fields of each such name, "mlp" among them only if it is gated; "" for none."""
    fields = {"size": size} | ({"mlp": "swiglu"} if backbone.features.mlp == "swiglu" else {})
    return next((name for name, own in sizes.items() if own == fields), "")


def _timm(backbone: Any, size: str) -> Target | None:
    if backbone.patch not in _PATCHES.get(size, ()) or backbone.pool not in TIMM_POOLS:
        return None
    name = next(name for name, own in _SIZES.items() if own == size)
    return Target(f"vit_{name}_patch{backbone.patch}_224", "vit_timm", TIMM_POOLS[backbone.pool])


def _transformers(backbone: Any, image_size: int) -> Target:
    if backbone.pool == "mean":
        raise InputError(
            "The ViT of transformers classifies the class token, and this one the mean of the patches; write as=timm or "
            "as=stablehlo."
        )
    fields = for_transformers(backbone, image_size, qkv_bias=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    fields |= {"model_type": "vit"}
    return Target("ViTForImageClassification", "vit_transformers", fields, prefix="vit.", pools=("cls",))


# How files of transformers with a plain ViT, or a DINOv2 without registers and gate, are read. Version 5 renamed layers
# (https://github.com/huggingface/transformers/pull/41693); its names of the MLP are those of DINOv2.
LOOSE: dict[str, Any] = {
    "loose_sign": r"embeddings\.patch_embeddings\.projection\..*",
    "respelled": {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
    },
}


def in_transformers(*, registers: str = "", mask: str = "", **block: Any) -> tuple[Rename, ...]:
    """Rename the parameters of transformers' ViT, and of DINOv2 there; `block` is what differs, as in `of_block`."""
    names: dict[str, Any] = {
        "norms": ("layernorm_before", "layernorm_after"),
        "attention": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "proj": "attention.output.dense",
        "mlps": (("intermediate.dense", "output.dense"),),
    }
    return (
        *of_input("embeddings.patch_embeddings.projection", "embeddings.cls_token", registers, mask),
        Rename(("embeddings.position_embeddings",), ("backbone/pos_embed",)),
        *of_block("encoder.layer.{i}", **names | block),
        *norm("layernorm", "backbone/norm"),
    )


PLAIN = Kind(
    "plain ViT",
    tag="",
    fields={},
    described=_described,
    has=lambda backbone: True,
    timm=_timm,
    transformers=_transformers,
    layouts=(
        Layout("vit_timm", of_timm(), "head"),
        Layout(
            "vit_transformers",
            in_transformers(),
            "classifier",
            **LOOSE,
            unused=r"pooler\.dense\..*|embeddings\.mask_token|decoder\..*",
        ),
    ),
    examples=("google/vit-base-patch16-224-in21k", "timm/vit_base_patch16_224.augreg_in21k"),
)
