"""Weight files: the rename table in both directions, what fits a network, and files that are not what they say."""

import json
import logging
import os
import re
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import FIXTURES
from tests.conftest import refusals_of_damaged_copies
from toast_jax.config import schema
from toast_jax.config.run_fields import base
from toast_jax.errors import InputError
from toast_jax.model.families import FAMILIES
from toast_jax.train.setup import load_network
from toast_jax.weights import containers, pretrained, rename

RECORDINGS = sorted(path.stem for path in FIXTURES.glob("vit_*.npz"))
RELEASED = sorted(path.name for path in FIXTURES.glob("vit_*.pth"))
DEPTH = 3
BACKBONE = r"(cls_token|pos_embed|patch_embed|blocks|norm)\b.*"


def recorded(name):
    """The parameters of a recording by the names of the release, `enc.` taken off."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        names = {key: key.removeprefix("params/").removeprefix("enc.") for key in file.files if key.startswith("params/")}
        return {name: file[key] for key, name in names.items()}


def backbone(**changed):
    """The parameters of a backbone file; `changed` are added, None takes one out."""
    state = {name: array for name, array in recorded("vit_linear").items() if re.fullmatch(BACKBONE, name)}
    return {name: array for name, array in (state | changed).items() if array is not None}


def widened(state):
    """The same names for a width of 48 in place of 32."""
    return {name: np.zeros([n * 3 // 2 if n >= 32 else n for n in array.shape], "f4") for name, array in state.items()}


def deepened(state):
    """The same with a fourth block."""
    return state | {name.replace("blocks.2", "blocks.3"): a for name, a in state.items() if name.startswith("blocks.2")}


def shallowed(state):
    """The same without the last block."""
    return {name: array for name, array in state.items() if not re.match(r"blocks\.2\.", name)}


def save(path, state):
    save_file({name: np.array(array, order="C") for name, array in state.items()}, path)
    return str(path)


def load(path, network="vit_linear", *, last_blocks=1, wanted="backbone/.*", **options):
    """Loads a file into the network of a recording."""
    shapes, _ = rename.from_torch(recorded(network), last_blocks)
    return pretrained.load(str(path), shapes, last_blocks=last_blocks, wanted=wanted, **options)


def refusal(path, *args, **kwargs):
    """The text with which `load` refuses a file: one sentence that names it."""
    with pytest.raises(InputError) as raised:
        load(path, *args, **kwargs)
    text = str(raised.value)
    assert str(path) in text and text.endswith(".") and "\n" not in text
    assert not re.search(r"\. [A-Z]", text), "more than one sentence"
    return text


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged, whatever the command line did to the logger before."""
    monkeypatch.setattr(logging.getLogger("toast_jax"), "propagate", True)
    caplog.set_level(logging.INFO, logger="toast_jax")
    return caplog


# The rename table.


@pytest.mark.parametrize("last_blocks", [1, 2, DEPTH])
@pytest.mark.parametrize("name", RECORDINGS)
def test_renaming_there_and_back_is_the_identity(name, last_blocks):
    state = recorded(name)
    ours, unknown = rename.from_torch(state, last_blocks)
    assert unknown == []
    assert_same(rename.to_torch(ours), state)
    for i in range(last_blocks):
        theirs = state[f"blocks.{DEPTH - last_blocks + i}.norm1.weight"]
        np.testing.assert_array_equal(ours[f"backbone/last_{i}/norm1/scale"], theirs)
    assert ("backbone/blocks/norm1/scale" in ours) == (last_blocks < DEPTH)


def test_renaming_leaves_out_and_tells_unknown_names():
    ours, unknown = rename.from_torch(backbone(extra=np.ones(1)), 1)
    assert unknown == ["extra"]
    assert set(ours) == set(rename.from_torch(backbone(), 1)[0])


def test_renaming_back_refuses_a_path_without_a_name():
    with pytest.raises(ValueError, match="no line for.*backbone/extra"):
        rename.to_torch({"backbone/extra": np.ones(1)})


# Files that are fine.


