"""PyTorch's names of a LLaMA of any kind (the release's and Hugging Face's), and its sizes in their files."""

import numpy as np

from toast_jax.model.backbones.llama.kinds import KINDS
from toast_jax.model.backbones.llama.network import LLaMA
from toast_jax.model.backbones.rename_rules import Layout, Names, Rename, bias, linear, low_rank, matrix, token_feedback

_TORCH, _PATH = "model.layers.{i}", "backbone/blocks/{i}"
_ATTENTION = [(f"{_TORCH}.self_attn.{name}_proj", f"{_PATH}/attn/{name}") for name in "qkvo"]
_MLP = [(f"{_TORCH}.mlp.{name}_proj", f"{_PATH}/mlp/{name}") for name in ("gate", "up", "down")]
_TABLE = (
    Rename(("model.embed_tokens.weight",), ("backbone/embed",)),
    *(linear(*names) for names in _ATTENTION + _MLP),
    *(bias(*names) for names in _ATTENTION if not names[1].endswith("/o")),  # of Qwen2
    *(
        Rename((f"{_TORCH}.self_attn.{name}.weight",), (f"{_PATH}/attn/{name}/scale",)) for name in ("q_norm", "k_norm")
    ),  # of Qwen3
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
    layouts=(Layout("llama_transformers", _TABLE),),  # the release has the same names
)


def sized(arrays: dict[str, np.ndarray], head_width: int) -> LLaMA:
    """Build the LLaMA that parameters belong to, from their shapes, which do not show a window.

    Args:
      arrays: by path, stacked.
      head_width: K of the attention, which no shape shows.
    """
    vocabulary, width = arrays["backbone/embed"].shape
    blocks = "backbone/blocks"
    features = f"{blocks}/attn/q/bias" in arrays, f"{blocks}/attn/q_norm/scale" in arrays
    return LLaMA(
        width=width,
        depth=len(arrays[f"{blocks}/norm1/scale"]),
        num_heads=arrays[f"{blocks}/attn/q/kernel"].shape[-1] // head_width,
        num_kv_heads=arrays[f"{blocks}/attn/k/kernel"].shape[-1] // head_width,
        hidden=arrays[f"{blocks}/mlp/gate/kernel"].shape[-1],
        vocabulary=vocabulary,
        tied="backbone/head" not in arrays,
        head_width=head_width,
        kind=next(kind for kind in KINDS if (kind.qkv_bias, kind.qk_norm) == features),
    )
