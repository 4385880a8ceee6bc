"""The published kinds of LLaMA, one record each, their sizes as data, and the config fields that hold them. Imports no JAX.

Letters: D width, H query heads, K channels of a head.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from toast_jax.fields import CUSTOM, Choice, Field, Flag, real, whole
from toast_jax.model.backbones.rename_rules import Unusable


class RopeScaling(NamedTuple):
    """Describes how Llama 3.1 and later scale rotary frequencies beyond the original `context`, in tokens.

    A pair that turns fewer than `low` times within the original context is slowed down by `factor`, one that turns more than
    `high` times is unchanged, and the scale of those in between is interpolated. The values are those of the `llama3` type in
    Hugging Face's `config.json`.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """Describes one published kind of network, by what distinguishes it from the first LLaMA.

    Attributes:
      title: its name in sentences, such as "Qwen3".
      model_type, architecture: transformers' names, in `config.json`.
      qkv_bias: whether the projections to queries, keys and values have a bias.
      qk_norm: whether queries and keys pass an RMSNorm over the channels of their head before they are rotated.
      padding: how many rows its embedding may have beyond the tokens of its tokenizer.
      defaults: values that transformers assumes for keys that a `config.json` lacks, where they are not those of a LLaMA.
      window: of a `config.json`: the sliding window of all blocks, in tokens; 0 for none. Raises Unusable if blocks differ.
      window_entries: of a window: the entries of a `config.json` that state it.
      examples: repositories on the Hugging Face Hub.
    """

    title: str
    model_type: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    padding: int = 0
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window: Callable[[Mapping[str, Any]], int] = lambda content: 0
    window_entries: Callable[[int], dict[str, Any]] = lambda window: {}
    examples: tuple[str, ...] = ()


def _window_of_last_blocks(content: Mapping[str, Any]) -> int:
    """Return the window of Qwen's `config.json`, which is that of the blocks from `max_window_layers` on."""
    window, depth = content.get("sliding_window") or 0, content["num_hidden_layers"]
    if types := content.get("layer_types"):
        windowed = sum(kind != "full_attention" for kind in types)
    else:
        windowed = depth - min(content.get("max_window_layers", 28), depth)
    if not (window and windowed and content.get("use_sliding_window", False)):
        return 0
    if windowed < depth:
        raise Unusable(f"{windowed} of its {depth} blocks have a sliding window, and either all may have one or none")
    return window


def _window_of_all_blocks(window: int) -> dict[str, Any]:
    """Return the entries of Qwen's `config.json`."""
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0} if window else {}


LLAMA = Kind(
    "LLaMA",
    "llama",
    "LlamaForCausalLM",
    examples=("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct"),
)
MISTRAL = Kind(
    "Mistral",
    "mistral",
    "MistralForCausalLM",
    defaults={"num_key_value_heads": 8},
    window=lambda content: content.get("sliding_window", 4096) or 0,
    window_entries=lambda window: {"sliding_window": window or None},
    examples=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3"),
)
QWEN2 = Kind(
    "Qwen2",
    "qwen2",
    "Qwen2ForCausalLM",
    qkv_bias=True,
    padding=512,
    defaults={"num_key_value_heads": 32},
    window=_window_of_last_blocks,
    window_entries=_window_of_all_blocks,
    examples=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B-Instruct"),
)
QWEN3 = Kind(
    "Qwen3",
    "qwen3",
    "Qwen3ForCausalLM",
    qk_norm=True,
    padding=512,
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    window=_window_of_last_blocks,
    window_entries=_window_of_all_blocks,
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B-Base"),
)
KINDS = (LLAMA, MISTRAL, QWEN2, QWEN3)


@dataclasses.dataclass(frozen=True)
class Size:
    """Holds the sizes in the authors' `config.json`.

    Attributes:
      hidden: width inside the MLP.
      context: the longest sequence, in tokens.
      head_width: K; 0 for D / H.
      window: how many tokens a token attends to, itself included; 0 for all before it.
      tied: whether the head is the transposed input embedding.
    """

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    hidden: int
    vocabulary: int
    context: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False
    head_width: int = 0
    window: int = 0
    kind: Kind = LLAMA


def head_width(size: Any) -> int:
    """Return K of a size, or of a network with its fields."""
    return size.head_width or size.width // size.num_heads