@pytest.mark.parametrize("name", RELEASED)
def test_safetensors_give_what_the_released_file_gives(name, tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    from safetensors.torch import save_file

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(FIXTURES / name, weights_only=True)
    save_file(content.get("model") or content["model_state_dict"], tmp_path / "same.safetensors")
    released = containers.read(str(FIXTURES / name))
    assert_same(released, containers.read(str(tmp_path / "same.safetensors")))
    assert released.keys() <= recorded("vit_toast").keys()


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "enc.",
        "module.enc.",
        "backbone.",
        "_orig_mod.",
        "module._orig_mod.backbone.",
        "_orig_mod.module.module.enc.",
    ],
)
def test_prefixes_are_taken_off(prefix, tmp_path):
    path = save(tmp_path / "vit.safetensors", {prefix + name: array for name, array in backbone().items()})
    assert_same(containers.read(path), backbone())


def test_prefixes_inside_a_name_stay(tmp_path):
    state = {name: np.ones(2, "f4") for name in ("blocks.module.enc.x", "modules.x", "encoder.x", "my_backbone.x")}
    assert_same(containers.read(save(tmp_path / "vit.safetensors", state)), state)


def test_one_array_under_two_prefixes_is_refused(tmp_path):
    state = backbone(**{"module.norm.bias": np.ones(32, "f4")})
    assert "holds norm.bias twice" in refusal(save(tmp_path / "vit.safetensors", state))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(dtype, tmp_path):
    state = {name: array.astype(dtype) for name, array in backbone().items()}
    arrays = containers.read(save(tmp_path / "vit.safetensors", state))
    assert_same(arrays, {name: array.astype(np.float32) for name, array in state.items()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("wrap", [None, "model", "model_state_dict", "state_dict", "teacher"])
def test_torch_files_of_every_float_type_and_wrapping(dtype, wrap, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.nn.Parameter(torch.tensor(a).to(getattr(torch, dtype))) for name, a in backbone().items()}
    for suffix in (".pt", ".ckpt", ".pth.tar"):
        torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, tmp_path / f"vit{suffix}")
        arrays = containers.read(str(tmp_path / f"vit{suffix}"))
        assert_same(arrays, {name: tensor.detach().float().numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher"), ("model", None)]
)
def test_averaged_weights_are_taken_from_a_training_checkpoint(raw, averaged, tmp_path, logged):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in backbone().items()}
    sets = {raw: {name: tensor + 1 for name, tensor in tensors.items()}, averaged: tensors if averaged else None, "epoch": 9}
    torch.save(sets, tmp_path / "vit.pth")
    arrays = containers.read(str(tmp_path / "vit.pth"))
    assert_same(arrays, {name: array + (0 if averaged else 1) for name, array in backbone().items()})
    assert [f"{averaged} is used, {raw} not" in message for message in logged.messages] == [True] * bool(averaged)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "vit.safetensors", backbone())
    assert_same(containers.read("~/vit.safetensors"), backbone())


# What fits a network.


def test_only_what_is_wanted_is_loaded(tmp_path, logged):
    state = recorded("vit_toast")
    path = save(tmp_path / "vit.safetensors", state)
    arrays = load(path, "vit_linear")
    assert_same(arrays, {k: v for k, v in rename.from_torch(state, 1)[0].items() if k.startswith("backbone/")})
    assert f"{path} also holds head, top_down, not used here." in logged.messages


@pytest.mark.parametrize("last_blocks", [1, 2, DEPTH])
def test_blocks_outside_the_stack_are_loaded(last_blocks, tmp_path):
    path = save(tmp_path / "vit.safetensors", recorded("vit_toast"))
    arrays = load(path, "vit_toast", last_blocks=last_blocks, wanted=".*")
    assert_same(arrays, rename.from_torch(recorded("vit_toast"), last_blocks)[0])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("head.weight", "head.bias"), "classifier, not used"),
        (("head_dist.weight", "head_dist.bias"), "(head_dist.bias, head_dist.weight), not used"),
        (("pre_logits.fc.weight",), "(pre_logits.fc.weight), not used"),
    ],
)
def test_classifiers_of_other_tasks_are_left_out_and_told(names, told, tmp_path, logged):
    path = save(tmp_path / "vit.safetensors", backbone(**{name: np.ones((5, 32), "f4") for name in names}))
    assert_same(load(path), load(save(tmp_path / "plain.safetensors", backbone())))
    (message,) = [message for message in logged.messages if "classifier" in message]
    assert path in message and told in message


