"""A plain ConvNeXt for timm and for transformers."""

from collections.abc import Sequence
from typing import Any

from toast_jax.errors import InputError
from toast_jax.model.backbones.convnext.network import LAYER_NORM_EPS, SIZES, ConvNeXt
from toast_jax.model.backbones.export_formats import Format, Preprocessing, renamer, timm_config, transformers_config

_TIMM_SIZES = {"T": "convnext_tiny", "S": "convnext_small", "B": "convnext_base", "L": "convnext_large"}


def _of_timm(backbone: ConvNeXt, classes: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    sides = (tuple(backbone.depths), tuple(backbone.widths))
    size = next((name for name, size in SIZES.items() if (size.depths, size.widths) == sides), "")
    if size not in _TIMM_SIZES:
        raise InputError(
            f"timm has no name for a ConvNeXt with {', '.join(map(str, sides[0]))} blocks of width "
            f"{', '.join(map(str, sides[1]))}; write as=hf or as=stablehlo."
        )
    names: dict[str, Any] = {"layers": ("stem.0", "head.fc"), "pool": "avg", "fixed_size": False}
    return timm_config(_TIMM_SIZES[size], sides[1][-1], classes, preprocessing, **names)


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


# The release's names, which are the authors', and those of timm and of the files of transformers.
_BLOCK = r"stages\.(\d+)\.(\d+)\."
_TIMM_NAMES = (
    (r"downsample_layers\.0\.(\d)\.(\w+)", r"stem.\1.\2"),
    (r"downsample_layers\.(\d)\.(\d)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (rf"{_BLOCK}dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (rf"{_BLOCK}pwconv([12])\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (rf"{_BLOCK}(norm\.\w+|gamma)", r"stages.\1.blocks.\2.\3"),
    (r"norm\.(\w+)", r"head.norm.\1"),
    (r"head\.(\w+)", r"head.fc.\1"),
)
_TRANSFORMERS_NAMES = (
    (r"downsample_layers\.0\.0\.(\w+)", r"convnext.embeddings.patch_embeddings.\1"),
    (r"downsample_layers\.0\.1\.(\w+)", r"convnext.embeddings.layernorm.\1"),
    (r"downsample_layers\.(\d)\.(\d)\.(\w+)", r"convnext.encoder.stages.\1.downsampling_layer.\2.\3"),
    (rf"{_BLOCK}gamma", r"convnext.encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (rf"{_BLOCK}norm\.(\w+)", r"convnext.encoder.stages.\1.layers.\2.layernorm.\3"),
    (rf"{_BLOCK}((?:dw|pw)conv.*)", r"convnext.encoder.stages.\1.layers.\2.\3"),
    (r"norm\.(\w+)", r"convnext.layernorm.\1"),
    (r"head\.(\w+)", r"classifier.\1"),
)


FORMATS = {
    "timm": Format(renamer(_TIMM_NAMES), _of_timm),
    "hf": Format(renamer(_TRANSFORMERS_NAMES), _of_transformers),
}
