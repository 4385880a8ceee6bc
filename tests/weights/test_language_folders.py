"""Folders of language models as transformers saves them: read by their names and config.json, written back, or refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import alpaca as alpaca_config
from tests import FIXTURES, ROOT
from tests.conftest import refusal
from toast_jax.config.backbone_names import LLAMAS
from toast_jax.model import families, steered
from toast_jax.model.backbones.llama import config_json, export, kinds, network
from toast_jax.testing import language_parity, recording
from toast_jax.weights import initial_parameters, rename

RECORDINGS = sorted(path.stem for path in (FIXTURES / "language").glob("*.npz"))


@pytest.fixture(params=RECORDINGS)
def name(request):
    return request.param


def recorded(name):
    arrays = recording.read(str(FIXTURES / "language" / f"{name}.npz"))
    return language_parity.content(arrays), recording.group(arrays, "params/")


def size_of(content):
    return config_json.read(content, config_json.kind_of(content))


def saved(name, path, changed=None, shards=1, without=()):
    """Write a folder as `save_pretrained` does, with some entries of its config.json changed."""
    content, arrays = recorded(name)
    arrays = {key: array for key, array in arrays.items() if key not in without}
    (path / "config.json").write_text(json.dumps(content | (changed or {})))
    if shards == 1:
        save_file(arrays, path / "model.safetensors")
        return path
    files = {key: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, key in enumerate(arrays)}
    for file in set(files.values()):
        save_file({key: array for key, array in arrays.items() if files[key] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return path


@pytest.fixture
def small(monkeypatch):
    """Adds the sizes of the recordings."""
    for name in RECORDINGS:
        monkeypatch.setitem(kinds.SIZES, f"small_{name}", size_of(recorded(name)[0]))


def config_of(folder):
    return alpaca_config.get_config(f"method=lora,backbone={folder}")


def loaded(config):
    model, method = steered.build(config, 0)
    return model.backbone, initial_parameters.load(model, method, weights=config.backbone.weights)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_is_read_with_its_config(name, shards, small, tmp_path):
    config = config_of(saved(name, tmp_path, shards=shards))
    assert (config.backbone.size, config.backbone.vocabulary) == (f"small_{name}", 0)
    assert config.data.tokenizer == str(tmp_path) and config.backbone.weights.startswith(str(tmp_path))
    backbone, arrays = loaded(config)
    content, params = recorded(name)
    assert (backbone.kind.model_type, backbone.context) == (content["model_type"], content["max_position_embeddings"])
    state = rename.to_torch({path: np.asarray(array) for path, array in arrays.items()}, families.FAMILIES["llama"])
    assert state.keys() == params.keys()
    for key, array in params.items():
        np.testing.assert_array_equal(state[key], array)


def test_a_size_that_is_not_listed_is_read_from_its_config(name, tmp_path):
    config = config_of(saved(name, tmp_path))
    content, params = recorded(name)
    assert config.backbone.size == "custom" and network.size_of(config.backbone) == size_of(content)
    backbone, arrays = loaded(config)
    assert (backbone.kind.model_type, backbone.context) == (content["model_type"], content["max_position_embeddings"])
    state = rename.to_torch({path: np.asarray(array) for path, array in arrays.items()}, families.FAMILIES["llama"])
    assert state.keys() == params.keys()


@pytest.mark.parametrize("size", kinds.SIZES)
def test_every_size_can_be_stated_in_numbers(size):
    config = alpaca_config.get_config("backbone=stories260k")
    config.backbone.update(kinds.fields_of(kinds.SIZES[size]))
    assert network.size_of(config.backbone) == kinds.SIZES[size]


def test_a_config_is_written_as_it_was_read(name):
    content, _ = recorded(name)
    built = language_parity._network(content)
    again = export.FORMATS["hf"].config(built, (), None)
    assert size_of(again) == size_of(content) and again["architectures"] == content["architectures"]


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind is not kinds.LLAMA], ids=lambda kind: kind.title)
def test_windows_are_written_as_they_were_read(kind, window):
    size = kinds.Size(16, 2, 4, 2, hidden=24, vocabulary=32, context=64, window=window, kind=kind)
    again = size_of({**config_json.written(size), "model_type": kind.model_type})
    assert config_json.entries(again) == config_json.entries(size)


SCALED = {"rope_theta": 1e3, "rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changed", "fact"),
    [
        ("qwen2", {"num_hidden_layers": 3}, "lacks model.layers.2"),
        ("qwen2", {"hidden_size": 24}, "model.layers.0.self_attn.k_proj.bias is (8,) in the file"),
        ("qwen2", {"model_type": "llama"}, "has model.layers.0.self_attn.k_proj.bias, model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", {"head_dim": 4}, "model.layers.0.self_attn.k_proj.weight is (16, 16) in the file"),
        ("qwen3", {"model_type": "qwen2"}, "lacks model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", {"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ("mistral", {"num_key_value_heads": 4}, "model.layers.0.self_attn.k_proj.weight is (8, 16) in the file"),
        ("mistral", {"tie_word_embeddings": True}, "has a lm_head.weight that differs from model.embed_tokens.weight"),
    ],
)
def test_a_config_that_contradicts_its_file_is_refused(name, changed, fact, monkeypatch, tmp_path):
    folder = saved(name, tmp_path, changed)
    monkeypatch.setitem(kinds.SIZES, "small", size_of(recorded(name)[0] | changed))
    assert fact in refusal(lambda: loaded(config_of(folder)))


@pytest.mark.parametrize(
    ("name", "changed", "fact"),
    [
        (
            "mistral",
            {"sliding_window": None},
            "says sliding_window None, and config.backbone.size 4; give weights of that size.",
        ),
        ("qwen3", {"head_dim": 4}, "says head_dim 4, and config.backbone.size 8; give weights of that size."),
        ("qwen2", {"model_type": "llama"}, "is of a llama, which is not a Qwen2; give weights of one."),
        (
            "qwen2",
            {"rope_parameters": SCALED},
            "says rope_scaling yarn, and config.backbone.size None; give weights of that size.",
        ),
        ("llama3_2", {"quantization_config": {}}, "cannot be used: its weights are quantized, by its quantization_config; "),
    ],
)
def test_weights_of_another_config_than_the_size_are_refused(name, changed, fact, small, tmp_path):
    config = config_of(saved(name, tmp_path))
    assert fact in refusal(lambda: loaded(config if saved(name, tmp_path, changed) else None))


@pytest.mark.parametrize(
    ("name", "changed", "fact"),
    [
        (
            "qwen2",
            {"rope_parameters": SCALED},
            "its rotary positions are scaled by yarn, and only llama3's scaling is",
        ),
        ("llama3_2", {"hidden_act": "gelu"}, "cannot be used: its hidden_act is gelu, and only silu is supported."),
        ("llama3_2", {"attention_bias": True}, "cannot be used: its attention_bias is True, and only False is supported."),
        ("qwen3", {"partial_rotary_factor": 0.5}, "its partial_rotary_factor is 0.5, and only 1.0 is supported."),
        (
            "qwen3",
            {"model_type": "qwen3_moe", "num_experts": 8},
            "it is a mixture of experts (qwen3_moe), and only dense",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
            "cannot be used: 1 of its 2 blocks have a sliding window, and either all may have one or none.",
        ),
        (
            "qwen2",
            {"quantization_config": {"bits": 4}},
            "is quantized, by its config.json; choose the repository of",
        ),
        (
            "qwen2",
            {"model_type": "gemma3"},
            "is of another architecture (gemma3) or size than the networks here: LLaMA (",
        ),
        ("qwen2", {"hidden_size": None}, "describes no backbone (TypeError"),
        ("qwen2", {"hidden_size": 20}, "describes no backbone (ValueError('4 heads of 5 channels, and 2 of keys and values'))"),
    ],
)
def test_what_no_network_here_has_is_refused(name, changed, fact, small, tmp_path):
    folder = saved(name, tmp_path, changed)
    assert fact in refusal(lambda: config_of(folder))


# As published, without what does not matter here.
_QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "vocab_size": 151936}
_QWEN |= {"sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True}
_QWEN2 = _QWEN | {"model_type": "qwen2", "num_key_value_heads": 2}
_QWEN3 = _QWEN | {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "attention_bias": False}
_QWEN3 |= {"sliding_window": None, "rope_scaling": None}
_MISTRAL = {"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336}
_MISTRAL |= {"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05}
_MISTRAL |= {"tie_word_embeddings": False}
_LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
PUBLISHED = {
    "Llama-3.2-3B-Instruct": (
        {
            **{"model_type": "llama", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072},
            **{"intermediate_size": 8192, "mlp_bias": False, "num_attention_heads": 24, "num_hidden_layers": 28},
            **{"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_scaling": {**_LLAMA3, "rope_type": "llama3"}},
            **{"rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256},
        },
        ("llama3_2_3b", 0),
    ),
    "Qwen2.5-1.5B": (
        {**_QWEN2, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 28},
        ("qwen2_5_1_5b", 0),
    ),
    "Qwen3-4B": (
        _QWEN3
        | {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36}
        | {"max_window_layers": 36},
        ("qwen3_4b", 0),
    ),
    "Mistral-7B-v0.1": (
        _MISTRAL | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
        ("mistral_7b_v0_1", 0),
    ),
    "Mistral-7B-Instruct-v0.2": (
        _MISTRAL | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32000},
        ("mistral_7b_v0_3", 32_000),  # which differs in its added tokens alone
    ),
    "SmolLM2-135M": (
        {
            **{"model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 576},
            **{"intermediate_size": 1536, "is_llama_config": True, "num_attention_heads": 9, "num_hidden_layers": 30},
            **{"num_key_value_heads": 3, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None},
            **{"rope_theta": 100000, "tie_word_embeddings": True, "vocab_size": 49152},
        },
        ("smollm2_135m", 0),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_name_their_size(name):
    content, expected = PUBLISHED[name]
    assert tuple(config_json.described(content).values()) == (*expected, 0)


def test_the_page_lists_every_kind_and_size():
    page = (ROOT / "docs/language.md").read_text()
    rows = [line.split(" | ") for line in page.partition("## Models and tokenizers")[2].splitlines() if line.startswith("| ")]
    listed = {row[0].removeprefix("| "): [re.findall("`([^`]+)`", cell) for cell in row[1:]] for row in rows[1:]}
    assert list(listed)[: len(kinds.KINDS)] == [kind.title for kind in kinds.KINDS]
    for kind in kinds.KINDS:
        names, _, repositories = listed[kind.title]
        assert names == [name for name, size in kinds.SIZES.items() if size.kind is kind and name in LLAMAS]
        assert repositories == list(kind.examples)
