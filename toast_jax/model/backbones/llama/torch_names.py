"""PyTorch's names of a LLaMA (the release's and Hugging Face's), and its sizes in their files."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from toast_jax.model.backbones.llama.network import SIZES, LLaMA
from toast_jax.model.backbones.rename_rules import Names, Rename, linear, low_rank, matrix, token_feedback

_TORCH, _PATH = "model.layers.{i}", "backbone/blocks/{i}"
_ATTENTION = [(f"{_TORCH}.self_attn.{name}_proj", f"{_PATH}/attn/{name}") for name in "qkvo"]
_MLP = [(f"{_TORCH}.mlp.{name}_proj", f"{_PATH}/mlp/{name}") for name in ("gate", "up", "down")]
_TABLE = (
    Rename(("model.embed_tokens.weight",), ("backbone/embed",)),
    *(linear(*names) for names in _ATTENTION + _MLP),
    Rename((f"{_TORCH}.input_layernorm.weight",), (f"{_PATH}/norm1/scale",)),
    Rename((f"{_TORCH}.post_attention_layernorm.weight",), (f"{_PATH}/norm2/scale",)),
    Rename(("model.norm.weight",), ("backbone/norm/scale",)),
    matrix("lm_head", "backbone/head"),
    Rename(("model.prompt",), ("top_down/prior",)),
    Rename(("model.top_down_transform",), ("top_down/transform",)),
    *token_feedback("model."),
    *(row for torch, path in _ATTENTION for row in low_rank(torch, f"lora/{path}")),
)
NAMES = Names(
    _TABLE,
    own_paths=r"backbone/(embed|head)$|(lora/)?backbone/blocks/(\d+/)?(attn/o|mlp/up)/",
    has_name=lambda name, array: name.startswith(("model.", "lm_head.")),
)


def sized(arrays: dict[str, np.ndarray], head_width: int) -> LLaMA:
    """Build the LLaMA that parameters belong to, from their shapes.

    Args:
      arrays: by path, stacked.
      head_width: K of the attention, which no shape shows.
    """
    vocabulary, width = arrays["backbone/embed"].shape
    blocks = "backbone/blocks"
    return LLaMA(
        width=width,
        depth=len(arrays[f"{blocks}/norm1/scale"]),
        num_heads=width // head_width,
        num_kv_heads=arrays[f"{blocks}/attn/k/kernel"].shape[-1] // head_width,
        hidden=arrays[f"{blocks}/mlp/gate/kernel"].shape[-1],
        vocabulary=vocabulary,
        tied="backbone/head" not in arrays,
    )


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network."""
    if content.get("model_type") != "llama":
        return None
    rope = {**content, **(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    heads, vocabulary = content["num_attention_heads"], content["vocab_size"]
    values = {
        "width": content["hidden_size"],
        "depth": content["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": content.get("num_key_value_heads") or heads,
        "hidden": content["intermediate_size"],
        "norm_eps": content.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", 10_000.0),
        "tied": content.get("tie_word_embeddings", False),
    }
    for name, size in SIZES.items():
        is_scaled = (size.rope_scaling is not None) == ("factor" in rope)
        if is_scaled and all(getattr(size, key) == value for key, value in values.items()):
            return {"size": name, "vocabulary": 0 if vocabulary == size.vocabulary else vocabulary}
    return None
