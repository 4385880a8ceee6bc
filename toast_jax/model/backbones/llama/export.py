"""A plain LLaMA, of any kind, for transformers."""

from collections.abc import Sequence
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.export_formats import Format, Naming, Preprocessing, transformers_config
from toast_jax.model.backbones.llama.config_json import entries, read, written
from toast_jax.model.backbones.llama.network import LLaMA


def _of_transformers(backbone: LLaMA, classes: Sequence[str], preprocessing: Preprocessing | None) -> dict[str, Any]:
    content, own = written(backbone), entries(backbone)
    stated = entries(read(content, backbone.kind))
    if wrong := [f"{key}={value}" for key, value in own.items() if stated[key] != value]:
        raise InputError(f"transformers has no {backbone.kind.title} with {' and '.join(wrong)}; write as=release.")
    return transformers_config(backbone.kind.architecture, backbone.kind.model_type, (), **content)


FORMATS = {"hf": Format(_of_transformers, lambda backbone: Naming("llama_transformers"))}
