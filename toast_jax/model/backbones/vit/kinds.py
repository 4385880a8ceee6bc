"""All published kinds of ViT, one record each, and the names of their parameters. Imports no JAX."""

from collections.abc import Mapping
from typing import Any

from toast_jax.model.backbones.rename_rules import ADDED, Names
from toast_jax.model.backbones.vit import dinov2, dinov3, siglip, torch_names
from toast_jax.model.backbones.vit.features import DECIDES, FIELDS, Kind

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
    return fields and {"pool": "cls", "drop_path": 0.1, **fields}


def kind_of(backbone: Any) -> Kind:
    """Return the kind of a `ViT` by its features: the last of `KINDS` that has it, as the first has all."""
    return next(kind for kind in reversed(KINDS) if kind.has(backbone))


def title(backbone: Any) -> str:
    """Return how to call a `ViT` in a sentence, such as "DINOv3 ViT"."""
    kind = kind_of(backbone)
    return f"{kind.title} ViT" if kind.tag else "ViT"