def test_missing_names_are_listed(tmp_path):
    gone = {"norm.bias": None, "blocks.0.attn.qkv.weight": None, "blocks.1.norm1.weight": None, "blocks.2.mlp.fc1.bias": None}
    text = refusal(save(tmp_path / "vit.safetensors", backbone(**gone)))
    paths = ("norm/bias", "blocks/0/attn/q/kernel", "blocks/0/attn/v/kernel", "blocks/1/norm1/scale", "blocks/2/mlp/fc1/bias")
    assert "lacks" in text and all(f"backbone/{path}" in text for path in paths)


def test_file_without_anything_is_refused(tmp_path):
    assert re.search("lacks backbone/.* and [0-9]+ more", refusal(save(tmp_path / "vit.safetensors", {})))


def test_unexpected_names_are_listed(tmp_path):
    gammas = {f"blocks.{i}.delta_{j}": np.ones(32, "f4") for i in range(DEPTH) for j in (1, 2)}
    text = refusal(save(tmp_path / "vit.safetensors", backbone(**gammas, extra=np.ones((1, 32), "f4"))))
    assert "another kind of network" in text and all(name in text for name in (*gammas, "extra"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dist_token", "belongs to a distilled DeiT"),
        ("register_tokens", "has backbone/reg_token, which the network of the config"),
    ],
)
def test_networks_that_look_like_ours_are_named(name, words, tmp_path):
    others = {f"blocks.{i}.ls1.gamma": np.ones(32, "f4") for i in range(DEPTH)} if name == "register_tokens" else {}
    changed = {name: np.ones((1, 1, 32), "f4"), "pos_embed": np.ones((1, 18, 32), "f4"), **others}
    text = refusal(save(tmp_path / "vit.safetensors", backbone(**changed)))
    assert words in text


@pytest.mark.parametrize("last_blocks", [1, 2, DEPTH])
@pytest.mark.parametrize(("change", "layers"), [(deepened, 4), (shallowed, 2)])
def test_wrong_depth_is_refused(change, layers, last_blocks, tmp_path):
    text = refusal(save(tmp_path / "vit.safetensors", change(backbone())), last_blocks=last_blocks)
    assert f"has {layers} layers, the network of the config has {DEPTH}" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (widened, "backbone/cls_token is (1, 1, 48) in the file and (1, 1, 32) in the network"),
        (
            lambda state: state | {"patch_embed.proj.weight": np.zeros((32, 3, 16, 16), "f4")},
            "backbone/patch_embed/kernel is (768, 32) in the file and (192, 32) in the network",
        ),
        (
            lambda state: state | {"blocks.1.norm1.weight": np.zeros(31, "f4")},
            "backbone/blocks/1/norm1/scale is (31,) in the file and (32,) in the network",
        ),
    ],
    ids=["width", "patch", "one layer"],
)
def test_wrong_shapes_are_told_with_both(change, expected, tmp_path):
    text = refusal(save(tmp_path / "vit.safetensors", change(backbone())))
    assert expected in text and text.endswith("check config.backbone.size, and config.backbone.patch of a ViT.")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.1.attn.qkv.weight", (95, 32)),
        ("blocks.1.attn.qkv.bias", ()),
        ("patch_embed.proj.weight", (32, 192)),
        ("pos_embed", (32,)),
        ("pos_embed", ()),
    ],
)
def test_arrays_without_the_axes_of_their_name_are_refused(name, shape, tmp_path):
    text = refusal(save(tmp_path / "vit.safetensors", backbone(**{name: np.zeros(shape, "f4")})))
    assert str(shape) in text and (name in text or "position embeddings" in text)


@pytest.mark.parametrize(
    ("name", "rows", "expected", "fields"),
    [
        ("vit_toast", {"head": 9}, "head/kernel is (32, 9) in the file and (32, 7) in the network", "number of classes"),
        ("vit_lora", {"lora_A": 8}, "attn/a is (32, 8) in the file and (32, 4) in the network", "config.lora.rank"),
        ("vit_vpt_shallow", {"prompt_embeddings": 2}, "prompts/tokens is (2, ", "config.prompts"),
        ("vit_toast", {"decoders": 31}, "top_down/back/0 is (32, 31) in the file and (32, 32)", "config.backbone.size"),
    ],
)
def test_tuned_parameters_of_another_size_are_refused(name, rows, expected, fields, tmp_path):
    ((part, size),) = rows.items()
    state = recorded(name)
    changed = {name: np.zeros((size, *array.shape[1:]), "f4") for name, array in state.items() if part in name}
    text = refusal(save(tmp_path / "tuned.safetensors", state | changed), name, wanted=".*")
    assert expected in text and fields in text.split("; check ")[1]


