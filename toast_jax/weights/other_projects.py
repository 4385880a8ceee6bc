"""Files of other projects: conversion to the PyTorch names and layouts that `rename` reads.

These are timm's for a ViT, the authors' for a ConvNeXt and Hugging Face's for a LLaMA. Names of published layouts are stated
beside the backbones (`rename_rules.Layout`), and all others here.
"""

import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from toast_jax.errors import listed
from toast_jax.model.backbones.rename_rules import Layout, Names, bias, linear
from toast_jax.model.families import FAMILIES
from toast_jax.weights.containers import Arrays

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """Renames arrays whose whole name matches `regex` to `known`, with groups filled in; None drops them."""

    regex: str
    known: str | None
    layout: Callable[[np.ndarray], np.ndarray] = lambda array: array


_KEEP = Row(r"(?s:.*)", r"\g<0>")

_PARAM = r"\.(weight|bias)"


def _dense(name: str, timm: str) -> tuple[Row, Row]:
    return Row(rf"{name}/kernel", rf"{timm}.weight", lambda w: w.T), Row(rf"{name}/bias", rf"{timm}.bias")


def _norm(name: str, timm: str) -> tuple[Row, Row]:
    return Row(rf"{name}/scale", rf"{timm}.weight"), Row(rf"{name}/bias", rf"{timm}.bias")


# google-research/vision_transformer (.npz). Kernels have inputs first and separate heads: q, k and v [D, H, K], out [H, K, D].
_ENCODER = r"Transformer/encoderblock_(\d+)"
_QKV = rf"{_ENCODER}/MultiHeadDotProductAttention_1/([qkv])(?:uery|ey|alue)"
_OUT = rf"{_ENCODER}/MultiHeadDotProductAttention_1/out"
_AUGREG = (
    Row("cls", "cls_token"),
    Row("Transformer/posembed_input/pos_embedding", "pos_embed"),
    Row("embedding/kernel", "patch_embed.proj.weight", lambda w: w.transpose(3, 2, 0, 1)),
    Row("embedding/bias", "patch_embed.proj.bias"),
    *_norm(rf"{_ENCODER}/LayerNorm_0", r"blocks.\1.norm1"),
    Row(rf"{_QKV}/kernel", r"blocks.\1.attn.\2.weight", lambda w: w.reshape(len(w), -1).T),
    Row(rf"{_QKV}/bias", r"blocks.\1.attn.\2.bias", np.ravel),
    Row(rf"{_OUT}/kernel", r"blocks.\1.attn.proj.weight", lambda w: w.reshape(-1, w.shape[-1]).T),
    Row(rf"{_OUT}/bias", r"blocks.\1.attn.proj.bias"),
    *_norm(rf"{_ENCODER}/LayerNorm_2", r"blocks.\1.norm2"),
    *_dense(rf"{_ENCODER}/MlpBlock_3/Dense_0", r"blocks.\1.mlp.fc1"),
    *_dense(rf"{_ENCODER}/MlpBlock_3/Dense_1", r"blocks.\1.mlp.fc2"),
    *_norm("Transformer/encoder_norm", "norm"),
    *_dense("head", "head"),
)

