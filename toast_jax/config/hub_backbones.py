"""Read the backbone of a repository on the Hugging Face Hub, and how it sees images, into fields of a config.

Transformers' `config.json` (ViT, DINOv2, ConvNeXt, LLaMA) and `preprocessor_config.json`, or timm's `config.json`. Imports JAX,
unlike other configs, so `backbone_names.py` imports it only for a name on the Hub.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from toast_jax import hub
from toast_jax.errors import InputError
from toast_jax.model.families import FAMILIES

_Described = tuple[str, dict[str, Any]]  # family, and fields of its backbone


def fields(name: str, reads: str) -> dict[str, Any]:
    """Return fields by dotted name: family, size and weights; for images also their size and normalization.

    Args:
      name: `hf:OWNER/NAME[@REVISION][/FILE]`.
      reads: "images" or "text", which the config is for.

    Raises:
      InputError: the repository cannot be read, or its network is none of the families and sizes here.
    """
    place = hub.parse(name)
    content = hub.read_json(place, "config.json")
    if content is None:
        raise InputError(
            f"{name} has no config.json to read a backbone from; name its size, as in backbone=vit_b16, and set "
            f"--config.backbone.weights={name}."
        )
    kind = content.get("architecture", "") or content.get("model_type", "")
    try:
        described = _of_timm(kind, content) if "architecture" in content else _MODEL_TYPES.get(kind, lambda _: None)(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config.json of {name} describes no backbone ({error!r}); choose another repository.") from error
    if not described:
        known = ", ".join(f"{record.title} ({', '.join(record.sizes)})" for record in FAMILIES.values())
        raise InputError(f"{name} is of another architecture ({kind or 'unnamed'}) or size than the networks here: {known}.")
    family, backbone = described
    if FAMILIES[family].reads != reads:
        other = {"images": "configs/folder.py", "text": "configs/alpaca.py"}[FAMILIES[family].reads]
        raise InputError(f"{name} is a {FAMILIES[family].title}, which reads {FAMILIES[family].reads}; use {other}.")
    values = {
        "backbone.family": family,
        "backbone.weights": name,
        **{f"backbone.{key}": value for key, value in backbone.items()},
    }
    if reads == "text":
        return values | {"data.tokenizer": str(hub.Place(place.repository, place.revision))}
    return values | _images(content, hub.read_json(place, "preprocessor_config.json") or {})


def _of_size(family: str, values: Mapping[str, Any], **backbone: Any) -> _Described | None:
    """Return the description of the size of a family that has these values."""
    for name, size in FAMILIES[family].sizes.items():
        if all(getattr(size, key) == value for key, value in values.items()):
            return family, {"size": name, **backbone}
    return None


def _vit(content) -> _Described | None:
    width = content["hidden_size"]
    is_plain = content.get("qkv_bias", True) and not content.get("use_swiglu_ffn", False)
    if not is_plain or content.get("intermediate_size", 4 * width) != 4 * width or content.get("mlp_ratio", 4) != 4:
        return None
    values = {"width": width, "depth": content["num_hidden_layers"], "num_heads": content["num_attention_heads"]}
    return _of_size("vit", values, patch=int(content["patch_size"]), pool="cls")


def _convnext(content) -> _Described | None:
    return _of_size("convnext", {"depths": tuple(content["depths"]), "widths": tuple(content["hidden_sizes"])})


def _llama(content) -> _Described | None:
    rope = {**content, **(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    heads, vocabulary = content["num_attention_heads"], content["vocab_size"]
    values = {
        "width": content["hidden_size"],
        "depth": content["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": content.get("num_key_value_heads") or heads,
        "hidden": content["intermediate_size"],
        "norm_eps": content.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", 10_000.0),
        "tied": content.get("tie_word_embeddings", False),
    }
    for name, size in FAMILIES["llama"].sizes.items():
        is_scaled = (size.rope_scaling is not None) == ("factor" in rope)
        if is_scaled and all(getattr(size, key) == value for key, value in values.items()):
            return "llama", {"size": name, "vocabulary": 0 if vocabulary == size.vocabulary else vocabulary}
    return None


_MODEL_TYPES: dict[str, Callable[[dict], _Described | None]] = {
    "vit": _vit,
    "dinov2": _vit,
    "convnext": _convnext,
    "llama": _llama,
}
_TIMM_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}


def _of_timm(architecture: str, content: Mapping) -> _Described | None:
    if match := re.fullmatch(r"(?:vit|deit|deit3)_(tiny|small|base|large|huge)_patch(\d+)_(?:\d+|dinov2)", architecture):
        return "vit", {"size": _TIMM_SIZES[match[1]], "patch": int(match[2]), "pool": "cls"}
    if match := re.fullmatch(r"convnext_(tiny|small|base|large)", architecture):
        return "convnext", {"size": _TIMM_SIZES[match[1]][0]}
    return None


def _images(content: Mapping, preprocessor: Mapping) -> dict[str, Any]:
    """Return size and normalization of images; fields that the files do not state keep their default."""
    if timm := content.get("pretrained_cfg"):
        preprocessor = {"size": timm.get("input_size", (3, 224, 224))[-1], "crop_pct": timm.get("crop_pct")}
        preprocessor |= {"image_mean": timm.get("mean"), "image_std": timm.get("std")}
    size, crop = _side(preprocessor.get("size")), _side(preprocessor.get("crop_size"))
    is_cropped = bool(size and crop) and preprocessor.get("do_center_crop", True)
    side = (crop if is_cropped else size) or _side(content.get("image_size")) or 224
    # Pixels are resized to a little more than the crop: to the stated size or share, or in the proportion of 256 to 224.
    larger = size if is_cropped else round(side / (preprocessor.get("crop_pct") or 224 / 256))
    values: dict[str, Any] = {"data.image_size": side, "data.resize": max(larger, side)}
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return values | ({"data.normalize": (tuple(map(float, mean)), tuple(map(float, std)))} if mean and std else {})


def _side(size: Any) -> int:
    """Return the side of the square that a `size` of a file stands for; 0 if there is none."""
    if isinstance(size, Mapping):
        size = next((size[key] for key in ("shortest_edge", "height") if key in size), 0)
    return int(size[0] if isinstance(size, (list, tuple)) else size or 0)
