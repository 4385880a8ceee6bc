"""Files of other frameworks: each gives exactly what the same network gives from timm's names, or says why it cannot."""

import math
import os
import re

import hypothesis
import hypothesis.strategies as st
import jax
import ml_dtypes
import numpy as np
import pytest

from tests.conftest import refusals_of_damaged_copies
from tests.weights.test_initial_parameters import HEAD, network, recording, start
from tests.weights.test_pretrained import DEPTH, FIXTURES, assert_same, backbone, load, logged, recorded, refusal, save  # noqa: F401
from toast_jax import trees
from toast_jax.model.steered import apply
from toast_jax.weights import containers, other_projects, rename

HEADS, PER_HEAD = 4, 8
CLASSIFIER = {"head.weight": np.arange(160, dtype="f4").reshape(5, 32), "head.bias": np.arange(5, dtype="f4")}


def thirds(state):
    """The same with q, k and v apart: `blocks.0.attn.q.weight`."""
    parts = {
        name.replace("qkv", part): third
        for name, array in state.items()
        if "qkv" in name
        for part, third in zip("qkv", np.split(array, 3), strict=True)
    }
    return {name: array for name, array in state.items() if "qkv" not in name} | parts


def renamed(state, pairs):
    """Replaces parts of names, one pair after the other."""
    for old, new in pairs:
        state = {name.replace(old, new): array for name, array in state.items()}
    return state


EMBEDDINGS = [
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
]


def hugging_face(state, prefix=""):
    """ViTModel of transformers up to 4, ViTForImageClassification with the prefix `vit.`."""
    pairs = [
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.output.dense"),
        *((f"attn.{word[0]}.", f"attention.attention.{word}.") for word in ("query", "key", "value")),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        *EMBEDDINGS,
    ]
    state = {re.sub(r"^norm\.", "layernorm.", name): array for name, array in thirds(state).items()}
    state = {re.sub(r"^blocks\.", "encoder.layer.", name): array for name, array in renamed(state, pairs).items()}
    return {prefix + name: array for name, array in state.items()}


def hugging_face_5(state, prefix=""):
    """The same of transformers 5."""
    pairs = [
        ("encoder.layer.", "layers."),
        ("attention.output.dense", "attention.o_proj"),
        *((f"attention.attention.{word}.", f"attention.{word[0]}_proj.") for word in ("query", "key", "value")),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ]
    return renamed(hugging_face(state, prefix), pairs)


def hugging_face_dinov2(state, prefix=""):
    pairs = [
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("intermediate.dense", "mlp.fc1"),
        ("attention.output.dense", "attention.out"),
        ("output.dense", "mlp.fc2"),
        ("attention.out.", "attention.output.dense."),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
    ]
    return renamed(hugging_face(state, prefix), pairs)


def hugging_face_dinov2_5(state, prefix=""):
    """The same of transformers 5, which renamed fewer layers of it."""
    pairs = [(f"attention.attention.{word}.", f"attention.{word[0]}_proj.") for word in ("query", "key", "value")]
    return renamed(hugging_face_dinov2(state, prefix), [*pairs, ("attention.output.dense", "attention.o_proj")])


def torchvision(state):
    """VisionTransformer of torchvision."""
    pairs = [
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj", "conv_proj"),
        *((f"norm{i}", f"ln_{i}") for i in (1, 2)),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.3"),
    ]
    state = {re.sub(r"^norm\.", "encoder.ln.", name): array for name, array in state.items()}
    state = {re.sub(r"^head\.", "heads.head.", name): array for name, array in renamed(state, pairs).items()}
    return {re.sub(r"^blocks\.", "encoder.layers.encoder_layer_", name): array for name, array in state.items()}


