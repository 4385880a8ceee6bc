"""PyTorch's names of a ConvNeXt (the release's and the authors'), and its sizes in their files."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.model.backbones.convnext.network import SIZES, STRIDES, ConvNeXt
from toast_jax.model.backbones.rename_rules import (
    ADDED,
    STEERED,
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


def _stage(i: int) -> tuple[Rename, ...]:
    """Down-sampling, blocks and feedback of stage i; the first has its LayerNorm after the convolution."""
    conv, norm_layer = (0, 1) if i == 0 else (1, 0)
    down, stage = f"downsample_layers.{i}", f"backbone/stages_{i}"
    block, blocks = f"stages.{i}.{{i}}", f"{stage}/blocks/{{i}}"
    pointwise = [(f"{block}.{name}", f"{blocks}/{name}") for name in ("pwconv1", "pwconv2")]
    operations = [(f"{down}.{conv}", f"{stage}/downsample/conv"), (f"{down}.{norm_layer}", f"{stage}/downsample/norm")]
    operations += [(f"{block}.dwconv", f"{blocks}/dwconv"), (f"{block}.norm", f"{blocks}/norm"), *pointwise]
    return (
        patches(f"{down}.{conv}", f"{stage}/downsample/conv", STRIDES[i]),
        bias(f"{down}.{conv}", f"{stage}/downsample/conv"),
        *norm(f"{down}.{norm_layer}", f"{stage}/downsample/norm"),
        Rename((f"{block}.gamma",), (f"{blocks}/gamma",)),
        _depthwise(f"{block}.dwconv", f"{blocks}/dwconv"),
        bias(f"{block}.dwconv", f"{blocks}/dwconv"),
        *norm(f"{block}.norm", f"{blocks}/norm"),
        *(row(*names) for names in pointwise for row in (linear, bias)),
        _transposed_patches(f"decoders.{i}.linear", f"top_down/back_{i}", STRIDES[i]),
        _pointwise(f"decoders.{i}.linear2", f"top_down/out_{i}"),
        # The release has no additions here; the names of low-rank deltas follow those of a ViT.
        *(row for torch, path in pointwise for row in low_rank(torch, f"lora/{path}")),
        *low_rank(f"decoders.{i}.linear", f"lora/top_down/back_{i}"),
        *low_rank(f"decoders.{i}.linear2", f"lora/top_down/out_{i}"),
        *bottleneck(block, blocks),
        *(row for torch, path in operations for row in scale_and_shift(f"{torch}.", (path,))),
    )


def _has_name(name: str, array: np.ndarray) -> bool:
    """The feedback layers, too, are convolutions here alone."""
    return name.startswith(("stages.", "downsample_layers.")) or (name.startswith("decoders.") and array.ndim == 4)


NAMES = Names(
    (
        *(row for i in range(len(STRIDES)) for row in _stage(i)),
        *norm("norm", "backbone/norm"),
        *scale_and_shift("norm.", ("backbone/norm",)),
        *STEERED,
    ),
    own_paths=rf"{ADDED}(backbone/stages_|top_down/(back|out)_)",
    has_name=_has_name,
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


_TIMM_SIZES = {"convnext_tiny": "T", "convnext_small": "S", "convnext_base": "B", "convnext_large": "L"}


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network."""
    size = _TIMM_SIZES.get(content.get("architecture", ""))
    if content.get("model_type") == "convnext":
        sides = (tuple(content["depths"]), tuple(content["hidden_sizes"]))
        size = next((name for name, size in SIZES.items() if (size.depths, size.widths) == sides), None)
    return {"size": size} if size else None
