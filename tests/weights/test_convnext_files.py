"""Files of ConvNeXts: names of four kinds give one network, come back as they were, and are not taken for another one."""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import FIXTURES
from tests.weights.test_pretrained import assert_same, recorded, save
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model.methods import METHODS, tuned_mask
from toast_jax.weights import containers, module_file, other_projects, pretrained, rename

RECORDINGS = ("convnext_linear", "convnext_toast")
RELEASED = FIXTURES / "convnext_top_down_pretuned.pth"
BACKBONE = r"(downsample_layers|stages|norm)\..*"


def backbone():
    return {name: array for name, array in recorded("convnext_linear").items() if re.fullmatch(BACKBONE, name)}


def classifier():
    rng = np.random.default_rng(0)
    return {"head.weight": rng.normal(size=(5, 32)).astype("f4"), "head.bias": rng.normal(size=5).astype("f4")}


def low_rank():
    """Deltas as a run of `lora` or `toast_lite` has them, by the names they get."""
    rng, state = np.random.default_rng(0), {}
    for name, array in recorded("convnext_toast").items():
        if match := re.fullmatch(r"(.*(?:pwconv\d|linear2?))\.weight", name):
            torch_linear = array if array.ndim == 2 else array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
            state[f"{match[1]}.lora_A"] = rng.normal(size=(4, torch_linear.shape[1])).astype("f4")
            state[f"{match[1]}.lora_B"] = rng.normal(size=(torch_linear.shape[0], 4)).astype("f4")
    return state


def timm(state):
    """As `timm.create_model("convnext_tiny")` names them."""
    out = {}
    for name, array in state.items():
        name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
        name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", name)
        name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        out[re.sub("^norm", "head.norm", re.sub("^head", "head.fc", name))] = array
    return out


def hugging_face(state, prefix="convnext."):
    """As ConvNextForImageClassification of transformers names them."""
    out = {}
    for name, array in state.items():
        name = name.replace("norm", "layernorm").replace("gamma", "layer_scale_parameter")
        name = name.replace("downsample_layers.0.0", "embeddings.patch_embeddings")
        name = name.replace("downsample_layers.0.1", "embeddings.layernorm")
        name = re.sub(r"^downsample_layers\.(\d)", r"encoder.stages.\1.downsampling_layer", name)
        name = re.sub(r"^stages\.(\d)\.(\d+)", r"encoder.stages.\1.layers.\2", name)
        out[name.replace("head", "classifier") if name.startswith("head") else prefix + name] = array
    return out


