"""All published kinds of ViT, one record each, and the names of their parameters. Imports no JAX."""

from collections.abc import Mapping
from typing import Any

from toast_jax.model.backbones import timm_arguments
from toast_jax.model.backbones.rename_rules import ADDED, Names
from toast_jax.model.backbones.vit import dinov2, dinov3, siglip, torch_names
from toast_jax.model.backbones.vit.features import DECIDES, FIELDS, SIZES, Kind, size_name

__all__ = ["DECIDES", "FIELDS", "KINDS", "NAMES", "described", "kind_of", "title"]

KINDS = (torch_names.PLAIN, dinov2.KIND, dinov3.KIND, siglip.KIND)
NAMES = Names(
    torch_names.TABLE,
    own_paths=rf"backbone/(cls_token|patch_embed/)|{ADDED}backbone/(blocks/(\d+/)?|last_\d+/)(attn/proj|mlp/fc1)/",
    has_name=lambda name, array: name.startswith(("cls_token", "patch_embed.", "blocks.")),
    layouts=tuple(layout for kind in KINDS for layout in kind.layouts),
    apart=torch_names.APART,
)


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network.

    Raises:
      Unusable: a ViT that is not supported.
    """
    fields = next((fields for kind in KINDS if (fields := kind.described(content))), None)
    # The release leaves drop-path on while it tunes a ViT.
    return fields and _with_arguments({"pool": "cls", "drop_path": 0.1, **fields}, timm_arguments.stated(content))


def _with_arguments(fields: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Change the fields of one of timm's architectures by its arguments."""
    if {"embed_dim", "depth", "num_heads", "mlp_ratio"} & arguments.keys() and fields["size"] in SIZES:
        size = SIZES[fields["size"]]
        width, depth = arguments.pop("embed_dim", size.width), arguments.pop("depth", size.depth)
        ratio = arguments.pop("mlp_ratio", (size.hidden or 4 * size.width) / size.width)
        fields |= size_name(width, depth, arguments.pop("num_heads", size.num_heads), int(width * ratio))
    for name, field in {"patch_size": "patch", "reg_tokens": "registers", "class_token": "class_token"}.items():
        if isinstance(arguments.get(name), int):
            fields[field] = arguments.pop(name)
    if fields.get("mlp") != "swiglu" and arguments.get("act_layer") in ("gelu", "gelu_tanh"):
        fields["mlp"] = arguments.pop("act_layer")
    # Without fc_norm=False, all but DINOv3 pool the mean before their last norm, as no network here does.
    pools = {"token": "cls"} | ({"avg": "mean"} if arguments.pop("fc_norm", None) is False or "rotary" in fields else {})
    if fields["pool"] == "attention":
        pools["map"] = "attention"
    if arguments.get("global_pool") in pools:
        fields["pool"] = pools[arguments.pop("global_pool")]
    timm_arguments.refuse(arguments)
    return fields


def kind_of(backbone: Any) -> Kind:
    """Return the kind of a `ViT` by its features: the last of `KINDS` that has it, as the first has all."""
    return next(kind for kind in reversed(KINDS) if kind.has(backbone))


def title(backbone: Any) -> str:
    """Return how to call a `ViT` in a sentence, such as "DINOv3 ViT"."""
    kind = kind_of(backbone)
    return f"{kind.title} ViT" if kind.tag else "ViT"
