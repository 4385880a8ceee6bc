"""Read the backbone of a repository on the Hugging Face Hub, and how it sees images, into fields of a config.

Transformers' `config.json` (ViT, DINOv2, ConvNeXt, LLaMA) and `preprocessor_config.json`, or timm's `config.json`. Imports JAX,
unlike other configs, so `backbone_names.py` imports it only for a name on the Hub.
"""

from collections.abc import Mapping
from typing import Any

from toast_jax import hub
from toast_jax.errors import InputError
from toast_jax.model.families import FAMILIES


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
    try:
        described = {family: record.described(content) for family, record in FAMILIES.items() if record.described}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config.json of {name} describes no backbone ({error!r}); choose another repository.") from error
    family = next((family for family, backbone in described.items() if backbone), None)
    if family is None:
        kind = content.get("architecture") or content.get("model_type") or "unnamed"
        known = ", ".join(f"{record.title} ({', '.join(record.sizes)})" for record in FAMILIES.values())
        raise InputError(f"{name} is of another architecture ({kind}) or size than the networks here: {known}.")
    record = FAMILIES[family]
    if record.reads != reads:
        other = {"images": "configs/folder.py", "text": "configs/alpaca.py"}[record.reads]
        raise InputError(f"{name} is a {record.title}, which reads {record.reads}; use {other}.")
    values = {"backbone.family": family, "backbone.weights": name, "variational_weight": record.variational_weight}
    values |= {f"backbone.{key}": field.default for key, field in record.fields.items()}
    values |= {f"backbone.{key}": value for key, value in (described[family] or {}).items()}
    if reads == "text":
        return values | {"data.tokenizer": str(hub.Place(place.repository, place.revision))}
    return values | _images(content, hub.read_json(place, "preprocessor_config.json") or {})


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
