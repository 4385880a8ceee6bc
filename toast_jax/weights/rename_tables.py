"""PyTorch's names and ours, a table for each kind of backbone; `rename` reads them in both directions.

Files of the PyTorch release, of DeiT and of timm use the same names for a ViT, the release and the authors' code for a
ConvNeXt, and the release and Hugging Face for a LLaMA, up to prefixes that `files.read` takes off.
"""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rename:
    """One line of the table: `torch` names and `ours`, `{i}` standing for a layer, and how their arrays become each other."""

    torch: tuple[str, ...]
    ours: tuple[str, ...]
    forward: Callable = lambda *arrays: arrays
    backward: Callable = lambda *arrays: arrays


def _linear(torch: str, ours: str) -> Rename:
    return _matrix(torch, f"{ours}/kernel")


def _matrix(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.weight",), (ours,), lambda w: (w.T,), lambda w: (w.T,))


def _bias(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.bias",), (f"{ours}/bias",))


def _norm(torch: str, ours: str) -> tuple[Rename, Rename]:
    return Rename((f"{torch}.weight",), (f"{ours}/scale",)), _bias(torch, ours)


def _thirds(w):
    return tuple(part.T for part in np.split(w, 3))


def _patches(torch: str, ours: str, side: int | None = None) -> Rename:
    """A convolution whose kernel is its stride, as a matrix; `patches.split` orders its rows. Of pixels, it tells its side."""

    def forward(w):
        return (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),)

    def backward(w):
        length = side or round((w.shape[0] / 3) ** 0.5)
        return (w.reshape(length, length, -1, w.shape[1]).transpose(3, 2, 0, 1),)

    return Rename((f"{torch}.weight",), (f"{ours}/kernel",), forward, backward)


def _qkv(suffix: str, prefix: str = "") -> tuple[str, str, str]:
    return tuple(f"{prefix}backbone/blocks/{{i}}/attn/{part}/{suffix}" for part in "qkv")


def _low_rank(torch: str, ours: str) -> tuple[Rename, Rename]:
    return (
        Rename((f"{torch}.lora_A",), (f"{ours}/a",), lambda w: (w.T,), lambda w: (w.T,)),
        Rename((f"{torch}.lora_B",), (f"{ours}/b",), lambda w: (w.T,), lambda w: (w.T,)),
    )


def _joined(*parts):
    return (np.concatenate([part.T for part in parts]),)


_FEEDBACK = (("linear", "back"), ("linear2", "out"))
_COMMON = (
    # The classifier of the task that the backbone was trained on.
    _linear("head", "classifier"),
    _bias("head", "classifier"),
    _linear("head.last_layer", "head"),
    _bias("head.last_layer", "head"),
    # The top-down module: prompt is the prior, decoders are the feedback layers.
    Rename(("prompt",), ("top_down/prior",)),
    Rename(("top_down_transform",), ("top_down/transform",)),
)

_BLOCK, _OURS = "blocks.{i}", "backbone/blocks/{i}"
VIT = (
    Rename(("cls_token",), ("backbone/cls_token",)),
    Rename(("pos_embed",), ("backbone/pos_embed",)),
    _patches("patch_embed.proj", "backbone/patch_embed"),
    _bias("patch_embed.proj", "backbone/patch_embed"),
    *_norm(f"{_BLOCK}.norm1", f"{_OURS}/norm1"),
    Rename((f"{_BLOCK}.attn.qkv.weight",), _qkv("kernel"), _thirds, _joined),
    Rename((f"{_BLOCK}.attn.qkv.bias",), _qkv("bias"), _thirds, _joined),
    _linear(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    _bias(f"{_BLOCK}.attn.proj", f"{_OURS}/attn/proj"),
    *_norm(f"{_BLOCK}.norm2", f"{_OURS}/norm2"),
    *(row(f"{_BLOCK}.mlp.{fc}", f"{_OURS}/mlp/{fc}") for fc in ("fc1", "fc2") for row in (_linear, _bias)),
    *_norm("norm", "backbone/norm"),
    *_COMMON,
    # Feedback layers.
    *(_matrix(f"decoders.{{i}}.{theirs}", f"top_down/{ours}/{{i}}") for theirs, ours in _FEEDBACK),
    # Low-rank deltas: one A for the joint qkv kernel, and its B in three.
    Rename((f"{_BLOCK}.attn.qkv.lora_A",), (f"lora/{_OURS}/attn/a",), lambda w: (w.T,), lambda w: (w.T,)),
    Rename((f"{_BLOCK}.attn.qkv.lora_B",), _qkv("b", "lora/"), _thirds, _joined),
    *(row for theirs, ours in _FEEDBACK for row in _low_rank(f"decoders.{{i}}.{theirs}", f"lora/top_down/{ours}/{{i}}")),
    # Deep prompts are two parameters in the release: the first block's, and all others'.
    Rename(
        ("prompt_embeddings", "deep_prompt_embeddings"),
        ("prompts/tokens",),
        lambda first, others: (np.concatenate([first, others]),),
        lambda tokens: (tokens[:1], tokens[1:]),
    ),
    Rename(("prompt_embeddings",), ("prompts/tokens",)),
)


def _transposed_patches(torch: str, ours: str, side: int) -> Rename:
    """A transposed convolution whose kernel is its stride, as a matrix; `patches.join` orders its columns."""

    def forward(w):
        return (w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1),)

    def backward(w):
        return (w.reshape(len(w), side, side, -1).transpose(0, 3, 1, 2),)

    return Rename((f"{torch}.weight",), (ours,), forward, backward)


def _pointwise(torch: str, ours: str) -> Rename:
    return Rename((f"{torch}.weight",), (ours,), lambda w: (w[:, :, 0, 0].T,), lambda w: (w.T[:, :, None, None],))


def _depthwise(torch: str, ours: str) -> Rename:
    forward, backward = lambda w: (w.transpose(2, 3, 1, 0),), lambda w: (w.transpose(3, 2, 0, 1),)
    return Rename((f"{torch}.weight",), (f"{ours}/kernel",), forward, backward)


def _stage(i: int) -> tuple[Rename, ...]:
    """Down-sampling, blocks and feedback of stage i; the first has its LayerNorm after the convolution."""
    side, conv, norm = (4, 0, 1) if i == 0 else (2, 1, 0)
    down, ours = f"downsample_layers.{i}", f"backbone/stages_{i}"
    block, blocks = f"stages.{i}.{{i}}", f"{ours}/blocks/{{i}}"
    pointwise = [(f"{block}.{name}", f"{blocks}/{name}") for name in ("pwconv1", "pwconv2")]
    return (
        _patches(f"{down}.{conv}", f"{ours}/downsample/conv", side),
        _bias(f"{down}.{conv}", f"{ours}/downsample/conv"),
        *_norm(f"{down}.{norm}", f"{ours}/downsample/norm"),
        Rename((f"{block}.gamma",), (f"{blocks}/gamma",)),
        _depthwise(f"{block}.dwconv", f"{blocks}/dwconv"),
        _bias(f"{block}.dwconv", f"{blocks}/dwconv"),
        *_norm(f"{block}.norm", f"{blocks}/norm"),
        *(row(*names) for names in pointwise for row in (_linear, _bias)),
        _transposed_patches(f"decoders.{i}.linear", f"top_down/back_{i}", side),
        _pointwise(f"decoders.{i}.linear2", f"top_down/out_{i}"),
        # Low-rank deltas, which the release has none of; the names are made like those for ViTs.
        *(row for torch, path in pointwise for row in _low_rank(torch, f"lora/{path}")),
        *_low_rank(f"decoders.{i}.linear", f"lora/top_down/back_{i}"),
        *_low_rank(f"decoders.{i}.linear2", f"lora/top_down/out_{i}"),
    )


CONVNEXT = (*(row for i in range(4) for row in _stage(i)), *_norm("norm", "backbone/norm"), *_COMMON)


def _language() -> tuple[Rename, ...]:
    """A LLaMA with its head. Layers of attention have low-rank deltas of their own."""
    layer, ours = "model.layers.{i}", "backbone/blocks/{i}"
    attention = [(f"{layer}.self_attn.{name}_proj", f"{ours}/attn/{name}") for name in "qkvo"]
    mlp = [(f"{layer}.mlp.{name}_proj", f"{ours}/mlp/{name}") for name in ("gate", "up", "down")]
    feedback = [(f"model.decoders.{{i}}.{theirs}", f"top_down/{name}/{{i}}") for theirs, name in _FEEDBACK]
    return (
        Rename(("model.embed_tokens.weight",), ("backbone/embed",)),
        *(_linear(*names) for names in attention + mlp),
        Rename((f"{layer}.input_layernorm.weight",), (f"{ours}/norm1/scale",)),
        Rename((f"{layer}.post_attention_layernorm.weight",), (f"{ours}/norm2/scale",)),
        Rename(("model.norm.weight",), ("backbone/norm/scale",)),
        _matrix("lm_head", "backbone/head"),
        Rename(("model.prompt",), ("top_down/prior",)),
        Rename(("model.top_down_transform",), ("top_down/transform",)),
        *(_matrix(*names) for names in feedback),
        *(row for torch, path in attention + feedback for row in _low_rank(torch, f"lora/{path}")),
    )


LLAMA = _language()
