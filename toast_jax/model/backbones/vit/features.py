"""Sizes and features of ViTs as data, the config fields that hold them, and the record of a published kind of ViT.

Imports no JAX, as names of backbones are read with the config (`config/backbone_names.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from toast_jax.fields import CUSTOM, Choice, Field, Flag, real, whole
from toast_jax.model.backbones.rename_rules import Layout


@dataclasses.dataclass(frozen=True)
class Size:
    """Holds the sizes of a ViT; `hidden` is the width inside the MLP, 0 for four times the width."""

    width: int
    depth: int
    num_heads: int
    hidden: int = 0


SIZES = {
    "Mini": Size(width=64, depth=6, num_heads=4),
    "Nano": Size(width=96, depth=6, num_heads=4),  # for the demo
    "Ti": Size(width=192, depth=12, num_heads=3),
    "S": Size(width=384, depth=12, num_heads=6),
    "B": Size(width=768, depth=12, num_heads=12),
    "L": Size(width=1024, depth=24, num_heads=16),
    "H": Size(width=1280, depth=32, num_heads=16),
    "g": Size(width=1536, depth=40, num_heads=24, hidden=4096),  # DINOv2
    "H+": Size(width=1280, depth=32, num_heads=20, hidden=5120),  # DINOv3
    "7B": Size(width=4096, depth=40, num_heads=32, hidden=8192),  # DINOv3
    "So400m": Size(width=1152, depth=27, num_heads=16, hidden=4304),  # SigLIP
    "giant-opt": Size(width=1536, depth=40, num_heads=16, hidden=6144),  # SigLIP 2
    CUSTOM: Size(width=0, depth=0, num_heads=0),
}


@dataclasses.dataclass(frozen=True)
class Features:
    """Describes what distinguishes a ViT; the defaults are those of timm's plain `VisionTransformer`.

    LayerScale is not among them: files with it are folded into the layer before it.

    Attributes:
      mlp: "gelu" or "gelu_tanh" (two linear layers around the exact or the approximate GELU), or "swiglu" (gated by SiLU).
      class_token: whether a class token comes first.
      registers: number of register tokens between the class token and the patches (arXiv 2309.16588).
      rotary: base of rotary positions, which turn queries and keys of patches; 0 for learned positions at the input.
      qkv_bias: which projections of attention have a bias: "qkv", "qv" or "none".
      eps: added to the variance in every LayerNorm.
      antialias: whether the bicubic resize of learned positions is antialiased. timm's is; transformers' is for DINOv2 with
        registers only.
    """

    mlp: str = "gelu"
    class_token: bool = True
    registers: int = 0
    rotary: float = 0.0
    qkv_bias: str = "qkv"
    eps: float = 1e-6
    antialias: bool = False


POOLS = ("cls", "mean", "attention")
# Fields of `config.backbone` that a ViT has beside those of every family.
FIELDS = {
    "patch": Field(16, whole(1, 16_384), "side of a patch, in pixels"),
    "pool": Field(
        "cls",
        Choice(POOLS),
        "what the head reads: the class token, the mean of the patches, or SigLIP's attention over them",
    ),
    "width": Field(0, whole(0, 65_536), "channels of a token; 0: those of the size"),
    "depth": Field(0, whole(0, 1024), "number of blocks; 0: that of the size"),
    "num_heads": Field(0, whole(0, 1024), "attention heads of a block; 0: those of the size"),
    "hidden": Field(0, whole(0, 262_144), "channels inside the MLP; 0: those of the size, or 4 times the width"),
    "mlp": Field("gelu", Choice(("gelu", "gelu_tanh", "swiglu")), "exact or approximate GELU, or gated by SiLU"),
    "class_token": Field(True, Flag(), "whether a class token comes first"),
    "registers": Field(0, whole(0, 1024), "register tokens after the class token"),
    "rotary": Field(0.0, real(0.0), "base of rotary positions, 100 in DINOv3; 0: learned positions"),
    "qkv_bias": Field("qkv", Choice(("qkv", "qv", "none")), "which projections of attention have a bias"),
    "eps": Field(1e-6, real(above=0.0), "added to the variance in every LayerNorm"),
    "antialias": Field(False, Flag(), "whether learned positions are antialiased when they are resized, as in timm"),
}

# By regex of the parameters that only some ViTs have, the field that adds them.
DECIDES = {
    "backbone/reg_token": "registers",
    "backbone/cls_token": "class_token",
    "backbone/pos_embed": "rotary",
    "backbone/attn_pool/.*": "pool",
    "backbone/.*/mlp/gate/.*": "mlp",
    "backbone/.*/attn/[qkv]/bias": "qkv_bias",
}


def size_name(width: int, depth: int, num_heads: int, hidden: int) -> dict[str, Any]:
    """Return the config fields of a size: its name in `SIZES`, or `CUSTOM` and its numbers."""
    for name, size in SIZES.items():
        if (size.width, size.depth, size.num_heads, size.hidden or 4 * size.width) == (width, depth, num_heads, hidden):
            return {"size": name}
    return {"size": CUSTOM, "width": width, "depth": depth, "num_heads": num_heads, "hidden": hidden}


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes how another library stores a ViT with a classifier.

    Attributes:
      architecture: timm's name of the network, or the class in transformers.
      layout: name of the `Layout` of its parameters.
      fields: of the `config.json` of transformers, or arguments of timm's model.
      prefix: before the names of the layout, such as "vit."; the classifier has none.
      pools: the pooled outputs, as in `POOLS`, that the classifier concatenates; () if it reads a single one.
    """

    architecture: str
    layout: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    pools: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Describes one published kind of ViT; a new kind is a file with such a record, and its line in `kinds.py`.

    Attributes:
      title: its name in the docs, such as "DINOv3".
      tag: marks it in a backbone's name, such as "dinov3" in vit_b16_dinov3; "" for none.
      fields: of `config.backbone` where its networks differ from the defaults of `FIELDS`.
      described: `config.json -> fields` of a repository of transformers or timm; None for another network.
      has: `(ViT) -> bool`, whether the network is of this kind; later kinds of `kinds.KINDS` take precedence.
      timm: `(ViT, name of its size) -> Target`; None for a network without a name in timm.
      transformers: `(ViT, side of its images) -> Target`; raises InputError for a network that transformers lacks.
      layouts: names of its parameters in published files.
      examples: repositories on the Hugging Face Hub.
    """

    title: str
    tag: str
    fields: Mapping[str, Any]
    described: Callable[[Mapping[str, Any]], dict[str, Any] | None]
    has: Callable[[Any], bool]
    timm: Callable[[Any, str], Target | None]
    transformers: Callable[[Any, int], Target]
    layouts: tuple[Layout, ...] = ()
    examples: tuple[str, ...] = ()
