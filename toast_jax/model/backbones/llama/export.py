"""A plain LLaMA, of any kind, for transformers."""

from collections.abc import Sequence
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.export_formats import Format, Naming, Preprocessing, transformers_config
from toast_jax.model.backbones.llama.config_json import written
from toast_jax.model.backbones.llama.network import LLaMA


def _of_transformers(backbone: LLaMA, classes: Sequence[str], preprocessing: Preprocessing | None) -> dict[str, Any]:
    kind = backbone.kind
    if backbone.window and not kind.window_entries(backbone.window):
        raise InputError(
            f"The {kind.title} of transformers has no window, and this one has backbone.window={backbone.window}; only the "
            "folder of the run can hold it."
        )
    return transformers_config(kind.architecture, kind.model_type, (), **written(backbone))


FORMATS = {"hf": Format(_of_transformers, lambda backbone: Naming("llama_transformers"))}
