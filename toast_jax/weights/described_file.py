"""Compare a weights file with the `config.json` beside it, if this describes the network of the run."""

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
    """Report how a weights file contradicts its `config.json`, in place of a less specific error.

    Args:
      path: of the weights.
      backbone: the network for which the `with` block reads them.
    """
    try:
        yield
    except InputError as error:
        stated, family = _stated(path, backbone), families.of_backbone(backbone)
        if stated is None:
            raise
        family_of_file, arrays, _ = pretrained.layers(path)
        if family_of_file is not family:
            raise
        try:
            actual = family.shown(family.sized(rename.stack(arrays, backbone.last_blocks), 1))
        except (KeyError, StopIteration, ValueError):  # the file lacks what tells its size, as the error says
            raise error from None
        for name, value in actual.items():
            if value != stated[name]:
                raise _contradiction(path, name, stated[name], value) from error
        raise


def check_positions(path: str, backbone: nn.Module, embed: np.ndarray) -> None:
    """Raise InputError if a file has another number of positions than the `config.json` beside it states.

    Args:
      path: of the weights.
      backbone: the network that reads them.
      embed: position embeddings of the file, `[1, tokens, D]`.
    """
    if _stated(path, backbone) is None:
        return
    content = hub_backbones.read_beside(path) or {}
    content = content | content.get("vision_config", {})
    if not (side := hub_backbones.side_of(content.get("image_size"))):
        return
    special, patches = int(backbone.features.class_token), (side // backbone.patch) ** 2
    if embed.ndim == 3 and embed.shape[1] != special + patches:
        raise _contradiction(path, "image_size", side, f"{embed.shape[1] - special} patches")


def _contradiction(path, name, stated, actual):
    return InputError(
        f"{path} contradicts the config.json beside it: {name} is {stated} there and {actual} in the file; get both "
        "from one place."
    )


def _stated(path: str, backbone: nn.Module) -> dict[str, Any] | None:
    """Return `Family.shown` by the `config.json` beside a file; None unless that describes the backbone of the run."""
    family = families.of_backbone(backbone)
    try:
        content = hub_backbones.read_beside(str(package_files.find(path)))
        fields = content and family.described and family.described(content)
    except (InputError, KeyError, TypeError, ValueError):  # a config.json that cannot be read is ignored
        return None
    if not fields:
        return None
    name = next(name for name, record in families.FAMILIES.items() if record is family)
    defaults = {field: row.default for field, row in schema.of_family(name).items()}
    values = defaults | {"backbone.family": name} | {f"backbone.{field}": value for field, value in fields.items()}
    stated = family.shown(family.build(ConfigDict(nested(values)), backbone.last_blocks))
    return stated if stated and stated == family.shown(backbone) else None