def torchvision(state):
    """As `torchvision.models.convnext_tiny` names them."""
    layers = {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5", "gamma": "layer_scale"}
    out = {}
    for name, array in state.items():
        if match := re.fullmatch(r"downsample_layers\.(\d)\.(.*)", name):
            name = f"features.{2 * int(match[1])}.{match[2]}"
        elif match := re.fullmatch(r"stages\.(\d)\.(\d+)\.(\w+)(.*)", name):
            name = f"features.{2 * int(match[1]) + 1}.{match[2]}.{layers[match[3]]}{match[4]}"
            array = array[:, None, None] if match[3] == "gamma" else array
        out[re.sub("^norm", "classifier.0", re.sub("^head", "classifier.2", name))] = array
    return out


def load(path, network="convnext_linear", *, last_blocks=1, wanted="backbone/.*", optional=()):
    shapes, _ = rename.from_torch(recorded(network), last_blocks)
    return pretrained.load(str(path), shapes, last_blocks=last_blocks, wanted=wanted, optional=optional)


def refusal(path, *args, **kwargs):
    """The text with which `load` refuses a file: one sentence that names it."""
    with pytest.raises(InputError) as raised:
        load(path, *args, **kwargs)
    text = str(raised.value)
    assert str(path) in text and text.endswith(".") and "\n" not in text and not re.search(r"\. [A-Z]", text)
    return text


# Names.


@pytest.mark.parametrize("deltas", [{}, low_rank()], ids=["", "low-rank"])
@pytest.mark.parametrize("name", RECORDINGS)
def test_renaming_there_and_back_is_the_identity(name, deltas):
    state = recorded(name) | {key: a for key, a in deltas.items() if name == "convnext_toast" or "decoders" not in key}
    ours, unknown = rename.from_torch(state, 1)
    assert unknown == []
    assert_same(rename.to_torch(ours), state)
    assert ours["backbone/stages_2/blocks/gamma"].shape == (2, 24)
    np.testing.assert_array_equal(ours["backbone/stages_3/last_0/gamma"], state["stages.3.0.gamma"])
    assert not any(path.startswith("backbone/stages_3/blocks") for path in ours)
    if deltas:
        assert ours["lora/backbone/stages_2/blocks/pwconv1/b"].shape == (2, 4, 96)


def test_blocks_outside_the_stack_are_those_of_the_last_stage():
    state = recorded("convnext_linear")
    state |= {name.replace("stages.3.0", "stages.3.1"): a + 1 for name, a in state.items() if name.startswith("stages.3.0")}
    for last_blocks in (1, 2):
        ours, _ = rename.from_torch(state, last_blocks)
        assert {path.split("/")[2] for path in ours if "stages_3" in path} == {"downsample", "last_0"} | (
            {"blocks"} if last_blocks == 1 else {"last_1"}
        )
        np.testing.assert_array_equal(ours[f"backbone/stages_3/last_{last_blocks - 1}/gamma"], state["stages.3.1.gamma"])
        assert_same(rename.to_torch(ours), state)


def test_low_rank_deltas_have_the_axes_of_their_kernels():
    ours, _ = rename.from_torch(recorded("convnext_toast") | low_rank(), 1)
    kernels = {name: f"top_down/{name}" for name in ("back_0", "back_3", "out_0", "out_2")}
    kernels |= {
        f"backbone/stages_2/blocks/{name}": f"backbone/stages_2/blocks/{name}/kernel" for name in ("pwconv1", "pwconv2")
    }
    for name, kernel in kernels.items():
        delta = f"lora/{name if '/' in name else kernel}"
        assert ours[f"{delta}/a"].shape[-2] == ours[kernel].shape[-2]
        assert ours[f"{delta}/b"].shape[-1] == ours[kernel].shape[-1]


@pytest.mark.parametrize(
    "form",
    [timm, hugging_face, lambda state: hugging_face(state, ""), torchvision, lambda state: state],
    ids=["timm", "hf", "hf bare", "torchvision", ""],
)
def test_names_of_other_frameworks_give_the_same_network(form, tmp_path):
    state = backbone() | classifier()
    assert_same(other_projects.known_names(form(state)), state)
    expected, _ = rename.from_torch(backbone(), 1)
    assert_same(load(save(tmp_path / "convnext.safetensors", form(state))), expected)
    assert len(form(state)) == len(state)


@pytest.mark.parametrize(("layout", "form"), [("timm", timm), ("transformers", lambda state: hugging_face(state, ""))])
def test_a_backbone_is_written_with_the_names_of_a_library(layout, form):
    assert_same(rename.published(rename.rename(backbone())[0], f"convnext_{layout}"), form(backbone()))


def test_names_of_two_libraries_in_one_file_are_read():
    state, named = backbone() | classifier(), timm(backbone() | classifier())
    named |= {name: array for name, array in hugging_face(state, "").items() if "stages.3" in name or "classifier" in name}
    mixed = {name: array for name, array in named.items() if not name.startswith(("stages.3", "head.fc"))}
    assert_same(other_projects.known_names(mixed), state)


def test_file_of_the_release_is_the_recorded_network():
    pytest.importorskip("torch")
    expected, _ = rename.from_torch(recorded("convnext_toast"), 1)
    network = {path: array for path, array in expected.items() if not path.startswith("head/")}
    assert_same(load(RELEASED, "convnext_toast", optional=["top_down/.*"]), network)
    assert_same(
        load(RELEASED, "convnext_toast", wanted="top_down/.*", optional=["backbone/.*"]),
        network,
    )


# What is refused.


def test_one_kind_of_network_is_not_taken_for_another(tmp_path):
    with np.load(FIXTURES / "vit_linear.npz") as file:
        vit = {key.removeprefix("params/enc."): file[key] for key in file.files if key.startswith("params/enc.")}
    path = save(tmp_path / "vit.safetensors", vit)
    assert "belongs to a ViT, but the network of the config is a ConvNeXt; give a file of the backbone" in refusal(path)
    path = save(tmp_path / "convnext.safetensors", timm(backbone()))
    assert "belongs to a ConvNeXt, but the network of the config is a ViT" in refusal_by_vit(path)


def test_top_down_module_alone_tells_its_kind(tmp_path):
    names = r"prompt|top_down_transform|decoders\..*"
    module = {name: array for name, array in recorded("convnext_toast").items() if re.fullmatch(names, name)}
    path = save(tmp_path / "top_down.safetensors", module)
    expected, _ = rename.from_torch(recorded("convnext_toast"), 1)
    ours = load(path, "convnext_toast", wanted="top_down/.*", optional=["backbone/.*"])
    assert_same(ours, {path: array for path, array in expected.items() if path.startswith("top_down/")})
    assert "belongs to a ConvNeXt" in refusal_by_vit(path, wanted="top_down/.*")


def refusal_by_vit(path, wanted="backbone/.*"):
    with np.load(FIXTURES / "vit_toast.npz") as file:
        state = {key.removeprefix("params/").removeprefix("enc."): file[key] for key in file.files if key.startswith("params/")}
    shapes, _ = rename.from_torch(state, 1)
    with pytest.raises(InputError) as raised:
        pretrained.load(path, shapes, last_blocks=1, wanted=wanted)
    return str(raised.value)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (timm, "stages.0.blocks.0.mlp.grn.weight"),
        (lambda state: state, "stages.0.0.grn.gamma"),
        (lambda state: hugging_face(state, "convnextv2."), "convnextv2.encoder.stages.0.layers.0.grn.weight"),
    ],
)
def test_second_version_is_named(form, name, tmp_path):
    state = {key: array for key, array in backbone().items() if not key.endswith("gamma")}
    text = refusal(save(tmp_path / "v2.safetensors", form(state) | {name: np.ones((1, 1, 1, 32), "f4")}))
    assert "belongs to a ConvNeXt V2, which cannot be used" in text and name in text


