"""Build a ViT from the shapes of its parameters, and list the properties that these shapes show."""

from collections.abc import Mapping
from typing import Any

from toast_jax.model.backbones.vit.features import Features
from toast_jax.model.backbones.vit.network import ViT
from toast_jax.model.layers.arrays import Array


def sized(arrays: Mapping[str, Array], head_width: int) -> ViT:
    """Build the ViT that parameters belong to, from their shapes.

    Args:
      arrays: by path, stacked.
      head_width: K of the attention, which no shape shows.
    """
    embedding = arrays["backbone/patch_embed/kernel"]
    block = next(path.rpartition("norm1/")[0] for path in arrays if path.endswith("norm1/scale"))
    last = len({path.split("/")[1] for path in arrays if path.startswith("backbone/last_")})
    has = lambda name: f"backbone/{name}" in arrays  # noqa: E731
    features = Features(
        mlp="swiglu" if f"{block}mlp/gate/kernel" in arrays else "gelu",
        class_token=has("cls_token"),
        registers=arrays["backbone/reg_token"].shape[1] if has("reg_token") else 0,
        rotary=0.0 if has("pos_embed") else 100.0,
        qkv_bias="".join(name for name in "qkv" if f"{block}attn/{name}/bias" in arrays) or "none",
        eps=1e-6 if has("pos_embed") else 1e-5,
    )
    patches = arrays["backbone/pos_embed"].shape[1] - features.class_token if has("pos_embed") else 0
    hidden, width = arrays[f"{block}mlp/fc2/kernel"].shape[-2:]
    return ViT(
        width=width,
        depth=last + len(arrays.get("backbone/blocks/norm1/scale", ())),
        num_heads=width // head_width,
        patch=round((embedding.shape[0] / 3) ** 0.5),
        grid=round(patches**0.5),
        last_blocks=last,
        pool="attention" if has("attn_pool/latent") else "cls",
        features=features,
        hidden=0 if hidden == 4 * width else hidden,
    )


def shown(model: ViT) -> dict[str, Any]:
    """Return the properties of a ViT that show in the shapes of its parameters, by the names of `Size` and `Features`."""
    features = model.features
    return {
        "width": model.width,
        "depth": model.depth,
        "hidden": model.hidden or 4 * model.width,
        "patch": model.patch,
        "gate": features.mlp == "swiglu",
        "class_token": features.class_token,
        "registers": features.registers,
        "rotary": features.rotary > 0,
        "qkv_bias": features.qkv_bias,
        "attention pooling": model.pool == "attention",
    }