@pytest.mark.parametrize(
    ("tuned", "network"), [("vit_toast", "vit_linear"), ("vit_lora", "vit_linear"), ("vit_toast_lite", "vit_toast")]
)
def test_whole_networks_of_another_method_are_refused(tuned, network, tmp_path):
    path = save(tmp_path / "tuned.safetensors", recorded(tuned))
    assert "which the network of the config has not" in refusal(path, network, wanted=".*")
    path = save(tmp_path / "other.safetensors", recorded(network))
    assert "lacks" in refusal(path, tuned, wanted=".*")


def test_optional_parameters_are_all_there_or_refused(tmp_path):
    options = {"network": "vit_toast", "optional": ["top_down/.*"]}
    state = {name: array for name, array in recorded("vit_toast").items() if not name.startswith("head.")}
    assert "top_down/prior" in load(save(tmp_path / "both.safetensors", state), **options)
    assert "top_down/prior" not in load(save(tmp_path / "one.safetensors", backbone()), **options)
    del state["decoders.1.linear2.weight"]
    assert "lacks top_down/out/1" in refusal(save(tmp_path / "part.safetensors", state), **options)


@pytest.mark.parametrize("with_backbone", [True, False])
@pytest.mark.parametrize("wanted", [{"wanted": "top_down/.*"}, {"wanted": "backbone/.*", "optional": ["top_down/.*"]}])
def test_a_pretuned_module_without_its_transform_keeps_the_identity(wanted, with_backbone, tmp_path, logged):
    if not with_backbone and "optional" in wanted:
        return
    state = {name: array for name, array in recorded("vit_toast").items() if not name.startswith("head.")}
    state = {name: array for name, array in state.items() if with_backbone or not re.fullmatch(BACKBONE, name)}
    expected = load(save(tmp_path / "whole.safetensors", state), "vit_toast", **wanted)
    del state["top_down_transform"]
    path = save(tmp_path / "part.safetensors", state)
    assert "lacks top_down/transform" in refusal(path, "vit_toast", **wanted)
    arrays = load(path, "vit_toast", **wanted, identity="top_down/transform")
    assert_same(arrays, expected | {"top_down/transform": np.eye(32, dtype="f4")})
    assert f"{path} has no top_down/transform; it starts as the identity, as in the release." in logged.messages
    del state["prompt"]
    assert "lacks top_down/prior, top_down/transform" in refusal(
        save(tmp_path / "less.safetensors", state), "vit_toast", **wanted, identity="top_down/transform"
    )


# Position embeddings.


def test_position_embeddings_of_the_same_grid_stay_identical():
    embed = np.random.default_rng(0).standard_normal((1, 1 + 14**2, 8), np.float32)
    np.testing.assert_array_equal(pretrained.resize_pos_embed(embed, 1 + 14**2), embed)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 28), (24, 14), (4, 7)])
