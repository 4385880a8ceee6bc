"""A plain LLaMA for transformers, whose names the release has too."""

from collections.abc import Sequence
from typing import Any

from toast_jax.model.backbones.exports.formats import Format, Preprocessing, transformers_config
from toast_jax.model.backbones.llama.network import LLaMA


def _of_transformers(backbone: LLaMA, classes: Sequence[str], preprocessing: Preprocessing | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": backbone.rope_theta}
    if scaling := backbone.rope_scaling:
        rope["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        }
    return transformers_config(
        "LlamaForCausalLM",
        "llama",
        (),
        hidden_size=backbone.width,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.num_heads,
        num_key_value_heads=backbone.num_kv_heads,
        intermediate_size=backbone.hidden,
        vocab_size=backbone.vocabulary,
        max_position_embeddings=backbone.context,
        rms_norm_eps=backbone.norm_eps,
        tie_word_embeddings=backbone.tied,
        hidden_act="silu",
        **rope,
    )


FORMATS = {"hf": Format(dict, _of_transformers)}