def augreg(state):
    """google-research/vision_transformer: other names, and Flax's layouts."""
    out = {}
    for name, array in thirds(state).items():
        if name in ("cls_token", "pos_embed"):
            new = {"cls_token": "cls", "pos_embed": "Transformer/posembed_input/pos_embedding"}[name]
        elif name == "patch_embed.proj.weight":
            new, array = "embedding/kernel", np.einsum("dcyx->yxcd", array)
        elif match := re.fullmatch(r"blocks\.(\d)\.attn\.([qkv])\.(weight|bias)", name):
            word = {"q": "query", "k": "key", "v": "value"}[match[2]]
            new = f"Transformer/encoderblock_{match[1]}/MultiHeadDotProductAttention_1/{word}/{match[3]}"
            array = array.T.reshape(*array.shape[1:], HEADS, PER_HEAD)  # [D, H, K] and [H, K]
        elif match := re.fullmatch(r"blocks\.(\d)\.attn\.proj\.(weight|bias)", name):
            new = f"Transformer/encoderblock_{match[1]}/MultiHeadDotProductAttention_1/out/{match[2]}"
            array = array.T.reshape(HEADS, PER_HEAD, -1) if match[2] == "weight" else array
        else:
            new, array = name.replace(".", "/"), array.T
            new = re.sub(r"blocks/(\d)", r"Transformer/encoderblock_\1", new)
            for old, theirs in [
                ("mlp/fc1", "MlpBlock_3/Dense_0"),
                ("mlp/fc2", "MlpBlock_3/Dense_1"),
                ("patch_embed/proj", "embedding"),
            ]:
                new = new.replace(old, theirs)
            new = new.replace("norm1", "LayerNorm_0").replace("norm2", "LayerNorm_2")
            new = re.sub("^norm", "Transformer/encoder_norm", new)
        is_norm = re.search("norm/|LayerNorm", new)
        out[re.sub("weight$", "scale" if is_norm else "kernel", new)] = array
    return out


def chunked(state):
    """Blocks in chunks of two, as DINOv2 is trained."""
    return {re.sub(r"^blocks\.(\d)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", name): a for name, a in state.items()}


def zeros(*names):
    return {name: np.zeros((2, 3), "f4") for name in names}


DECODER = zeros(
    "mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight", "decoder_norm.bias"
)
DINO_HEAD = zeros("head.mlp.0.weight", "head.mlp.2.bias", "head.last_layer.weight_g", "head.last_layer.weight_v")
POOLER = zeros("pooler.dense.weight", "pooler.dense.bias")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What the network gives from timm's names."""
    return load(save(tmp_path_factory.mktemp("plain") / "vit.safetensors", backbone()))


def to_file(folder, state, suffix=".safetensors", wrap=None, dtype=None):
    """Writes a file; `wrap` holds the key of the arrays, and what else is beside them."""
    path = folder / f"vit{suffix}"
    if suffix == ".npz":
        np.savez(path, **state)
    elif suffix == ".safetensors":
        save(path, state)
    else:
        torch = pytest.importorskip("torch")
        tensors = {name: torch.tensor(np.array(array)) for name, array in state.items()}
        if dtype:
            tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
        torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, path)
    return str(path)


def left_out(logged):  # noqa: F811
    (message,) = [message for message in logged.messages if message.startswith("The weights file also holds")]
    return message


# What is read.


def test_the_arrays_of_the_fixture_show_every_mistake():
    arrays = [part for name, array in backbone().items() for part in (np.split(array, 3) if "qkv" in name else [array])]
    assert len({array.tobytes() for array in arrays}) == len(arrays)
    assert all(array.std() > 0 for array in arrays)


@pytest.mark.parametrize("name", ["vit_linear", "vit_toast", "vit_lora", "vit_vpt_deep"])
def test_files_with_timm_names_stay_as_they_are(name, logged):  # noqa: F811
    state = recorded(name) | CLASSIFIER
    named = other_projects.known_names(state)
    assert all(named[name] is array for name, array in state.items()) and list(named) == list(state)
    assert not logged.messages


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("prefix", ["", "vit."])
@pytest.mark.parametrize("form", [hugging_face, hugging_face_5])
def test_hugging_face(form, prefix, suffix, plain, tmp_path, logged):  # noqa: F811
    extra = {"vit.pooler.dense.weight": np.ones((2, 2), "f4")} if prefix else POOLER
    extra |= {prefix + "embeddings.mask_token": np.zeros((1, 1, 32), "f4")}
    classifier = {"classifier.weight": CLASSIFIER["head.weight"], "classifier.bias": CLASSIFIER["head.bias"]}
    path = to_file(tmp_path, form(backbone(), prefix) | extra | classifier, suffix)
    assert_same(load(path), plain)
    assert "embeddings.mask_token, pooler.dense" in left_out(logged)
    assert any("classifier" in message for message in logged.messages)


