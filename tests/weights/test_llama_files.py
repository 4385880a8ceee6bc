"""Weights of language models: every format gives the same network, and what does not fit is named."""

import json
import os
import shutil
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.model.backbones.llama.test_network import D, G, H, L, V, network, numpy_logits, parameters
from toast_jax import trees
from toast_jax.config import run_fields
from toast_jax.config.run_fields import language
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.weights import initial_parameters as starts
from toast_jax.weights import llama_files
from toast_jax.weights.rename import to_torch

STORIES = os.environ.get("TOAST_STORIES15M", "")
CONFIG = {
    **{"model_type": "llama", "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": G},
    **{"intermediate_size": 24, "vocab_size": V, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False},
}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


def ours():
    """The backbone by path."""
    return {f"backbone/{path}": leaf for path, leaf in trees.flat(parameters("finetune")["backbone"]).items()}


def state(**changes):
    """It by the names of Hugging Face, with some arrays replaced, or left out if None; `__` stands for a dot."""
    arrays = to_torch(ours()) | {name.replace("__", "."): array for name, array in changes.items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}


def folder(path, arrays=None, config=None):
    path.mkdir(exist_ok=True)
    save_file(arrays or state(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    return path


def load(path, dtype=np.float32, **fields):
    wanted = ours() if not fields.get("tied") else {k: v for k, v in ours().items() if k != "backbone/head"}
    return llama_files.load(str(path), wanted, network(**fields), dict.fromkeys(wanted, dtype), parallel.put)


def assert_loaded(path, **given):
    loaded = load(path, **given)
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, ours()[name], err_msg=name)
    assert len(loaded) >= len(ours()) - 1


def test_folder_and_file_of_hugging_face(tmp_path):
    assert_loaded(folder(tmp_path / "a"))
    assert_loaded(tmp_path / "a" / "model.safetensors")
    (tmp_path / "a" / "config.json").unlink()
    assert_loaded(tmp_path / "a")


def test_an_adapter_of_peft_is_refused_with_the_way_to_merge_it(tmp_path):
    names = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{part}.weight" for i in range(L) for part in "AB"]
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(InputError, match="is an adapter of PEFT, not a network; merge it into its network there"):
            load(place)
    for family in (run_fields.language, run_fields.base):
        with pytest.raises(InputError, match=f"{tmp_path} is an adapter of PEFT"):
            family(name="x", method="lora", backbone=str(tmp_path))


def test_old_buffers_are_left_out(tmp_path):
    save_file(state() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "f4")}, tmp_path / "x.safetensors")
    assert_loaded(tmp_path / "x.safetensors")


def sharded(path):
    names = sorted(state())
    shard_of = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    path.mkdir()
    for shard in set(shard_of.values()):
        save_file({name: state()[name] for name in names if shard_of[name] == shard}, path / shard)
    (path / llama_files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return path


def test_shards(tmp_path):
    assert_loaded(sharded(tmp_path / "a"))
    (tmp_path / "a" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="index.json names the shard model-00002-of-00002.safetensors, which is not beside it"):
        load(tmp_path / "a")


def test_tensors_are_read_one_by_one(tmp_path, monkeypatch):
    path, read, alive = folder(tmp_path / "a"), [], []
    tensors = llama_files.tensors

    def watched(tensor):
        array = tensor.read()
        read.append(weakref.ref(array))
        alive.append(sum(one() is not None for one in read))
        return array

    def lazily(path):
        return {name: one._replace(read=lambda one=one: watched(one)) for name, one in tensors(path).items()}

    monkeypatch.setattr(llama_files, "tensors", lazily)
    load(path)
    assert len(alive) == len(state()) and max(alive) <= 2  # the last one until the next is there


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_in_files_and_on_the_device(dtype, tmp_path):
    halves = {name: array.astype(dtype) for name, array in state().items()}
    save_file(halves, tmp_path / "x.safetensors")
    full, half = load(tmp_path / "x.safetensors"), load(tmp_path / "x.safetensors", dtype=jnp.bfloat16)
    for name, array in ours().items():
        np.testing.assert_array_equal(full[name], array.astype(dtype).astype(np.float32))
        assert half[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(half[name], full[name].astype(jnp.bfloat16))


def test_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in state().items()}, tmp_path / "x.bin")
    assert_loaded(tmp_path / "x.bin")