_7B = Size(4096, 32, 32, 32, hidden=11_008, vocabulary=32_000, context=4096)
_13B = Size(5120, 40, 40, 40, hidden=13_824, vocabulary=32_000, context=4096)
_8B = Size(4096, 32, 32, 8, hidden=14_336, vocabulary=128_256, context=8192, rope_theta=500_000.0)
_1B = dataclasses.replace(_8B, width=2048, depth=16, hidden=8192, context=131_072, rope_scaling=RopeScaling(32.0), tied=True)
_MISTRAL = dataclasses.replace(_8B, vocabulary=32_768, context=32_768, rope_theta=1e6, kind=MISTRAL)
_SMOL = Size(576, 30, 9, 3, hidden=1536, vocabulary=49_152, context=8192, rope_theta=100_000.0, tied=True)
_QWEN = Size(896, 24, 14, 2, hidden=4864, vocabulary=151_936, context=32_768, rope_theta=1e6, norm_eps=1e-6, tied=True)
_QWEN2 = dataclasses.replace(_QWEN, kind=QWEN2)
_QWEN2_7B = dataclasses.replace(_QWEN2, width=3584, depth=28, num_heads=28, num_kv_heads=4, hidden=18_944, tied=False)
_QWEN3 = dataclasses.replace(
    _QWEN, width=1024, depth=28, num_heads=16, num_kv_heads=8, hidden=3072, context=40_960, head_width=128, kind=QWEN3
)
SIZES = {
    "llama1_7b": dataclasses.replace(_7B, context=2048, norm_eps=1e-6),
    "llama1_13b": dataclasses.replace(_13B, context=2048, norm_eps=1e-6),
    "llama2_7b": _7B,
    "llama2_13b": _13B,
    "llama3_8b": _8B,
    "llama3_1_8b": dataclasses.replace(_8B, context=131_072, rope_scaling=RopeScaling(8.0)),
    "llama3_2_1b": _1B,
    "llama3_2_3b": dataclasses.replace(_1B, width=3072, depth=28, num_heads=24),
    "tinyllama_1b": Size(2048, 22, 32, 4, hidden=5632, vocabulary=32_000, context=2048),  # TinyLlama-1.1B
    # https://huggingface.co/karpathy/tinyllamas
    "stories15m": Size(288, 6, 6, 6, hidden=768, vocabulary=32_000, context=256, tied=True),
    "stories260k": Size(64, 5, 8, 4, hidden=172, vocabulary=512, context=512, tied=True),
    "smollm2_135m": _SMOL,
    "smollm2_360m": dataclasses.replace(_SMOL, width=960, depth=32, num_heads=15, num_kv_heads=5, hidden=2560),
    "smollm2_1_7b": Size(2048, 24, 32, 32, hidden=8192, vocabulary=49_152, context=8192, rope_theta=130_000.0, tied=True),
    "mistral_7b_v0_1": dataclasses.replace(_MISTRAL, vocabulary=32_000, rope_theta=10_000.0, window=4096),
    "mistral_7b_v0_3": _MISTRAL,
    "qwen2_5_0_5b": _QWEN2,
    "qwen2_5_1_5b": dataclasses.replace(_QWEN2, width=1536, depth=28, num_heads=12, hidden=8960, context=131_072),
    "qwen2_5_7b": dataclasses.replace(_QWEN2_7B, vocabulary=152_064, context=131_072),
    "qwen3_0_6b": _QWEN3,
    "qwen3_1_7b": dataclasses.replace(_QWEN3, width=2048, hidden=6144),
    "qwen3_4b": dataclasses.replace(_QWEN3, width=2560, depth=36, num_heads=32, hidden=9728),
    "qwen3_8b": dataclasses.replace(_QWEN3, width=4096, depth=36, num_heads=32, hidden=12_288, tied=False),
    CUSTOM: Size(0, 0, 0, 0, hidden=0, vocabulary=0, context=0),
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Allows the four numbers of a `RopeScaling`, or none."""

    def __str__(self) -> str:
        return "factor, low, high and context, with low less than high, as in (32.0, 1.0, 4.0, 8192), or ()"

    def refusal(self, value: Any) -> str:
        several = isinstance(value, (tuple, list)) and len(value) in (0, len(RopeScaling._fields))
        if several and not any(real(above=0.0).refusal(number) for number in value):
            scaling = RopeScaling(*value) if value else RopeScaling(1.0)
            if scaling.low < scaling.high:
                return ""
        return f"it has to be {self}"


_OF_SIZE = "0: that of the size"
# Fields of `config.backbone` that a LLaMA has beside those of every family.
FIELDS = {
    "vocabulary": Field(0, whole(0), f"number of tokens, for weights with added ones; {_OF_SIZE}"),
    "kind": Field("", Choice(("", *(kind.model_type for kind in KINDS))), "published kind of network; '': that of the size"),
    "width": Field(0, whole(0, 65_536), f"channels of a token; {_OF_SIZE}"),
    "depth": Field(0, whole(0, 1024), f"number of blocks; {_OF_SIZE}"),
    "num_heads": Field(0, whole(0, 1024), f"query heads of a block; {_OF_SIZE}"),
    "num_kv_heads": Field(0, whole(0, 1024), f"heads of keys and values; {_OF_SIZE}, or as many as query heads"),
    "head_width": Field(0, whole(0, 65_536), f"channels of a head; {_OF_SIZE}, or the width divided by the query heads"),
    "hidden": Field(0, whole(0, 1_048_576), f"channels inside the MLP; {_OF_SIZE}"),
    "context": Field(0, whole(0), f"longest sequence, in tokens; {_OF_SIZE}"),
    "window": Field(0, whole(0), f"tokens that a token attends to; {_OF_SIZE}, or all before it"),
    "rope_theta": Field(0.0, real(0.0), f"base of rotary positions; {_OF_SIZE}"),
    "rope_scaling": Field((), Scaling(), "scaling of rotary positions in Llama 3.1 and later; (): that of the size"),
    "norm_eps": Field(0.0, real(0.0), f"added to the mean square in every RMSNorm; {_OF_SIZE}"),
    "tied": Field(False, Flag(), "whether the head is the transposed input embedding; False: as the size says"),
}


def fields_of(size: Size) -> dict[str, Any]:
    """Return the config fields that make `CUSTOM` this size; those left out keep their default."""
    values = {**vars(size), "kind": size.kind.model_type, "rope_scaling": tuple(size.rope_scaling or ())}
    return {"size": CUSTOM, **{name: values[name] for name in FIELDS if values[name]}}
