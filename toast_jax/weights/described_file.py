"""Compare a file of weights with the `config.json` beside it, where the network of a run is the one that this describes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from toast_jax import package_files
from toast_jax.config import hub_backbones, schema
from toast_jax.errors import InputError
from toast_jax.fields import nested
from toast_jax.model import families
from toast_jax.weights import pretrained, rename


@contextlib.contextmanager
def explained(path: str, backbone: nn.Module) -> Iterator[None]:
    """Replace the refusal of a file by a sentence about its `config.json`, if that is what contradicts the arrays.

    Args:
      path: of the weights.
      backbone: the network that the block inside reads them for.
    """
    try:
        yield
    except InputError as error:
        says, family = _said(path, backbone), families.of_backbone(backbone)
        if says is None:
            raise
        in_file, arrays, _ = pretrained.layers(path)
        if in_file is not family:
            raise
        shows = family.shown(family.sized(rename.stack(arrays, backbone.last_blocks), 1))
        for name, value in shows.items():
            if value != says[name]:
                raise _contradiction(path, name, says[name], value) from error
        raise


def check_positions(path: str, backbone: nn.Module, embed: np.ndarray) -> None:
    """Raise InputError if the `config.json` of transformers beside a file says other positions than it holds.

    Args:
      path: of the weights.
      backbone: the network that reads them.
      embed: position embeddings of the file, `[1, tokens, D]`.
    """
    if _said(path, backbone) is None:
        return
    content = hub_backbones.read_beside(path) or {}
    content = content | content.get("vision_config", {})
    if not (side := content.get("image_size")):
        return
    special, patches = int(backbone.features.class_token), (side // backbone.patch) ** 2
    if embed.ndim == 3 and embed.shape[1] != special + patches:
        raise _contradiction(path, "image_size", side, f"{embed.shape[1] - special} patches")


def _contradiction(path, name, says, shows):
    return InputError(
        f"{path} contradicts the config.json beside it: {name} is {says} there and {shows} in the file; get both "
        "from one place."
    )


def _said(path: str, backbone: nn.Module) -> dict[str, Any] | None:
    """Return what the `config.json` beside a file says of its shapes, if it describes the backbone of the run; else None."""
    family = families.of_backbone(backbone)
    try:
        content = hub_backbones.read_beside(str(package_files.find(path)))
        fields = content and family.described and family.described(content)
    except (InputError, KeyError, TypeError, ValueError):  # the file is read without it
        return None
    if not fields:
        return None
    name = next(name for name, record in families.FAMILIES.items() if record is family)
    defaults = {field: row.default for field, row in schema.of_family(name).items()}
    values = defaults | {"backbone.family": name} | {f"backbone.{field}": value for field, value in fields.items()}
    says = family.shown(family.build(ConfigDict(nested(values)), backbone.last_blocks))
    return says if says and says == family.shown(backbone) else None