def test_position_embeddings_are_resized_as_pytorch_does(old, new):
    torch = pytest.importorskip("torch")
    embed = np.random.default_rng(0).standard_normal((1, 1 + old**2, 8), np.float32)
    ours = pretrained.resize_pos_embed(embed, 1 + new**2)
    grid = torch.from_numpy(embed[:, 1:]).reshape(1, old, old, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(ours[:, 1:], theirs.permute(0, 2, 3, 1).reshape(1, new**2, 8).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ours[:, 0], embed[:, 0])


def test_position_embeddings_keep_their_directions():
    ramp = np.broadcast_to(np.arange(14, dtype=np.float32), (14, 14))
    grid = np.stack([ramp, ramp.T], axis=-1).reshape(1, 196, 2)  # the column and the row of every patch
    embed = np.concatenate([np.full((1, 1, 2), 100, np.float32), grid], axis=1)
    larger = pretrained.resize_pos_embed(embed, 1 + 28**2)
    np.testing.assert_array_equal(larger[:, 0], embed[:, 0])
    column, row = larger[0, 1:].reshape(28, 28, 2).transpose(2, 0, 1)
    expected = np.broadcast_to((np.arange(28) + 0.5) / 2 - 0.5, (28, 28))
    np.testing.assert_allclose(column, expected, atol=0.3)
    np.testing.assert_allclose(row, expected.T, atol=0.3)


def test_position_embeddings_of_another_grid_are_resized_on_loading(tmp_path, logged):
    small = np.random.default_rng(0).standard_normal((1, 5, 32), np.float32)
    arrays = load(save(tmp_path / "vit.safetensors", backbone(pos_embed=small)))
    np.testing.assert_array_equal(arrays["backbone/pos_embed"], pretrained.resize_pos_embed(small, 17))
    assert arrays["backbone/pos_embed"].shape == (1, 17, 32)
    assert "Interpolating position embeddings from 2x2 to 4x4 patches." in logged.messages


@pytest.mark.parametrize("tokens", [15, 16, 18, 21])
def test_position_embeddings_that_are_no_square_are_refused(tokens, tmp_path):
    embed = np.zeros((1, tokens, 32), np.float32)
    with pytest.raises(ValueError, match=f"of {tokens} tokens are not one class token and a square"):
        pretrained.resize_pos_embed(embed, 17)
    if tokens == 16:  # in a file, a square without a class token (see test_other_projects.py)
        return
    assert f"of {tokens} tokens" in refusal(save(tmp_path / "vit.safetensors", backbone(pos_embed=embed)))


# Files that are not what they say.


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_absent_file(suffix, tmp_path):
    assert "There is no weights file at" in refusal(tmp_path / f"absent{suffix}")


@pytest.mark.parametrize("field", ["backbone.weights", "top_down", "checkpoint"])
def test_an_absent_file_is_reported_with_the_field_that_names_it(field, tmp_path):
    config = base(name="x", method="toast", backbone="vit_ti16")
    values = {"backbone.weights": "random", "top_down": "", "checkpoint": "", field: str(tmp_path / "absent.pth")}
    config.update_from_flattened_dict(values)
    with pytest.raises(InputError) as raised:
        load_network(config, 3)
    assert str(raised.value) == f"There is no weights file at {tmp_path}/absent.pth; correct --config.{field}."
    assert field in schema.fields_of(config)


@pytest.mark.parametrize("path", ["~nobody_of_this_name/vit.pth", "x" * 300 + ".pth", "a\0.pth", "vit.pth/"])
def test_impossible_paths_are_absent_files(path):
    with pytest.raises(InputError, match="There is no weights file at"):
        containers.read(path)


@pytest.mark.parametrize("name", ["folder", "folder.pth", "folder.safetensors"])
def test_folder_in_place_of_a_file(name, tmp_path):
    (tmp_path / name).mkdir()
    assert "is a folder" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["vit.npy", "vit.tar", "vit.h5", "vit"])
