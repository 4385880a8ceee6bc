"""PyTorch's names of a ConvNeXt (the authors', which are the release's, timm's and transformers'), and its sizes in files."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toast_jax.model.backbones import timm_arguments
from toast_jax.model.backbones.convnext.network import SIZES, STRIDES, ConvNeXt
from toast_jax.model.backbones.rename_rules import (
    ADDED,
    STEERED,
    Layout,
    Names,
    Rename,
    bias,
    bottleneck,
    linear,
    low_rank,
    norm,
    patches,
    scale_and_shift,
)


def _transposed_patches(torch: str, path: str, side: int) -> Rename:
    """A transposed convolution whose stride is its kernel size, as a matrix with columns ordered as in `patches.join`."""

    def forward(w):
        return (w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1),)

    def backward(w):
        return (w.reshape(len(w), side, side, -1).transpose(0, 3, 1, 2),)

    return Rename((f"{torch}.weight",), (path,), forward, backward)


def _pointwise(torch: str, path: str) -> Rename:
    return Rename((f"{torch}.weight",), (path,), lambda w: (w[:, :, 0, 0].T,), lambda w: (w.T[:, :, None, None],))


def _depthwise(torch: str, path: str) -> Rename:
    forward, backward = lambda w: (w.transpose(2, 3, 1, 0),), lambda w: (w.transpose(3, 2, 0, 1),)
    return Rename((f"{torch}.weight",), (f"{path}/kernel",), forward, backward)


_BLOCK = ("dwconv", "norm", "pwconv1", "pwconv2", "gamma")
# Names that differ between libraries, see `_layers`. The release has those of the authors.
_AUTHORS: dict[str, Any] = {
    "stem": ("downsample_layers.0.0", "downsample_layers.0.1"),
    "downsample": "downsample_layers.{s}",
    "block": "stages.{s}.{i}",
    "layers": _BLOCK,
}
_TIMM: dict[str, Any] = {
    "stem": ("stem.0", "stem.1"),
    "downsample": "stages.{s}.downsample",
    "block": "stages.{s}.blocks.{i}",
    "layers": ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"),
}
_TRANSFORMERS: dict[str, Any] = {
    "stem": ("embeddings.patch_embeddings", "embeddings.layernorm"),
    "downsample": "encoder.stages.{s}.downsampling_layer",
    "block": "encoder.stages.{s}.layers.{i}",
    "layers": ("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
}


def _layers(
    stage: int, *, stem: tuple[str, str], downsample: str, block: str, layers: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Return PyTorch's names and our paths of a stage's convolution and norm, and of the layers in its blocks.

    Args:
      stage: number of the stage, `{s}` in names.
      stem: convolution and norm of the first stage.
      downsample: layers 0 (norm) and 1 (convolution) of any other stage.
      block: a block; `{i}` stands for its number.
      layers: names inside a block, in the order of `_BLOCK`.
    """
    names = [*((f"{downsample}.1", f"{downsample}.0") if stage else stem), *(f"{block}.{layer}" for layer in layers)]
    paths = ("downsample/conv", "downsample/norm", *(f"blocks/{{i}}/{layer}" for layer in _BLOCK))
    pairs = zip(names, paths, strict=True)
    return [(name.format(s=stage, i="{i}"), f"backbone/stages_{stage}/{path}") for name, path in pairs]


def _backbone(names: Mapping[str, Any], last_norm: str) -> tuple[Rename, ...]:
    rows: list[Rename] = []
    for stage, side in enumerate(STRIDES):
        conv, conv_norm, dwconv, block_norm, *pointwise, (gamma, path) = _layers(stage, **names)
        rows += [patches(*conv, side=side), bias(*conv), *norm(*conv_norm), Rename((gamma,), (path,)), _depthwise(*dwconv)]
        rows += [bias(*dwconv), *norm(*block_norm), *(row(*layer) for layer in pointwise for row in (linear, bias))]
    return (*rows, *norm(last_norm, "backbone/norm"))