def test_shards_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    names = sorted(state())
    shard_of = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(shard_of.values()):
        torch.save({name: torch.tensor(state()[name]) for name in names if shard_of[name] == shard}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    assert_loaded(tmp_path)
    assert_loaded(tmp_path / "pytorch_model.bin.index.json")
    trace = tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    torch.save({"x": Malicious()}, tmp_path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(InputError, match="could run code"):
        load(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", "language_model."])
@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_modules_around_the_network_are_taken_off(ending, bare, wrapper, tmp_path):
    wrapped = {wrapper + (name.removeprefix("model.") if bare else name): array for name, array in state().items()}
    if bare:  # a LlamaModel has no head
        wrapped = {name.replace(f"{wrapper}lm_head", "lm_head"): array for name, array in wrapped.items()}
    if ending == "bin":
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(array) for name, array in wrapped.items()}, tmp_path / "x.bin")
    else:
        save_file(wrapped, tmp_path / "x.safetensors")
    assert_loaded(tmp_path / f"x.{ending}")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_head_that_repeats_a_tied_embedding_is_left_out_and_another_refused(ending, tmp_path):
    def write(head):
        arrays = state(lm_head__weight=head)
        if ending == "bin":
            torch = pytest.importorskip("torch")
            tensors = {name: torch.tensor(array) for name, array in arrays.items()}
            torch.save(tensors, tmp_path / "x.bin")
        else:
            save_file(arrays, tmp_path / "x.safetensors")

    embedding = state()["model.embed_tokens.weight"]
    write(embedding.copy())
    assert_loaded(tmp_path / f"x.{ending}", tied=True)
    for head in (embedding * 1.01, embedding[:-1]):
        write(np.ascontiguousarray(head))
        with pytest.raises(InputError, match="lm_head.weight that differs from model.embed_tokens.weight"):
            load(tmp_path / f"x.{ending}", tied=True)


def llama2c(path, shared):
    """Written in the order of llama2.c's `memory_map_weights`, rows of q and k in its pairs 2i, 2i + 1."""
    arrays = state()
    pairs = lambda w: w.reshape(-1, 2, D // H // 2, D).transpose(0, 2, 1, 3).reshape(w.shape)  # noqa: E731
    layers = lambda name: [arrays[f"model.layers.{i}.{name}.weight"] for i in range(L)]  # noqa: E731
    parts = [
        *[[arrays["model.embed_tokens.weight"]], layers("input_layernorm"), map(pairs, layers("self_attn.q_proj"))],
        *[map(pairs, layers("self_attn.k_proj")), layers("self_attn.v_proj"), layers("self_attn.o_proj")],
        *[layers("post_attention_layernorm"), layers("mlp.gate_proj"), layers("mlp.down_proj"), layers("mlp.up_proj")],
        *[[arrays["model.norm.weight"]], [np.zeros((2, 7, D // H // 2), np.float32)]],
        *([] if shared else [[arrays["lm_head.weight"]]]),
    ]
    header = np.array([D, 24, L, H, G, V if shared else -V, 7], np.int32).tobytes()
    path.write_bytes(header + b"".join(np.ascontiguousarray(a).tobytes() for part in parts for a in part))
    return path


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_llama2c(shared, tmp_path):
    assert_loaded(llama2c(tmp_path / "x.bin", shared), tied=shared)


def test_folder_of_llama2c(tmp_path):
    llama2c(tmp_path / "stories.bin", True)
    (tmp_path / "tok512.bin").touch()
    assert_loaded(tmp_path, tied=True)
    llama2c(tmp_path / "others.bin", True)
    with pytest.raises(InputError, match="There is no model.safetensors, .* and no single .bin at"):
        load(tmp_path, tied=True)


def test_pairs_of_llama2c_turn_as_there(tmp_path):
    """Attention scores of its convention, member 2i against 2i + 1, from the rows of its file."""
    rng, head = np.random.default_rng(0), D // H
    w, x = rng.normal(size=(head, D)).astype(np.float32), rng.normal(size=(2, D)).astype(np.float32)
    q, k = x @ w.T
    angles = 10_000.0 ** (-np.arange(head // 2) / (head // 2))

    def turned(v, position):
        pairs = (v[0::2] + 1j * v[1::2]) * np.exp(1j * position * angles)
        return np.stack([pairs.real, pairs.imag], axis=1).ravel()

    ours_q, ours_k = x @ llama_files._halved(w, head).T
    turn = lambda v, position: llama.rotate(v[None, None, None], jnp.array([[position]]), 10_000.0).ravel()  # noqa: E731
    np.testing.assert_allclose(turn(ours_q, 5) @ turn(ours_k, 2), turned(q, 5) @ turned(k, 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"lacks model.norm.weight; it is of another kind or size"),
        ({"model__layers__1__mlp__up_proj__weight": None}, r"lacks model.layers.1.mlp.up_proj.weight;"),
        (
            {"model__layers__0__self_attn__q_proj__bias": np.ones(D, "f4")},
            r"has model.layers.0.self_attn.q_proj.bias, which no",
        ),
        (
            {"model__layers__3__mlp__up_proj__weight": np.ones((24, D), "f4")},
            r"has model.layers.3.mlp.up_proj.weight, which no",
        ),
        ({"lm_head__weight": np.ones((V + 1, D), "f4")}, rf"lm_head.weight is \({V + 1}, {D}\) in the file, and backbone/head"),
        (
            {"model__embed_tokens__weight": np.ones((V + 1, D), "f4")},
            rf"in the network; give .*set --config.backbone.vocabulary={V + 1} and",
        ),
        (
            {"model__layers__2__self_attn__o_proj__weight": np.ones((D, 8), "f4")},
            r"layers.2.self_attn.o_proj.weight is \(16, 8\)",
        ),
        ({"model__norm__weight": np.full(D, np.nan, "f4")}, "numbers that are not finite in model.norm.weight"),
        ({"model__norm__weight": np.ones(D, np.int8)}, "holds model.norm.weight as I8; give weights as float32"),
    ],
)
def test_other_networks_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path / "a", state(**changes)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mistral"}, "is of a mistral, which is not a LLaMA"),
        ({"rope_scaling": {"factor": 8.0}}, "says rope_scaling linear, and config.backbone.size None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "says rope_scaling yarn"),
        ({"rope_scaling": LLAMA3}, r"says rope_scaling RopeScaling\(factor=8.0.*and config.backbone.size None"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "is no config.json of a LLaMA .*factor"),
        ({"rms_norm_eps": 1e-5}, "says rms_norm_eps 1e-05, and config.backbone.size 1e-06"),
        ({"rope_theta": 5e5}, "says rope_theta 500000.0"),
        ({"num_key_value_heads": None}, f"says num_key_value_heads {H}, and config.backbone.size {G}"),
        ({"tie_word_embeddings": True}, "says tie_word_embeddings True"),
        (
            {"vocab_size": V + 1},
            f"says vocab_size {V + 1}, and config.backbone.size {V}; give .*added, set --config.backbone.vocabulary={V + 1} a",
        ),
    ],
)
def test_another_config_is_refused(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load(folder(tmp_path / "a", config=config))


@pytest.mark.parametrize("config", [{"rope_scaling": LLAMA3}, {"rope_parameters": {"rope_theta": 1e4, **LLAMA3}}])
def test_scaled_rotations_have_to_be_those_of_the_size(config, tmp_path):
    scaling = llama.RopeScaling(8.0)
    load(folder(tmp_path / "a", config=config), rope_scaling=scaling)
    with pytest.raises(InputError, match=r"says rope_scaling RopeScaling\(factor=8.0"):
        load(tmp_path / "a", rope_scaling=scaling._replace(factor=32.0))
    with pytest.raises(InputError, match="says rope_scaling None, and config.backbone.size RopeScaling"):
        load(folder(tmp_path / "a", config={"rope_parameters": {"rope_type": "default"}}), rope_scaling=scaling)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bin", b"\0" * 40, "is neither a PyTorch file nor one of llama2.c"),
        ("x.bin", np.array([16, 24, 3, 4, 2, 19, 7], np.int32).tobytes() + b"\0" * 8, "has 36 bytes where its header asks for"),
        ("x.safetensors", b"\0" * 40, "is not a complete safetensors file"),
        # The feed-forward layers have 2**64 numbers each, which is 0 to an integer that wraps around.
        ("x.bin", np.array([16, 2**30, 2**30, 4, 4, 19, 7], np.int32).tobytes(), r"its header asks for \d\d\d(,\d\d\d){6};"),
        ("x.bin", np.array([16, 24, 3, 4, 2, 19, -7], np.int32).tobytes(), "is neither a PyTorch file nor one of llama2.c"),
        ("x.bin", np.array([16, 24, 3, 16, 2, 19, 7], np.int32).tobytes(), "is neither a PyTorch file nor one of llama2.c"),
        ("x.bin", b"\1\0\0", "is neither a PyTorch file nor one of llama2.c"),
        ("model.safetensors.index.json", b"[]", "is no index of shards"),
        ("model.safetensors.index.json", b'{"weight_map": [1]}', "is no index of shards"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', "is no index of shards"),
        ("model.safetensors.index.json", b"[" * 100_000, "is no index of shards"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b"}}', "names the shard b, which is not beside it"),
    ],
)
def test_damaged_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("shard", ["../x.safetensors", "{folder}/x.safetensors", "a/../../x.safetensors"])
def test_shards_outside_the_folder_are_refused(shard, tmp_path):
    """They would be read, whoever wrote the index."""
    weights = folder(tmp_path / "weights")
    shutil.copy(weights / "model.safetensors", tmp_path / "x.safetensors")
    shard = shard.format(folder=tmp_path)
    index = {"weight_map": dict.fromkeys(state(), shard)}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"names the shard '{shard}', which is not beside it"):
        load(weights)


def test_damaged_headers_of_llama2c_give_arrays_or_an_input_error(tmp_path):
    path = tmp_path / "x.bin"
    llama2c(path, shared=True)
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        numbers = np.frombuffer(content[:28], np.int32).copy()
        numbers[rng.integers(0, 7)] = rng.choice([-1, 0, 1, 2, 3, 5, 2**30, 2**31 - 1, -(2**31), rng.integers(-50, 50)])
        path.write_bytes(numbers.tobytes() + content[28 : rng.choice([len(content), 28, 40, len(content) - 4])])
        try:
            load(path, tied=True)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert 100 < refused < 300


def test_missing_weights_are_told_by_their_field(tmp_path):
    with pytest.raises(
        InputError, match="There is no model.safetensors, no .* no single .bin at .*; correct --config.backbone.weights"
    ):
        load(tmp_path)


def test_frozen_parameters_are_stored_in_the_compute_dtype(tmp_path, monkeypatch):
    monkeypatch.setitem(llama.SIZES, "stories260k", llama.Size(D, L, H, G, 24, V, 64, norm_eps=1e-6))
    config = language(name="x", method="toast", backbone="stories260k")
    config.backbone.dtype = "bfloat16"
    net, row = steered.build(config, 0)
    params = trees.flat(starts.start(net, row, seed=0, weights=str(folder(tmp_path / "a"))))
    halves = {path for path, leaf in params.items() if leaf.dtype == jnp.bfloat16}
    norms = {"backbone/norm/scale", "backbone/blocks/norm1/scale", "backbone/blocks/norm2/scale"}  # computed in float32
    assert set(params) - halves == {"top_down/out", "top_down/prior"} | norms
    np.testing.assert_array_equal(params["backbone/embed"], ours()["backbone/embed"].astype(jnp.bfloat16))


SENTENCE = (  # of a story, by the tokenizer of Llama 2, after <s>
    *(1, 9038, 2501, 263, 931, 29892, 727, 471, 263, 2217, 7826, 4257, 365, 2354, 29889, 2296, 18012, 304, 1708, 5377, 297),
    *(278, 14089, 29889, 3118, 2462, 29892, 1183, 4446, 263, 4802, 29892, 2654, 8287, 29889, 2296, 5131, 304, 1708, 411, 372),
    *(29892, 541, 372, 471, 2086, 1880, 29889),
)


@pytest.mark.skipif(not STORIES, reason="set TOAST_STORIES15M to a folder of Hugging Face with karpathy's stories15M")
def test_real_model_predicts_a_story():
    """Also against NumPy, in float64."""
    config = language(name="x", method="finetune", backbone="stories15m")
    net, row = steered.build(config, 0)
    params = starts.start(net, row, seed=0, weights=STORIES)
    tokens = np.array([SENTENCE], np.int32)
    logits = jax.jit(lambda p: steered.apply(net, row, p, {"tokens": tokens, "segments": np.ones_like(tokens)}))(params)
    log_probs = np.asarray(jax.nn.log_softmax(logits))[0]
    nats = -np.mean([log_probs[i, token] for i, token in enumerate(SENTENCE[1:])])
    assert Path(STORIES).exists() and abs(nats - 0.444) < 0.005
    size = llama.SIZES["stories15m"]
    expected = numpy_logits(params["backbone"], tokens[0], eps=size.norm_eps, heads=size.num_heads, kv_heads=size.num_kv_heads)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
