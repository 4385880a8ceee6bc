"""Read the backbone of a repository on the Hugging Face Hub, or of a folder like one, into fields of a config.

Transformers' `config.json` and `preprocessor_config.json`, or timm's `config.json`. Imports JAX, unlike other configs, so
`backbone_names.py` imports it only for such a name.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax import hub
from toast_jax.config import peft_adapters
from toast_jax.errors import InputError
from toast_jax.model.backbones.rename_rules import Unusable
from toast_jax.model.families import FAMILIES


def fields(name: str, reads: str) -> dict[str, Any]:
    """Return fields by dotted name: family, size and weights; for images also their size and normalization.

    Args:
      name: `hf:OWNER/NAME[@REVISION][/FILE]`, or a folder or a file with a `config.json` beside it.
      reads: "images" or "text", which the config is for.

    Raises:
      InputError: the repository cannot be read, or its network is none of the families and sizes here.
    """
    is_remote = hub.is_place(name)
    read = functools.partial(hub.read_json, hub.parse(name)) if is_remote else functools.partial(read_beside, name)
    content = read("config.json")
    if content is None:
        if read(peft_adapters.FILE) is not None:
            raise peft_adapters.refusal(name)
        raise InputError(
            f"{name} has no config.json to read a backbone from; name its size, as in backbone=vit_b16, and set "
            f"--config.backbone.weights={name}."
        )
    if "quantization_config" in content:
        raise InputError(f"{name} is quantized, by its config.json; choose the repository of the original weights.")
    try:
        described = {family: record.described(content) for family, record in FAMILIES.items() if record.described}
    except Unusable as error:
        raise InputError(f"{name} cannot be used: {error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"config.json of {name} describes no backbone ({error!r}); choose another repository.") from error
    family = next((family for family, backbone in described.items() if backbone), None)
    if family is None:
        kind = content.get("architecture") or content.get("model_type") or "unnamed"
        records = [record for record in FAMILIES.values() if record.reads == reads]
        known = ", ".join(f"{record.title} ({', '.join(record.sizes)})" for record in records)
        raise InputError(f"{name} is of another architecture ({kind}) or size than the networks here: {known}.")
    record = FAMILIES[family]
    if record.reads != reads:
        other = {"images": "configs/folder.py", "text": "configs/alpaca.py"}[record.reads]
        raise InputError(f"{name} is a {record.title}, which reads {record.reads}; use {other}.")
    weights = name if is_remote else _weights_of(name)
    values = {"backbone.family": family, "backbone.weights": weights, "variational_weight": record.variational_weight}
    values |= {f"backbone.{key}": field.default for key, field in record.fields.items()}
    values |= {f"backbone.{key}": value for key, value in (described[family] or {}).items()}
    if reads == "text":
        return values | {"data.tokenizer": _tokenizer_of(name)}
    multiple = record.image_multiple(ConfigDict(described[family]))
    return values | _images(content | content.get("vision_config", {}), read("preprocessor_config.json") or {}, multiple)


def read_beside(path: str, file: str = "config.json") -> dict[str, Any] | None:
    """Read a JSON object in a folder, or beside a file; None without it. InputError if it holds anything else."""
    place = Path(path).expanduser()
    place = (place if place.is_dir() else place.parent) / file
    if not place.is_file():
        return None
    try:
        content = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read as JSON ({error}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{place} is not a JSON object; copy or download it again.")
    return content


def _weights_of(name: str) -> str:
    """Return the file of weights in a folder, chosen as in a repository; a file is returned as it is."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    if file := next((file for pattern in hub.WEIGHTS for file in sorted(folder.glob(pattern))), None):
        return str(file)
    raise InputError(f"{name} has no file of weights ({', '.join(hub.WEIGHTS)}); give a folder with one.")


def _tokenizer_of(name: str) -> str:
    """Return the repository or folder of a name, whose tokenizer is beside the weights."""
    if hub.is_place(name):
        place = hub.parse(name)
        return str(hub.Place(place.repository, place.revision))
    path = Path(name).expanduser()
    return str(path if path.is_dir() else path.parent)


def _images(content: Mapping, preprocessor: Mapping, multiple: int) -> dict[str, Any]:
    """Return size, a multiple of `multiple`, and normalization of images; fields that no file states keep their default."""
    if timm := content.get("pretrained_cfg"):
        preprocessor = {"size": timm.get("input_size", (3, 224, 224))[-1], "crop_pct": timm.get("crop_pct")}
        preprocessor |= {"image_mean": timm.get("mean"), "image_std": timm.get("std")}
    size, crop = side_of(preprocessor.get("size")), side_of(preprocessor.get("crop_size"))
    is_cropped = bool(size and crop) and preprocessor.get("do_center_crop", True)
    side = (crop if is_cropped else size) or side_of(content.get("image_size")) or 224
    # Pixels are resized to a little more than the crop: to the stated size or share, or in the proportion of 256 to 224.
    # Rounded down, as timm and transformers do.
    larger = size if is_cropped else int(side / (preprocessor.get("crop_pct") or 224 / 256))
    # SigLIP's 384 pixels are not a multiple of 14: a smaller crop, of as many patches.
    values: dict[str, Any] = {"data.image_size": max(1, side // multiple) * multiple, "data.resize": max(larger, side)}
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return values | ({"data.normalize": (tuple(map(float, mean)), tuple(map(float, std)))} if mean and std else {})


def side_of(size: Any) -> int:
    """Return the side of the square that a `size` of a file stands for; 0 if there is none."""
    if isinstance(size, Mapping):
        size = next((size[key] for key in ("shortest_edge", "height") if key in size), 0)
    return int(size[0] if isinstance(size, (list, tuple)) else size or 0)