def test_torchvision(plain, tmp_path):
    state = torchvision(backbone())
    assert_same(load(to_file(tmp_path, state)), plain)
    assert_same(load(to_file(tmp_path, {f"module.{name}": array for name, array in state.items()})), plain)


@pytest.mark.parametrize("form", [hugging_face, hugging_face_5, augreg, torchvision])
def test_classifiers_get_the_name_that_timm_gives_them(form):
    sources = {
        augreg: {"head/kernel": CLASSIFIER["head.weight"].T, "head/bias": CLASSIFIER["head.bias"]},
        hugging_face: {name.replace("head", "classifier"): array for name, array in CLASSIFIER.items()},
        torchvision: {name.replace("head", "heads.head"): array for name, array in CLASSIFIER.items()},
    }
    classifier = sources.get(form, sources[hugging_face])
    assert_same(other_projects.known_names(form(backbone()) | classifier), backbone() | CLASSIFIER)


def test_masked_auto_encoder_of_hugging_face(plain, tmp_path, logged):  # noqa: F811
    decoder = zeros("decoder.mask_token", "decoder.decoder_embed.weight", "decoder.decoder_layers.0.output.dense.bias")
    assert_same(load(to_file(tmp_path, hugging_face(backbone(), "vit.") | decoder)), plain)
    assert all(name in left_out(logged) for name in decoder)


def test_augreg(plain, tmp_path, logged):  # noqa: F811
    state = augreg(backbone())
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    shapes = {f"{block}/query/kernel": (32, 4, 8), f"{block}/key/bias": (4, 8), f"{block}/out/kernel": (4, 8, 32)}
    shapes |= {"embedding/kernel": (8, 8, 3, 32), "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": (32, 128)}
    assert {name: state[name].shape for name in shapes} == shapes
    assert "Transformer/encoder_norm/scale" in state and "Transformer/encoderblock_2/LayerNorm_2/bias" in state
    path = to_file(tmp_path, state | {"head/kernel": np.ones((32, 5), "f4"), "head/bias": np.ones(5, "f4")}, ".npz")
    assert_same(load(path), plain)
    assert not any("weights file also holds" in message for message in logged.messages)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_augreg_of_other_float_types(dtype, tmp_path):
    arrays = load(to_file(tmp_path, {name: array.astype(dtype) for name, array in augreg(backbone()).items()}, ".npz"))
    state = {name: array.astype(dtype).astype("f4") for name, array in backbone().items()}
    assert_same(arrays, rename.from_torch(state, 1)[0])


def test_a_classifier_behind_a_representation_layer_is_no_classifier(plain, tmp_path, logged):  # noqa: F811
    extra = zeros("pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias")
    assert_same(load(to_file(tmp_path, augreg(backbone()) | extra, ".npz")), plain)
    assert "holds head/bias, head/kernel, pre_logits/bias, pre_logits/kernel, not used" in left_out(logged)
    assert "head.weight" not in other_projects.known_names(backbone() | CLASSIFIER | zeros("pre_logits.fc.weight"))


def test_known_names_in_npz(plain, tmp_path):
    assert_same(load(to_file(tmp_path, backbone(), ".npz")), plain)


def test_masked_auto_encoder(plain, tmp_path, logged):  # noqa: F811
    assert_same(load(to_file(tmp_path, backbone() | DECODER, ".pth", wrap="model")), plain)
    assert all(name in left_out(logged) for name in DECODER)


