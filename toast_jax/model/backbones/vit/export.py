"""A ViT with a classifier for timm and for transformers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from toast_jax.errors import InputError
from toast_jax.fields import CUSTOM
from toast_jax.model.backbones.export_formats import Format, Naming, Preprocessing, timm_config, transformers_config
from toast_jax.model.backbones.vit import kinds
from toast_jax.model.backbones.vit.features import SIZES, Size, Target, size_name
from toast_jax.model.backbones.vit.network import ViT

_POOLS = {"cls": "token", "mean": "avg", "attention": "map"}


def _for_timm(backbone: ViT) -> Target:
    sides = (backbone.width, backbone.depth, backbone.num_heads)
    size = size_name(*sides, backbone.hidden or 4 * backbone.width)["size"]
    if target := kinds.kind_of(backbone).timm(backbone, size):
        return target
    raise InputError(
        f"timm has no name for a {kinds.title(backbone)} of width {sides[0]}, {sides[1]} blocks, {sides[2]} heads and patch "
        f"{backbone.patch}; write as=hf or as=stablehlo."
    )


def _of_timm(backbone: ViT, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    target = _for_timm(backbone)
    arguments = dict(target.fields)
    if not target.architecture.endswith(f"_{preprocessing.size}"):
        arguments["img_size"] = preprocessing.size
    names: dict[str, Any] = {"layers": ("patch_embed.proj", "head"), "pool": _POOLS[backbone.pool], "fixed_size": True}
    config = timm_config(target.architecture, backbone.width, classes, preprocessing, **names, **arguments)
    return _checked(backbone, "timm", config, pool=backbone.pool)


def _of_transformers(backbone: ViT, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    target = kinds.kind_of(backbone).transformers(backbone, preprocessing.size)
    if backbone.pool not in (target.pools or (backbone.pool,)):
        raise InputError(f"transformers has no {kinds.title(backbone)} with attention pooling; write as=stablehlo.")
    return _checked(backbone, "transformers", transformers_config(target.architecture, classes=classes, **target.fields))


def _checked(backbone: ViT, library: str, config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a `config.json`; InputError unless it describes the network, by its features and `fields`, as when it is read."""
    described = {name: field.default for name, field in kinds.FIELDS.items()} | (kinds.described(config) or {})
    own = {**dataclasses.asdict(backbone.features), "patch": backbone.patch} | fields | _size_of(vars(backbone))
    read = described | _size_of(dataclasses.asdict(SIZES[described.get("size", CUSTOM)]) | _positive(described))
    # Positions are resized when a file is read, and never again.
    if wrong := [f"{name}={value}" for name, value in own.items() if name != "antialias" and read[name] != value]:
        raise InputError(f"{library} has no {kinds.title(backbone)} with {' and '.join(wrong)}; write as=stablehlo.")
    return config


def _positive(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: fields[field.name] for field in dataclasses.fields(Size) if fields.get(field.name)}


def _size_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    sides = {field.name: fields[field.name] for field in dataclasses.fields(Size)}
    return sides | {"hidden": sides["hidden"] or 4 * sides["width"]}


def _naming(target: Target, pool: str) -> Naming:
    pools = target.pools or (pool,)
    return Naming(target.layout, target.prefix, pools.index(pool), len(pools))


FORMATS = {
    "timm": Format(_of_timm, lambda backbone: _naming(_for_timm(backbone), backbone.pool)),
    "hf": Format(_of_transformers, lambda backbone: _naming(kinds.kind_of(backbone).transformers(backbone, 0), backbone.pool)),
}