# torchvision's ConvNeXt counts stem, stages and what is between them in one list, and its LayerScale has axes for pixels.
_STAGES = [(f"features.{2 * stage + 1}", f"stages.{stage}") for stage in range(4)]
_TORCHVISION_CONVNEXT = (
    *(
        Row(re.escape(old) + rf"\.(\d+)\.block\.{number}{_PARAM}", rf"{new}.\1.{layer}.\2")
        for old, new in _STAGES
        for number, layer in enumerate(("dwconv", "", "norm", "pwconv1", "", "pwconv2"))
    ),
    *(Row(re.escape(old) + r"\.(\d+)\.layer_scale", rf"{new}.\1.gamma", np.ravel) for old, new in _STAGES),
    *(Row(rf"features\.{2 * i}\.(\d){_PARAM}", rf"downsample_layers.{i}.\1.\2") for i in range(4)),
    Row(rf"classifier\.0{_PARAM}", r"norm.\1"),
    Row(rf"classifier\.2{_PARAM}", r"head.\1"),
)
_TORCHVISION_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)"
_TORCHVISION_VIT = (
    Row("class_token", "cls_token"),
    Row(r"encoder\.pos_embedding", "pos_embed"),
    Row(rf"conv_proj{_PARAM}", r"patch_embed.proj.\1"),
    Row(rf"{_TORCHVISION_BLOCK}\.ln_([12]){_PARAM}", r"blocks.\1.norm\2.\3"),
    Row(rf"{_TORCHVISION_BLOCK}\.self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
    Row(rf"{_TORCHVISION_BLOCK}\.self_attention\.out_proj{_PARAM}", r"blocks.\1.attn.proj.\2"),
    Row(rf"{_TORCHVISION_BLOCK}\.mlp\.(?:0|linear_1){_PARAM}", r"blocks.\1.mlp.fc1.\2"),
    Row(rf"{_TORCHVISION_BLOCK}\.mlp\.(?:3|linear_2){_PARAM}", r"blocks.\1.mlp.fc2.\2"),
    Row(rf"encoder\.ln{_PARAM}", r"norm.\1"),
    Row(rf"heads\.head{_PARAM}", r"head.\1"),
)

# LLaMA as in Hugging Face's LlamaForCausalLM and the TOAST release; names of a bare LlamaModel lack `model.`.
_LLAMA = (
    Row(r"(?:.*\.)?rotary_emb\.inv_freq", None),
    Row(r"((?:embed_tokens|layers|norm|decoders)\..*|prompt|top_down_transform)", r"model.\1"),
)

# Name of an array that every network has; the text before it is the prefix of the modules that wrap the network.
_FIRST = re.compile(
    r"((?:[^./]+[./])*?)(?:patch_embed\.proj\.weight|embeddings\.patch_embeddings?(?:\.projection)?\.weight|"
    r"conv_proj\.weight|features\.0\.0\.weight|downsample_layers\.0\.0\.weight|stem\.0\.weight|embedding/kernel|(?:model\.)?embed_tokens\.weight)"
)
# Which of several networks in a file of self-supervised training is used: the one that its authors evaluate.
_MOCO_S = 384  # channels
_EVALUATED = re.compile(r"(?:\w*ema|teacher|base_encoder)[./]")
# Parts of a detector or a segmentation network that may have a stem too; only the backbone is used.
_BESIDE_BACKBONE = re.compile(r"(?:.*[./])?(?:neck|\w*head|decoder)[./]")
# Names outside the prefix of a wrapped network that still belong to it.
_BESIDE = re.compile(r"(?:heads?|classifier|lm_head|decoders?)[./].*|top_down_transform|(?:deep_)?prompt(?:_embeddings)?")

# Files with timm's names and more: FSDP's chunks of blocks (DINOv2), and mask tokens, decoders and heads of pre-training.
_TIMM = (
    Row(r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
    Row(r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma"),  # of DeiT III's authors, and DINOv3 in timm
    # DINOv2's authors.
    Row(r"register_tokens", "reg_token"),
    Row(rf"(blocks\.\d+\.mlp)\.w12{_PARAM}", r"\1.fc1.\2"),
    Row(rf"(blocks\.\d+\.mlp)\.w3{_PARAM}", r"\1.fc2.\2"),
    Row(r"mask_token|decoder_.*|(?:dino|ibot)_head\..*", None),
)


def _of_layouts() -> dict[str, list[Row]]:
    """Collect the rows of all layouts by their `loose_sign`."""
    formats: dict[str, list[Row]] = {}
    for family in FAMILIES.values():
        for layout in family.names.layouts:
            if layout.loose_sign:
                formats.setdefault(layout.loose_sign, []).extend(_of_layout(layout, family.names))
    return formats


def _of_layout(layout: Layout, names: Names) -> Iterator[Row]:
    """Make a row of every name in a layout, from the names that the family has for the same paths."""
    known = {row.paths: row.torch for row in (*names.table, *names.apart)}
    classifier = (linear(layout.classifier, "classifier"), bias(layout.classifier, "classifier"))
    for row in (*layout.table, *classifier):
        # The mask token beside a class token has no known name, and is dropped.
        for name, new in itertools.zip_longest(row.torch, known[row.paths]):
            regex = re.escape(name).replace(r"\{i\}", r"(\d+)")
            for old, other in layout.respelled.items():
                regex = regex.replace(re.escape(old), f"(?:{re.escape(old)}|{re.escape(other)})")
            yield Row(regex, new and new.replace("{i}", r"\1"))
    yield Row(layout.unused, None)


# Regex of a name that identifies a format, and its rows. All formats that match are applied, in this order.
_FORMATS: tuple[tuple[str, Sequence[Row]], ...] = (
    # A classifier on top of a representation layer, which no network here has.
    (r"pre_logits[./].*", [Row(r"pre_logits/.*|head[./](?:kernel|weight|bias)", None)]),
    (r"Transformer/.*", _AUGREG),
    (r"features\.\d+\.\d+\.layer_scale", _TORCHVISION_CONVNEXT),
    (rf"{_TORCHVISION_BLOCK}\..*", _TORCHVISION_VIT),
    *_of_layouts().items(),
    (r"(?:model\.)?layers\.\d+\.self_attn\..*", _LLAMA),
    # DINO's projection head, whose last layer has the same name as the classifier in files of the TOAST release, and MoCo v3's.
    (r"head\.(?:mlp|\d+)\..*", [Row(r"head\..*", None)]),
    (r".*", _TIMM),
)

# Names that identify networks similar to the supported ones.
_OTHER_NETWORKS = {
    r"dist_token|(?:\w+\.)?embeddings\.distillation_token": "a distilled DeiT",
    r".*\.(?:SCB|weight_(?:scale|format|packed).*|weight\.(?:absmax|quant\w*|nested\w*)|qweight|qzeros)": "a quantized network",
    r".*\.attn\.[qk]_norm\..*": "a ViT with norms of queries and keys",
    r"fc_norm\..*": "a ViT with its last norm after pooling (as MAE's fine-tuning makes)",
    r"(?:.*\.)?layers\.\d+\.(?:blocks|downsample)\..*": "a Swin Transformer",
    r"(?:.*\.)?relative_position_.*|.*\.attn\.[qv]_bias|(?:.*\.)?lambda_[12]|beit\..*": "a BEiT",
    r".*\.grn\..*": "a ConvNeXt V2",
    r"(?:.*\.)?(?:stages|downsample_layers)\..*": "another network of stages",
    r"(?:visual|vision_model|text_model)\..*|embeddings\.class_embedding": "CLIP or a network like it",
}


def known_names(state: dict[str, Any]) -> dict[str, Any]:
    """Convert the arrays of another framework to names and layouts that `rename` reads.

    Prefixes of wrapping modules are removed. LayerScale of a ViT is folded into the layer before it; position embeddings
    without a class token (DeiT III) get a zero for it.

    Args:
      state: arrays by name, from `containers.read`. For a LLaMA only names are converted, so the values may be anything.

    Returns:
      arrays by known name; unused arrays are dropped and logged, unknown names are kept.

    Raises:
      ValueError: an array has other axes than its name implies, or two names mean the same array.
    """
    dropped: list[str] = []
    return converted(unwrapped(state, dropped), dropped)


def converted(state: Arrays, dropped: list[str]) -> Arrays:
    """Convert names without prefixes of wrapping modules; `dropped` are further names to log as unused."""
    for sign, rows in _FORMATS:
        if any(re.fullmatch(sign, name) for name in state):
            state = _renamed(state, rows, dropped)
    if dropped:
        log.info("The weights file also holds %s, not used here.", listed(sorted(dropped)))
    return _with_class_position(_with_gates(_without_layer_scale(_with_joint_qkv(state))))


def other_network(unexpected: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the kind of network that unexpected names belong to, and the names that identify it."""
    for regex, kind in _OTHER_NETWORKS.items():
        if telling := [name for name in unexpected if re.fullmatch(regex, name)]:
            return kind, telling
    return "another kind of network", unexpected


def unwrapped(state: Arrays, dropped: list[str]) -> Arrays:
    """Remove the prefix of wrapping modules, such as `teacher.backbone.`, and move names without it to `dropped`."""
    wrappers = sorted({match[1] for name in state if (match := _FIRST.fullmatch(name))})
    if len(wrappers) > 1:
        wrappers = [wrapper for wrapper in wrappers if not _BESIDE_BACKBONE.fullmatch(wrapper)] or wrappers
    if len(wrappers) > 1:
        evaluated = [wrapper for wrapper in wrappers if _EVALUATED.search(wrapper)]
        if len(evaluated) != 1:
            raise ValueError(f"it holds several networks ({listed([w or 'one without a prefix' for w in wrappers])})")
        log.info("The weights file holds several networks (%s), of which %s is used.", listed(wrappers), evaluated[0])
        cls_token = state.get(f"{evaluated[0]}cls_token")
        if "base_encoder" in evaluated[0] and cls_token is not None and cls_token.shape[-1] == _MOCO_S:
            log.warning(
                "This looks like the ViT-S of MoCo v3, which has 12 heads where the size S has 6, as no array shows: the "
                "network has to be of size custom, with width 384, depth 12 and num_heads 12."
            )
        wrappers = evaluated
    if wrappers in ([], [""]):
        return state
    (wrapper,) = wrappers
    out = {}
    for name, array in state.items():
        bare = name[len(os.path.commonprefix([name, wrapper]).rpartition(wrapper[-1])[0]) :].lstrip(wrapper[-1])
        if not name.startswith(wrapper) and not _BESIDE.fullmatch(bare):
            dropped.append(name)
        elif bare in out:
            raise ValueError(f"{name} is not the only name for {bare}")
        else:
            out[bare] = array
    return out


def _renamed(state: Arrays, rows: Sequence[Row], dropped: list[str]) -> Arrays:
    out = {}
    for name, array in state.items():
        match, row = next((match, row) for row in (*rows, _KEEP) if (match := re.fullmatch(row.regex, name)))
        if row.known is None:
            dropped.append(name)
            continue
        new = match.expand(row.known)
        if new in out:
            raise ValueError(f"{name} is not the only name for {new}")
        try:
            out[new] = row.layout(array)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{name} is {array.shape}, which no network here has") from error
    return out


def _with_joint_qkv(state: Arrays) -> Arrays:
    out = dict(state)
    for name in state:
        if match := re.fullmatch(r"(blocks\.\d+\.attn)\.q\.(weight|bias)", name):
            names = [f"{match[1]}.{part}.{match[2]}" for part in "qkv"]
            parts = [state[part] for part in names if part in state]
            # Incomplete or unequal parts are kept, and refused later by name.
            if len(parts) == 3 and parts[0].shape == parts[1].shape == parts[2].shape != ():
                out[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(parts)
                for part in names:
                    del out[part]
    return out


def _with_gates(state: Arrays) -> Arrays:
    """Split the gate of a gated MLP from its first layer, as DINOv2 stacks both; the second has half as many inputs."""
    out = dict(state)
    for name, second in state.items():
        if match := re.fullmatch(r"(blocks\.\d+\.mlp)\.fc2\.weight", name):
            for param in ("weight", "bias"):
                first = state.get(f"{match[1]}.fc1.{param}")
                if first is not None and first.shape[:1] == (2 * second.shape[-1],):
                    out |= dict(zip((f"{match[1]}.fc1_{part}.{param}" for part in "gx"), np.split(first, 2), strict=True))
                    del out[f"{match[1]}.fc1.{param}"]
    return out


def _with_class_position(state: Arrays) -> Arrays:
    embed = state.get("pos_embed")
    if "cls_token" not in state or embed is None or embed.ndim != 3 or math.isqrt(embed.shape[1]) ** 2 != embed.shape[1] > 1:
        return state
    return state | {"pos_embed": np.concatenate([np.zeros_like(embed[:, :1]), embed], axis=1)}


def _without_layer_scale(state: Arrays) -> Arrays:
    """Fold LayerScale: `gamma * (W x + b)` is `(gamma * W) x + gamma * b`, with `W [out, in]`."""
    out = dict(state)
    for name, gamma in state.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            layer = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            weight, bias = (state.get(f"{layer}.{param}") for param in ("weight", "bias"))
            # Without a matching layer it is kept, and refused later by name.
            if weight is not None and bias is not None and gamma.shape == bias.shape == weight.shape[:1]:
                out |= {f"{layer}.weight": gamma[:, None] * weight, f"{layer}.bias": gamma * bias}
                del out[name]
    return out