@pytest.mark.parametrize("head", [DINO_HEAD, {**DINO_HEAD, "head.last_layer.weight": np.zeros((7, 32), "f4")}])
def test_dino_checkpoint_gives_the_backbone_of_the_teacher(head, plain, tmp_path, logged):  # noqa: F811
    torch = pytest.importorskip("torch")
    import argparse

    tensors = lambda state: {name: torch.tensor(array) for name, array in state.items()}  # noqa: E731
    teacher = {f"backbone.{name}": array for name, array in backbone().items()} | head
    student = {f"module.{name}": array + 1 for name, array in teacher.items()}
    content = {"student": tensors(student), "teacher": tensors(teacher), "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    path = tmp_path / "checkpoint.pth"
    torch.save(content | {"optimizer": {"state": {0: {"step": torch.ones(())}}, "param_groups": []}}, path)
    assert_same(load(path), plain)
    assert all(name in left_out(logged) for name in head)
    torch.save({"teacher": tensors({f"module.{name}": array for name, array in teacher.items()})}, path)
    assert_same(load(path), plain)


def test_the_head_of_the_release_is_not_taken_for_one_of_dino(tmp_path):
    path = to_file(tmp_path, {f"enc.{name}": array for name, array in recorded("vit_linear").items()}, ".pth", wrap="teacher")
    assert_same(load(path, wanted=".*"), rename.from_torch(recorded("vit_linear"), 1)[0])


# LayerScale.


def gammas():
    rng = np.random.default_rng(0)
    return {f"blocks.{i}.ls{j}.gamma": rng.uniform(-1, 1, 32).astype("f4") for i in range(DEPTH) for j in (1, 2)}


def slow_vit(state, images):
    """Class token after the last norm `[B, D]`, in NumPy and float64, the gammas of `state` applied where timm does."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    linear = lambda name, x: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]

    b = len(images)
    patches = images.reshape(b, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5).reshape(b, 16, -1)
    x = patches @ state["patch_embed.proj.weight"].reshape(32, -1).T + state["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(state["cls_token"], (b, 1, 32)), x], axis=1) + state["pos_embed"]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).reshape(b, -1, 3, HEADS, PER_HEAD)
        q, k, v = np.moveaxis(qkv, 2, 0)
        weights = np.exp(np.einsum("bqhk,bnhk->bhqn", q, k) / PER_HEAD**0.5)
        weights /= weights.sum(-1, keepdims=True)
        y = linear(f"{block}.attn.proj", np.einsum("bhqn,bnhk->bqhk", weights, v).reshape(x.shape))
        x = x + y * state.get(f"{block}.ls1.gamma", 1)
        y = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        y = linear(f"{block}.mlp.fc2", y * (1 + np.vectorize(math.erf)(y / 2**0.5)) / 2)
        x = x + y * state.get(f"{block}.ls2.gamma", 1)
    return norm("norm", x)[:, 0]


@pytest.mark.parametrize("gamma", [{}, gammas()], ids=["without", "with"])
def test_folding_layer_scale_changes_no_number(gamma, tmp_path):
    recorded = recording("vit_linear")
    images = recorded["input/images_nchw"]
    weight, bias = (recorded[f"params/{name}"] for name in HEAD)
    expected = slow_vit(backbone() | gamma, images) @ weight.T + bias
    if not gamma:
        np.testing.assert_allclose(recorded["out/logits"], expected, rtol=0, atol=1e-5)
    params = start("linear", weights=to_file(tmp_path, backbone() | gamma))
    params |= rename.from_torch({name: recorded[f"params/{name}"] for name in HEAD}, 1)[0]
    with jax.default_matmul_precision("highest"):
        logits = apply(*network("linear"), trees.nested(params), images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def folded():
    """The arrays of a network with LayerScale as our network has them."""
    state = {}
    for name, array in backbone().items():
        match = re.fullmatch(r"(blocks\.\d)\.(attn\.proj|mlp\.fc2)\.(weight|bias)", name)
        if match:
            gamma = np.float64(gammas()[f"{match[1]}.ls{1 if 'attn' in name else 2}.gamma"])
            array = (np.diag(gamma) @ array).astype("f4")
        state[name] = array
    return rename.from_torch(state, 1)[0]


FORMS = {
    "timm": lambda state: state,
    "facebook": chunked,
    "training": lambda state: (
        {f"backbone.{name}": a for name, a in chunked(state).items()}
        | zeros("dino_head.mlp.0.weight", "dino_head.last_layer.weight_g", "ibot_head.mlp.0.bias")
    ),
    "Hugging Face": hugging_face_dinov2,
    "Hugging Face 5": hugging_face_dinov2_5,
    "Hugging Face with a classifier": lambda state: hugging_face_dinov2(state, "dinov2."),
}


@pytest.mark.parametrize("form", FORMS)
def test_layer_scale_of_every_spelling(form, tmp_path):
    state = FORMS[form](backbone() | gammas())
    name = "embeddings.mask_token" if "Hugging Face" in form else "mask_token"
    name = ("dinov2." if "classifier" in form else "") + name
    arrays = load(to_file(tmp_path, state | {name: np.zeros((1, 32), "f4")}))
    assert set(arrays) == set(folded())
    for path, array in folded().items():
        assert arrays[path].dtype == np.float32
        np.testing.assert_allclose(arrays[path], array, rtol=0, atol=1e-6, err_msg=path)


def test_position_embeddings_without_a_class_token(plain, tmp_path):
    """DeiT III, by the names of its authors and of timm."""
    state = backbone()
    embed = state["pos_embed"]
    expected = folded() | {"backbone/pos_embed": np.concatenate([np.zeros_like(embed[:, :1]), embed[:, 1:]], axis=1)}
    for names in (r"ls\1.gamma", r"gamma_\1"):
        scales = {re.sub(r"ls(\d)\.gamma", names, name): array for name, array in gammas().items()}
        arrays = load(to_file(tmp_path, state | scales | {"pos_embed": embed[:, 1:]}))
        for name, array in expected.items():
            np.testing.assert_allclose(arrays[name], array, rtol=1e-6, atol=1e-7, err_msg=name)
    small = load(to_file(tmp_path, backbone(pos_embed=embed[:, 1:5])))["backbone/pos_embed"]
    assert small.shape == embed.shape and not small[:, 0].any() and small[:, 1:].any()


# Modules around a network.


WRAPPERS = ["model.", "net.", "module.base_encoder.", "teacher.backbone.", "visual.trunk.", "enc.", "lightning.model.x_1."]
WRAPPED = {"timm": lambda state: state, "hugging_face": hugging_face, "hugging_face_5": hugging_face_5, "augreg": augreg}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_modules_around_a_network_are_taken_off(wrapper, form, plain, tmp_path):
    state = {wrapper + name: array for name, array in WRAPPED[form](backbone()).items()}
    assert_same(load(to_file(tmp_path, state, ".npz")), plain)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    parts=st.lists(st.text("abcmodel_1", min_size=1, max_size=9), max_size=4),
    form=st.sampled_from(sorted(WRAPPED)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    beside=st.booleans(),
)
def test_any_module_around_a_network_is_taken_off(parts, form, dtype, beside):
    wrapper = "".join(f"{part}." for part in parts)
    half = {name: array.astype(dtype).astype("f4") for name, array in backbone().items()}
    state = {wrapper + name: array for name, array in WRAPPED[form](half).items()}
    if len(parts) > 1 and beside:
        state |= {"zz.momentum": np.ones(3, "f4"), f"{parts[0]}.zz.1.weight": np.ones((2, 2), "f4")}
    assert_same(other_projects.known_names(state), half)


def test_the_classifier_beside_a_wrapped_network_is_kept(tmp_path):
    state = {f"model.encoder.{name}": array for name, array in backbone().items()}
    state |= {f"model.{name}": array for name, array in CLASSIFIER.items()}
    assert_same(other_projects.known_names(state), backbone() | CLASSIFIER)


@pytest.mark.parametrize(
    ("used", "other"),
    [("teacher.backbone.", "student.backbone."), ("module.base_encoder.", "module.moving."), ("model_ema.", "model.")],
)
def test_of_several_networks_the_evaluated_one_is_taken(used, other, tmp_path, logged):  # noqa: F811
    state = {used + name: array for name, array in backbone().items()}
    state |= {other + name: array + 1 for name, array in backbone().items()} | {f"{used}head.0.weight": np.ones((2, 2), "f4")}
    assert_same(other_projects.known_names(state), backbone())
    assert any(f"of which {used} is used" in message for message in logged.messages)
    neither = {name.replace(used, "first."): array for name, array in state.items()}
    assert "it holds several networks (first., " in refusal(to_file(tmp_path, neither, ".npz"))


def test_heads_of_the_small_vit_of_moco_are_said(logged):  # noqa: F811
    state = {f"{wrapper}.patch_embed.proj.weight": np.zeros(1, "f4") for wrapper in ("base_encoder", "momentum_encoder")}
    for width, warned in ((768, False), (384, True)):
        logged.clear()
        other_projects.known_names(state | {"base_encoder.cls_token": np.zeros((1, 1, width), "f4")})
        assert any("num_heads 12" in message for message in logged.messages) == warned


@pytest.mark.parametrize("beside", ["neck.stem.0.weight", "model.neck.patch_embed.proj.weight", "decode_head.stem.0.weight"])
def test_the_backbone_of_a_detector_is_taken(beside):
    state = {f"backbone.{name}": array for name, array in backbone().items()} | {beside: np.ones((2, 2), "f4")}
    assert_same(other_projects.known_names(state), backbone())


def test_names_in_messages_are_those_of_the_file(tmp_path):
    state = {f"net.{name}": array for name, array in backbone(dist_token=np.zeros((1, 1, 32), "f4")).items()}
    assert "belongs to a distilled DeiT" in (text := refusal(to_file(tmp_path, state, ".npz")))
    assert text.endswith("no network here has net.dist_token.")


def test_blocks_in_chunks(plain, tmp_path):
    assert_same(load(to_file(tmp_path, chunked(backbone()))), plain)


# Half precision, whatever the format.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", [hugging_face, hugging_face_5, chunked])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_half_precision(form, dtype, suffix, tmp_path):
    half = {name: array.astype(getattr(ml_dtypes, dtype, dtype)) for name, array in backbone().items()}
    rounded = {name: array.astype("f4") for name, array in half.items()}
    arrays = load(to_file(tmp_path, form(half if suffix == ".safetensors" else rounded), suffix, dtype=dtype))
    assert_same(arrays, rename.from_torch(rounded, 1)[0])


# What is refused.


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["dist_token"], "a distilled DeiT"),
        (["blocks.0.mlp.fc1.SCB", "blocks.0.mlp.fc1.weight_format"], "a quantized network"),
        (["blocks.0.mlp.fc1.weight.absmax", "blocks.0.mlp.fc1.weight.quant_map"], "a quantized network"),
        (["blocks.1.attn.q_norm.weight", "blocks.1.attn.k_norm.weight"], "a ViT with norms of queries and keys"),
        (["fc_norm.weight", "fc_norm.bias"], "a ViT with its last norm after pooling (as MAE's fine-tuning makes)"),
        (["blocks.0.attn.relative_position_bias_table", "blocks.0.attn.q_bias", "blocks.0.gamma_1"], "a BEiT"),
        (["blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.gamma_1"], "a BEiT"),
        (["beit.encoder.layer.0.lambda_1"], "a BEiT"),
        (["layers.0.blocks.0.attn.relative_position_bias_table", "layers.0.downsample.norm.bias"], "a Swin Transformer"),
        (["swin.encoder.layers.0.blocks.0.output.dense.bias"], "a Swin Transformer"),
        (["stages.0.blocks.0.conv1.weight"], "another network of stages"),
        (["convnextv2.encoder.stages.0.layers.0.grn.weight"], "a ConvNeXt V2"),
        (["visual.proj", "visual.transformer.resblocks.0.ln_1.bias", "logit_scale"], "CLIP or a network like it"),
        (["vision_model.embeddings.class_embedding", "text_model.x.bias"], "CLIP or a network like it"),
        (["conv_root/kernel"], "another kind of network"),
    ],
)
def test_networks_that_cannot_be_used_are_named(names, kind, tmp_path):
    state = {name: array for name, array in backbone().items() if "fc2" not in name} | zeros(*names)
    text = refusal(to_file(tmp_path, state))
    assert f"belongs to {kind}, which cannot be used: no network here has " in text and names[0] in text


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["embeddings.distillation_token"], "a distilled DeiT"),
        (["encoder.layer.0.attention.attention.extra"], "another kind of network"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "vit.", "dinov2."])
def test_networks_of_hugging_face_that_cannot_be_used_are_named(names, kind, prefix, tmp_path):
    text = refusal(to_file(tmp_path, hugging_face(backbone() | zeros(*names), prefix)))
    assert f"belongs to {kind}, which cannot be used" in text and names[0] in text


@pytest.mark.parametrize("form", ["alone", "with its network"])
def test_an_adapter_of_peft_is_refused_with_the_way_to_merge_it(form, tmp_path):
    """Its network would otherwise be taken for one of another size."""
    query = "base_model.model.vit.encoder.layer.0.attention.attention.query"
    if form == "alone":
        state = zeros(f"{query}.lora_A.weight", f"{query}.lora_B.weight", "base_model.model.classifier.weight")
    else:
        whole = hugging_face(backbone(), "base_model.model.vit.")
        state = {name.replace("query.", "query.base_layer."): array for name, array in whole.items()}
        state |= zeros(f"{query}.lora_A.default.weight")
    path = to_file(tmp_path, state)
    text = refusal(path)
    assert text.startswith(f"{path} is an adapter of PEFT, not a network; merge it into its network there (merge_and_unload")


def test_distilled_deit_of_hugging_face_is_named(tmp_path):
    state = hugging_face(backbone(), "deit.") | zeros("deit.embeddings.distillation_token")
    assert "belongs to a distilled DeiT" in refusal(to_file(tmp_path, state))


def test_only_the_names_that_tell_the_network_are_listed(tmp_path):
    others = zeros(*(f"blocks.{i}.ls1.gamma" for i in range(4, 24)))
    text = refusal(to_file(tmp_path, backbone(dist_token=np.zeros((1, 1, 32), "f4"), **others)))
    assert text.endswith("no network here has dist_token.")


@pytest.mark.parametrize(
    ("form", "name", "field"),
    [
        ({}, "register_tokens", "registers"),
        ({}, "reg_token", "registers"),
        ({"blocks.0.mlp.fc1": "blocks.0.mlp.fc1_x"}, "blocks.0.mlp.fc1_g.weight", "mlp"),
    ],
)
def test_what_the_config_leaves_out_is_refused_with_the_field_that_adds_it(form, name, field, tmp_path):
    state = renamed(backbone(), form.items())
    extra = {name: np.zeros((1, 4, 32) if "reg" in name else (128, 32), "f4")}
    if "fc1_g" in name:
        extra["blocks.0.mlp.fc1_g.bias"] = np.zeros(128, "f4")
    text = refusal(to_file(tmp_path, state | extra))
    assert "which the network of the config has not" in text and text.endswith(f"check config.backbone.{field}.")


@pytest.mark.parametrize(
    ("form", "gone", "expected"),
    [
        (hugging_face, "encoder.layer.1.attention.attention.key.bias", "blocks.1.attn.q.bias, blocks.1.attn.v.bias"),
        (hugging_face, "encoder.layer.1.attention.attention.query.bias", "blocks.1.attn.k.bias, blocks.1.attn.v.bias"),
        (hugging_face, "layernorm.weight", "lacks backbone/norm/scale"),
        (hugging_face_5, "layers.2.mlp.fc1.bias", "lacks backbone/blocks/2/mlp/fc1/bias"),
        (augreg, "embedding/bias", "lacks backbone/patch_embed/bias"),
        (augreg, "Transformer/encoderblock_0/LayerNorm_0/scale", "lacks backbone/blocks/0/norm1/scale"),
    ],
)
def test_missing_arrays_are_told(form, gone, expected, tmp_path):
    state = form(backbone())
    del state[gone]
    assert expected in refusal(to_file(tmp_path, state, ".npz"))


@pytest.mark.parametrize(
    ("form", "name", "shape", "expected"),
    [
        (augreg, "embedding/kernel", (192, 32), "embedding/kernel is (192, 32), which no network here has"),
        (augreg, "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel", (), "key/kernel is ()"),
        (augreg, "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel", (), "out/kernel is ()"),
        (
            hugging_face,
            "encoder.layer.0.attention.attention.key.weight",
            (16, 32),
            "no network here has blocks.0.attn.k.weight",
        ),
        (hugging_face, "encoder.layer.0.attention.attention.query.bias", (), "no network here has blocks.0.attn.k.bias"),
        (hugging_face, "encoder.layer.0.attention.attention.value.bias", (1, 32), "no network here has blocks.0.attn.k.bias"),
        (hugging_face_dinov2, "encoder.layer.0.layer_scale1.lambda1", (), "no network here has blocks.0.ls1.gamma"),
        (hugging_face_dinov2, "encoder.layer.0.layer_scale2.lambda1", (1,), "no network here has blocks.0.ls2.gamma"),
    ],
)
def test_arrays_without_the_axes_of_their_name_are_refused(form, name, shape, expected, tmp_path):
    state = form(backbone() | (gammas() if form is hugging_face_dinov2 else {}))
    assert name in state
    assert expected in refusal(to_file(tmp_path, state | {name: np.zeros(shape, "f4")}, ".npz"))


def test_queries_keys_and_values_without_axes_are_refused(tmp_path):
    state = {
        name: array.sum() if "layer.0.attention.attention" in name else array
        for name, array in hugging_face(backbone()).items()
    }
    text = refusal(to_file(tmp_path, state, ".npz"))
    assert all(f"blocks.0.attn.{part}.weight" in text for part in "qkv")


def test_feedback_decoders_are_no_masked_auto_encoder():
    decoders = zeros("decoders.0.linear.weight")
    assert decoders.keys() <= other_projects.known_names(hugging_face(backbone()) | decoders).keys()


def test_one_array_under_two_names_is_refused(tmp_path):
    state = hugging_face(backbone()) | backbone()
    assert "is not the only name for" in refusal(to_file(tmp_path, state))


# Files that are not what they say.


def half_files():
    forms = {".safetensors": hugging_face, ".pth": hugging_face, ".pt": backbone, ".bin": hugging_face_5, ".npz": augreg}
    return [(suffix, form, kept) for suffix, form in forms.items() for kept in (0, 1, 4, 30, 1000, 0.5, 0.9, -1)]


@pytest.mark.parametrize(("suffix", "form", "kept"), half_files())
def test_half_a_download_is_refused(suffix, form, kept, tmp_path):
    path = tmp_path / f"vit{suffix}"
    to_file(tmp_path, backbone() if form is backbone else form(backbone()), suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    text = refusal(path)
    assert "is not a complete " in text and "copy or download it again" in text and "pickle" not in text


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz_gives_arrays_or_an_input_error(compressed, tmp_path):
    path = tmp_path / "vit.npz"
    (np.savez_compressed if compressed else np.savez)(path, a=np.ones(2, "f4"), b=np.ones((2, 3), "f4"))
    assert refusals_of_damaged_copies(path, containers.read)


def test_npz_of_objects_is_refused_and_runs_nothing(tmp_path):
    path, trace = tmp_path / "vit.npz", tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    np.savez(path, **augreg(backbone()), extra=np.array([Malicious()], dtype=object))
    text = refusal(path)
    assert not trace.exists()
    assert "holds Python objects" in text and "could run code" in text and "allow_pickle" not in text
    np.load(path, allow_pickle=True)["extra"]  # that it is one
    assert trace.exists()


@pytest.mark.parametrize("content", ["pickle", "npy", "objects in npy"])
def test_npz_that_is_none(content, tmp_path):
    import pickle

    path, trace = tmp_path / "vit.npz", tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    with open(path, "wb") as file:
        if content == "pickle":
            pickle.dump(Malicious(), file)
        else:
            np.save(file, np.array([Malicious()], dtype=object) if "objects" in content else np.ones(3))
    assert "is not a complete .npz file" in refusal(path) and not trace.exists()


@pytest.mark.parametrize(
    "array", [np.ones(2, "i4"), np.ones(2, "c8"), np.ones(2, bool), np.array(["text"]), np.zeros(2, "V2")], ids=str
)
def test_npz_of_anything_but_floats_is_refused(array, tmp_path):
    text = refusal(to_file(tmp_path, augreg(backbone()) | {"extra": array}, ".npz"))
    assert "holds extra, which are no arrays of floats" in text


def test_npz_with_a_member_that_is_no_array(tmp_path):
    import zipfile

    path = to_file(tmp_path, augreg(backbone()), ".npz")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("notes.txt", "text")
    assert "holds notes.txt, which are no arrays of floats" in refusal(path)


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file")
def test_torchscript_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "clip.pt"))
    assert "is a TorchScript program" in refusal(tmp_path / "clip.pt")