def _added(i: int) -> tuple[Rename, ...]:
    """Rename the feedback of stage i and the additions of methods."""
    *operations, _ = _layers(i, **_AUTHORS)
    return (
        _transposed_patches(f"decoders.{i}.linear", f"top_down/back_{i}", STRIDES[i]),
        _pointwise(f"decoders.{i}.linear2", f"top_down/out_{i}"),
        # The release has no additions here; the names of low-rank deltas follow those of a ViT.
        *(row for torch, path in operations[-2:] for row in low_rank(torch, f"lora/{path}")),
        *low_rank(f"decoders.{i}.linear", f"lora/top_down/back_{i}"),
        *low_rank(f"decoders.{i}.linear2", f"lora/top_down/out_{i}"),
        *bottleneck(f"stages.{i}.{{i}}", f"backbone/stages_{i}/blocks/{{i}}"),
        *(row for torch, path in operations for row in scale_and_shift(f"{torch}.", (path,))),
    )


def _has_name(name: str, array: np.ndarray) -> bool:
    """The feedback layers, too, are convolutions here alone."""
    return name.startswith(("stages.", "downsample_layers.")) or (name.startswith("decoders.") and array.ndim == 4)


_LOOSE_SIGN = r"stages\.\d+\.blocks\.\d+\.conv_dw\..*|encoder\.stages\..*"
NAMES = Names(
    (
        *_backbone(_AUTHORS, "norm"),
        *(row for i in range(len(STRIDES)) for row in _added(i)),
        *scale_and_shift("norm.", ("backbone/norm",)),
        *STEERED,
    ),
    own_paths=rf"{ADDED}(backbone/stages_|top_down/(back|out)_)",
    has_name=_has_name,
    layouts=(
        Layout("convnext_timm", _backbone(_TIMM, "head.norm"), "head.fc", loose_sign=_LOOSE_SIGN),
        Layout("convnext_transformers", _backbone(_TRANSFORMERS, "layernorm"), "classifier", loose_sign=_LOOSE_SIGN),
    ),
    stacks=rf"{ADDED}backbone/(?P<stage>stages_\d)/blocks",
    last_stack=rf"{ADDED}backbone/stages_3/blocks",
)


def sized(arrays: dict[str, np.ndarray], head_width: int) -> ConvNeXt:
    """Build the ConvNeXt that parameters belong to, from their shapes.

    Args:
      arrays: by path, stacked.
      head_width: not used, as there are no heads.
    """
    last = len({path.split("/")[2] for path in arrays if re.match("backbone/stages_3/last_", path)})
    stages = [f"backbone/stages_{i}" for i in range(len(STRIDES))]
    depths = [len(arrays.get(f"{stage}/blocks/gamma", ())) for stage in stages]
    return ConvNeXt(
        depths=(*depths[:-1], depths[-1] + last),
        widths=tuple(len(arrays[f"{stage}/downsample/conv/bias"]) for stage in stages),
        last_blocks=last,
    )


TIMM_SIZES = {"convnext_tiny": "T", "convnext_small": "S", "convnext_base": "B", "convnext_large": "L", "convnext_xlarge": "XL"}


def size_name(depths: Sequence[int], widths: Sequence[int]) -> str | None:
    """Return the name of a size in `SIZES`, or None."""
    return next((name for name, size in SIZES.items() if (size.depths, size.widths) == (tuple(depths), tuple(widths))), None)


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network."""
    size = TIMM_SIZES.get(content.get("architecture", ""))
    if content.get("model_type") == "convnext":
        size = size_name(content["depths"], content["hidden_sizes"])
    if size:
        arguments = timm_arguments.stated(content)
        timm_arguments.refuse({name: value for name, value in arguments.items() if (name, value) != ("global_pool", "avg")})
    return {"size": size} if size else None
