"""Transformers' `config.json` of a LLaMA or of a kind of it: read strictly, and written. Imports no JAX."""

from collections.abc import Mapping
from typing import Any

from toast_jax.fields import CUSTOM
from toast_jax.model.backbones.llama.kinds import KINDS, SIZES, Kind, RopeScaling, Size, fields_of, head_width
from toast_jax.model.backbones.rename_rules import Unusable

# Keys that determine a network's outputs, and the fields of a `Size` that hold them.
_FIELDS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_width",
    "intermediate_size": "hidden",
    "vocab_size": "vocabulary",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "rope_scaling": "rope_scaling",
    "sliding_window": "window",
    "tie_word_embeddings": "tied",
}
# Further keys that would change the outputs, and the only supported values.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1.0}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "context": "original_max_position_embeddings",
}


def kind_of(content: Mapping[str, Any]) -> Kind | None:
    """Return the kind that `model_type` names."""
    return next((kind for kind in KINDS if kind.model_type == content.get("model_type")), None)


def stated(content: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return the entries of a `config.json` that determine a network's outputs, with transformers' defaults.

    `rope_scaling` is a `RopeScaling`, None, or the name of a type that is not supported.

    Raises:
      Unusable: it asks for something that no network here has.
      KeyError, TypeError, ValueError: an entry is missing or of another type.
    """
    content = {**kind.defaults, **content}
    rope = {**content, **(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    if content.get("quantization_config") is not None:
        raise Unusable("its weights are quantized, by its quantization_config; the original weights are needed")
    for key, supported in _FIXED.items():
        if rope.get(key, supported) not in (supported, None):
            raise Unusable(f"its {key} is {rope[key]}, and only {supported} is supported")
    width, heads = content["hidden_size"], content["num_attention_heads"]
    head, kv_heads = content.get("head_dim") or width // heads, content.get("num_key_value_heads") or heads
    if head % 2 or heads % kv_heads:
        raise ValueError(f"{heads} heads of {head} channels, and {kv_heads} of keys and values")
    return {
        "hidden_size": width,
        "num_hidden_layers": content["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "intermediate_size": content["intermediate_size"],
        "vocab_size": content["vocab_size"],
        "rms_norm_eps": float(content.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(rope.get("rope_theta") or 10_000.0),
        "rope_scaling": _scaling(rope),
        "sliding_window": kind.window(content) or None,
        "tie_word_embeddings": content.get("tie_word_embeddings", False),
    }


def read(content: Mapping[str, Any], kind: Kind) -> Size:
    """Read the size of a network; errors are those of `stated`."""
    values = stated(content, kind)
    if isinstance(values["rope_scaling"], str):
        raise Unusable(f"its rotary positions are scaled by {values['rope_scaling']}, and only llama3's scaling is supported")
    fields = {field: values[key] for key, field in _FIELDS.items()}
    return Size(**{**fields, "window": fields["window"] or 0}, context=content.get("max_position_embeddings", 2048), kind=kind)


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | str | None:
    """Return the scaling of rotary frequencies, or the name of a type that is not supported."""
    name = rope.get("rope_type", rope.get("type", "default" if "factor" not in rope else "linear"))
    if name == "llama3":
        return RopeScaling(**{field: rope[key] for field, key in _SCALING.items()})
    return None if name == "default" else name


def entries(size: Any) -> dict[str, Any]:
    """Return the same entries for a size, or for a network with its fields."""
    values = {key: getattr(size, field) for key, field in _FIELDS.items()}
    return {**values, "head_dim": head_width(size), "sliding_window": size.window or None}


def written(size: Any) -> dict[str, Any]:
    """Return the entries of a `config.json` for a size, or for a network with its fields."""
    content = {key: value for key, value in entries(size).items() if key not in ("rope_scaling", "sliding_window")}
    content |= {
        "max_position_embeddings": size.context,
        "hidden_act": _FIXED["hidden_act"],
        **size.kind.window_entries(size.window),
    }
    if scaling := size.rope_scaling:
        values = {key: getattr(scaling, field) for field, key in _SCALING.items()}
        content["rope_scaling"] = {"rope_type": "llama3", **values}
    return content


def described(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of `config.backbone` from the `config.json` of a Hugging Face repository; None for another network.

    Raises:
      Unusable: a network that is recognized, but not supported.
    """
    if (kind := kind_of(content)) is None:
        if any(key in content for key in _EXPERTS):
            raise Unusable(f"it is a mixture of experts ({content.get('model_type')}), and only dense networks are supported")
        return None
    size = read(content, kind)
    values = entries(size)
    for name, known in SIZES.items():
        if name != CUSTOM and known.kind is kind and values == {**entries(known), "vocab_size": size.vocabulary}:
            context = content.get("max_position_embeddings", known.context)
            changed = {"vocabulary": (size.vocabulary, known.vocabulary), "context": (context, known.context)}
            return {"size": name, **{field: 0 if own == listed else own for field, (own, listed) in changed.items()}}
    return fields_of(size)