def test_wrong_depth_width_and_names_are_told(tmp_path):
    path = tmp_path / "convnext.safetensors"
    deeper = {name.replace("stages.1.0", "stages.1.1"): a for name, a in backbone().items() if name.startswith("stages.1.0")}
    text = refusal(save(path, backbone() | deeper))
    assert "has 1-2-2-1 layers, the network of the config has 1-1-2-1; check config.backbone.size" in text
    text = refusal(save(path, {**backbone(), "stages.3.0.gamma": np.ones(31, "f4")}))
    assert "backbone/stages_3/blocks/0/gamma is (31,) in the file and (32,) in the network" in text
    text = refusal(save(path, {name: array for name, array in backbone().items() if "stages.2.1.pwconv2" not in name}))
    assert "lacks backbone/stages_2/blocks/1/pwconv2/bias, backbone/stages_2/blocks/1/pwconv2/kernel" in text
    text = refusal(save(path, {**backbone(), "downsample_layers.1.1.weight": np.ones((16, 8), "f4")}))
    assert "downsample_layers.1.1.weight is (16, 8), which no network here has" in text
    uneven, _ = rename.rename({name: array for name, array in backbone().items() if name != "stages.2.1.dwconv.bias"})
    assert rename.uneven_layers(uneven) == ["backbone/stages_2/blocks/{i}/dwconv/bias"]
    assert rename.uneven_layers(rename.rename(backbone())[0]) == []


# The file that pre-tuning leaves.


def test_fingerprint_tells_another_backbone(tmp_path):
    from configs import pretune

    ours, _ = rename.from_torch(recorded("convnext_toast"), 1)
    params = trees.nested({path: np.asarray(array) for path, array in ours.items()})
    path = tmp_path / "top_down.safetensors"
    module_file.save([path], params, tuned_mask(params, METHODS["toast"]), pretune.get_config("backbone=convnext_t"))
    module = {name: array for name, array in recorded("convnext_toast").items() if re.match("prompt|top_down|decoders", name)}
    assert_same(load_file(path), module)
    assert containers.read_header(path)
    module_file.check_backbone(path, ours)
    other = jax.tree.map(np.copy, ours)
    other["backbone/stages_2/blocks/pwconv1/kernel"][1, 0] += 1.0
    with pytest.raises(InputError, match="another backbone .backbone/stages_2/blocks/1/pwconv1/kernel differs"):
        module_file.check_backbone(path, other)