def test_unknown_ending(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    assert "unknown ending; give a .pth, .pt, .bin, .safetensors or .npz file" in refusal(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_truncated_safetensors(kept, tmp_path):
    path = tmp_path / "vit.safetensors"
    save(path, backbone())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "is not a complete safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"norm.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 2**40),
        ({"norm.bias": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}}, None),
        ({"norm.bias": {"dtype": "F32", "shape": [2**20], "data_offsets": [0, 8]}}, None),
        ({"norm.bias": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, None),
        ({"norm.bias": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, None),
        ({"norm.bias": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, None),
        ({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("norm.weight", "norm.bias")}, None),
        ({"norm.bias": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, None),
        ({"norm.bias": 5}, None),
        ([1, 2], None),
    ],
    ids=["header size", "data size", "shape", "overflow", "negative", "backwards", "overlap", "dtype", "entry", "list"],
)
def test_lying_safetensors_header(header, length, tmp_path):
    path, text = tmp_path / "vit.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(8))
    assert "is not a complete safetensors file" in refusal(path)


def test_safetensors_of_a_type_that_numpy_does_not_have(tmp_path):
    path, text = tmp_path / "vit.safetensors", b'{"norm.bias": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}'
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "convert it to float32" in refusal(path)


@pytest.mark.parametrize("kept", [0, 1, 10, 1000, 0.5, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_file(zipped, kept, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "vit.pth"
    tensors = {name: torch.tensor(array) for name, array in backbone().items()}
    torch.save({"model": tensors}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    text = refusal(path)
    assert "is not a complete PyTorch file" in text and "weights_only" not in text


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("ending", ["pth-zip", "pth-pickle", "safetensors"])
def test_damaged_bytes_give_arrays_or_an_input_error(ending, tmp_path):
    path, state = tmp_path / f"vit.{ending.split('-')[0]}", {"norm.bias": np.ones(2, "f4"), "norm.weight": np.ones(2, "f4")}
    save(path, state)
    if ending != "safetensors":
        torch = pytest.importorskip("torch")
        tensors = {name: torch.tensor(array) for name, array in state.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=ending == "pth-zip")
    assert refusals_of_damaged_copies(path, containers.read)


@pytest.mark.parametrize("saved", ["zip", "pickle", "bare pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_pickle_that_would_run_code_is_refused_and_does_not(saved, suffix, tmp_path):
    torch = pytest.importorskip("torch")
    import pickle

    path, trace = tmp_path / f"vit{suffix}", tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    if saved == "bare pickle":
        path.write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    else:
        torch.save({"model": Malicious()}, path, _use_new_zipfile_serialization=saved == "zip")
    text = refusal(path)
    assert not trace.exists()
    assert f"{os.mkdir.__module__}.mkdir" in text and "could run code" in text and "weights_only" not in text
    if saved != "bare pickle":  # that it is one
        torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("ending", ["npz", "pth"])
def test_a_bomb_is_refused_before_it_is_unpacked(ending, tmp_path, monkeypatch):
    """Zeros, a thousand times smaller in the file."""
    import zipfile

    path, plain = tmp_path / f"vit.{ending}", tmp_path / "plain.pth"
    zeros = {"norm.bias": np.zeros(2**20, "f4")}
    monkeypatch.setattr(containers, "_LARGE", 2**20)
    if ending == "npz":
        np.savez_compressed(path, **zeros)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(array) for name, array in zeros.items()}, plain)
        with zipfile.ZipFile(plain) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in stored.namelist():
                packed.writestr(name, stored.read(name))
    assert path.stat().st_size < 2**15
    assert re.search(r"of [\d,]+ bytes would unpack to 4,19\d,\d+, which no weights do", refusal(path))


def test_a_tensor_that_repeats_its_numbers_is_refused(tmp_path):
    """Four bytes that PyTorch shows as 2**40 of them."""
    torch = pytest.importorskip("torch")
    torch.save({"norm.bias": torch.ones(1).expand(2**38)}, tmp_path / "vit.pth")
    assert "holds no dict of plain tensors" in refusal(tmp_path / "vit.pth")


@pytest.mark.parametrize("content", ["module", "NumPy array", "NumPy scalar"])
def test_torch_file_of_python_objects(content, tmp_path):
    torch = pytest.importorskip("torch")
    objects = {
        "module": torch.nn.Linear(2, 2),
        "NumPy array": {"norm.bias": np.ones(2)},
        "NumPy scalar": {"model": {"norm.bias": torch.ones(2)}, "accuracy": np.float64(0.5)},
    }
    torch.save(objects[content], tmp_path / "vit.pth")
    assert "holds Python objects" in refusal(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    "content",
    ["text", "number", "list", "one tensor", "nested", "mixed", "under another key", "number under model", "sparse", "meta"],
)
def test_torch_file_without_a_dict_of_tensors(content, tmp_path):
    torch = pytest.importorskip("torch")
    one = torch.ones(2)
    contents = {
        "text": {"norm.bias": "text"},
        "number": 3,
        "list": [one],
        "one tensor": one,
        "nested": {"model": {"backbone": {"norm.bias": one}}},
        "mixed": {"norm.bias": one, "epoch": 3},
        "under another key": {"weights": {"norm.bias": one}},
        "number under model": {"model": 3},
        "sparse": {"norm.bias": one.to_sparse()},
        "meta": {"norm.bias": one.to("meta")},
    }
    torch.save(contents[content], tmp_path / "vit.pth")
    assert "holds no dict of plain tensors" in refusal(tmp_path / "vit.pth")


def test_names_that_are_no_text_are_unexpected(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({0: torch.ones(2)}, tmp_path / "vit.pth")
    assert "no network here has 0" in refusal(tmp_path / "vit.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_file_without_pytorch_says_what_to_install(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"vit{suffix}"
    path.write_bytes(b"x")
    text = refusal(path)
    assert "pip install torch" in text and ".safetensors" in text


def test_safetensors_need_no_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(containers.read(save(tmp_path / "vit.safetensors", backbone())), backbone())


def test_every_group_of_parameters_has_a_field_that_sets_its_size():
    added = {row.added.group for family in FAMILIES.values() for row in family.methods.values() if row.added}
    assert pretrained._SIZED_BY.keys() == added | {"backbone", "head", "top_down", "prompts", "probe"}
