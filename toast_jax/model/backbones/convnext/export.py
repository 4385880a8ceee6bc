"""A plain ConvNeXt for timm and for transformers."""

from collections.abc import Sequence
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.convnext.network import LAYER_NORM_EPS, ConvNeXt
from toast_jax.model.backbones.convnext.torch_names import TIMM_SIZES, size_name
from toast_jax.model.backbones.export_formats import Format, Naming, Preprocessing, timm_config, transformers_config


def _of_timm(backbone: ConvNeXt, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    size = size_name(backbone.depths, backbone.widths)
    name = next((name for name, own in TIMM_SIZES.items() if own == size), "")
    if not name:
        raise InputError(
            f"timm has no name for a ConvNeXt with {', '.join(map(str, backbone.depths))} blocks of width "
            f"{', '.join(map(str, backbone.widths))}; write as=hf or as=stablehlo."
        )
    names: dict[str, Any] = {"layers": ("stem.0", "head.fc"), "pool": "avg", "fixed_size": False}
    return timm_config(name, backbone.widths[-1], classes, preprocessing, **names)


def _of_transformers(backbone: ConvNeXt, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    return transformers_config(
        "ConvNextForImageClassification",
        "convnext",
        classes,
        depths=list(backbone.depths),
        hidden_sizes=list(backbone.widths),
        num_stages=len(backbone.depths),
        patch_size=4,
        image_size=preprocessing.size,
        layer_norm_eps=LAYER_NORM_EPS,
        hidden_act="gelu",
        drop_path_rate=0.0,
    )


FORMATS = {
    "timm": Format(_of_timm, lambda backbone: Naming("convnext_timm")),
    "hf": Format(_of_transformers, lambda backbone: Naming("convnext_transformers", "convnext.")),
}
