"""A plain LLaMA, of any kind, for transformers."""

from collections.abc import Sequence
from typing import Any

from toast_jax.model.backbones.export_formats import Format, Naming, Preprocessing, transformers_config
from toast_jax.model.backbones.llama.config_json import written
from toast_jax.model.backbones.llama.network import LLaMA


def _of_transformers(backbone: LLaMA, classes: Sequence[str], preprocessing: Preprocessing | None) -> dict[str, Any]:
    return transformers_config(backbone.kind.architecture, backbone.kind.model_type, (), **written(backbone))


FORMATS = {"hf": Format(_of_transformers, lambda backbone: Naming("llama_transformers"))}
