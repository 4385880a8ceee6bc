"""Published files of DINOv2, DINOv3 and SigLIP: read by their names and config.json, written back, or refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import convert as convert_config
from configs import folder as folder_config
from tests import FIXTURES, ROOT
from tests.conftest import refusal
from toast_jax.config import backbone_names, check
from toast_jax.model import families, steered
from toast_jax.model.backbones.rename_rules import Unusable
from toast_jax.model.backbones.vit import kinds
from toast_jax.model.backbones.vit.features import Features
from toast_jax.tasks import convert
from toast_jax.testing import backbone_parity, recording
from toast_jax.weights import initial_parameters, pretrained, rename

RECORDINGS = sorted(path.stem for path in (FIXTURES / "backbones").glob("*.npz"))
TRANSFORMERS = [name for name in RECORDINGS if name.endswith("_hf")]
LAYOUTS = {name: f"{name.split('_')[0].rstrip('2')}_{'transformers' if name.endswith('hf') else 'timm'}" for name in RECORDINGS}
LAYOUTS |= {name: layout.replace("dinov", "dinov2") for name, layout in LAYOUTS.items() if name.startswith("dinov2")}


def arrays_of(name):
    return recording.read(str(FIXTURES / "backbones" / f"{name}.npz"))


def published(name, path, changed=None):
    """Write the file of a recording, and its config.json with some values changed; return its folder."""
    arrays = {key.removeprefix("params/"): array for key, array in arrays_of(name).items() if key.startswith("params/")}
    save_file(arrays, path / "model.safetensors")
    content = json.loads((FIXTURES / "backbones" / f"{name}.config.json").read_text())
    (content.get("vision_config") or content).update(changed or {})
    (path / "config.json").write_text(json.dumps(content))
    return path


def config_of(folder):
    config = folder_config.get_config(f"method=linear,backbone={folder}")
    check.check(config)
    return config


def load(config):
    """Read the parameters of a config's backbone, strictly."""
    model, method = steered.build(config, 3)
    return model.backbone, initial_parameters.load(model, method, weights=config.backbone.weights)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_is_read_with_its_config(name, tmp_path):
    arrays, config = arrays_of(name), config_of(published(name, tmp_path))
    backbone, loaded = load(config)
    features, number = backbone.features, lambda key: int(arrays[f"config/{key}"])
    sizes = [backbone.width, backbone.depth, backbone.num_heads, backbone.hidden or 4 * backbone.width, backbone.patch]
    assert sizes == [number(key) for key in ("width", "depth", "heads", "mlp_hidden", "patch")]
    assert backbone.shape == (number("grid"),) * 2 and features.registers == number("num_registers")
    assert features.eps == float(arrays["config/eps"]) and features.class_token == bool(arrays["config/class_token"])
    assert features.mlp == {"silu": "swiglu"}.get(activation := str(arrays["config/activation"]), activation)
    assert features.antialias == bool(arrays.get("config/position_interpolation_antialias", False))
    assert features.rotary == float(arrays.get("config/rope_base", 0.0))
    assert backbone.pool == str(arrays["config/pool"]) and config.name == f"folder_linear_{tmp_path.name}"
    layers, _ = rename.rename(*backbone_parity.parameters("", arrays))
    assert {path: array.shape for path, array in rename.stack(layers, 1).items()} == {p: a.shape for p, a in loaded.items()}


@pytest.mark.parametrize("name", RECORDINGS)
def test_names_are_written_back(name, tmp_path):
    params = {key.removeprefix("params/"): array for key, array in arrays_of(name).items() if key.startswith("params/")}
    save_file(params, tmp_path / "model.safetensors")
    _, layers, unknown = pretrained.layers(str(tmp_path / "model.safetensors"))
    state = rename.published(layers, LAYOUTS[name])
    expected = {key.removeprefix("vision_model."): array for key, array in params.items()}
    expected = {key: array.shape for key, array in expected.items() if not key.startswith(("text_model.", "logit_"))}
    assert {key: array.shape for key, array in state.items()} == expected and not unknown
    save_file({key: np.ascontiguousarray(array) for key, array in state.items()}, tmp_path / "again.safetensors")
    _, again, _ = pretrained.layers(str(tmp_path / "again.safetensors"))
    assert layers.keys() == again.keys()
    for path, array in layers.items():
        np.testing.assert_allclose(again[path], array, rtol=0, atol=1e-6, err_msg=path)


def test_a_layout_without_a_place_for_a_parameter_is_refused():
    layers = {"backbone/cls_token": np.zeros((1, 1, 8)), "backbone/attn_pool/latent": np.zeros((1, 1, 8))}
    text = refusal(lambda: rename.published(layers, "dinov3_transformers"))
    assert text == "Files of dinov3_transformers have no place for backbone/attn_pool/latent; choose another layout of names."
    assert "must be one of vit_timm, vit_transformers, dinov2_transformers, dinov2_timm, " in refusal(
        lambda: rename.published(layers, "dino")
    )


@pytest.mark.parametrize(
    ("name", "changed", "fact"),
    [
        ("dinov2_reg_hf", {"hidden_size": 60}, "width is 60 there and 48 in the file"),
        ("dinov2_reg_hf", {"num_hidden_layers": 4}, "depth is 4 there and 3 in the file"),
        ("dinov2_reg_hf", {"num_register_tokens": 2}, "registers is 2 there and 4 in the file"),
        ("dinov2_reg_hf", {"image_size": 56}, "image_size is 56 there and 9 patches in the file"),
        ("dinov2_reg_hf", {"image_size": [56, 56]}, "image_size is 56 there and 9 patches in the file"),
        ("dinov2_hf", {"use_swiglu_ffn": False}, "hidden is 192 there and 128 in the file"),
        ("dinov3_vit_hf", {"value_bias": False, "query_bias": False}, "qkv_bias is none there and qv in the file"),
        ("dinov3_vit_hf", {"patch_size": 16}, "patch is 16 there and 8 in the file"),
        ("dinov3_vit_gated_hf", {"use_gated_mlp": False, "hidden_act": "gelu"}, "gate is False there and True in the file"),
        ("siglip2_hf", {"intermediate_size": 64}, "hidden is 64 there and 128 in the file"),
    ],
)
def test_a_config_that_contradicts_its_file_is_refused(name, changed, fact, tmp_path):
    config = config_of(published(name, tmp_path, changed))
    text = refusal(lambda: load(config))
    expected = f"{tmp_path}/model.safetensors contradicts the config.json beside it: {fact}; get both from one place."
    assert text == expected


@pytest.mark.parametrize("without", [r"encoder\.layer\.0\.", r"encoder\.layer\.", r"embeddings\.patch_embeddings\."])
def test_a_file_that_lacks_what_tells_its_size_is_refused_by_what_it_lacks(without, tmp_path):
    config = config_of(published("dinov2_reg_hf", tmp_path))
    arrays = pretrained.read(str(tmp_path / "model.safetensors"))
    save_file({name: array for name, array in arrays.items() if not re.match(without, name)}, tmp_path / "model.safetensors")
    assert re.search("lacks|has .* layers", refusal(lambda: load(config)))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_shards_are_read_as_one_file(prefix, tmp_path):
    """A repository is chosen by its index, and its shards downloaded, before it is read."""
    _, expected = load(config_of(published("dinov2_reg_hf", tmp_path)))
    arrays = pretrained.read(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    shard_of = {f"{prefix}{name}": f"model-{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for shard in set(shard_of.values()):
        own = {f"{prefix}{name}": array for name, array in arrays.items() if shard_of[f"{prefix}{name}"] == shard}
        save_file(own, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    config = config_of(tmp_path)
    assert config.backbone.weights.endswith("model.safetensors.index.json")
    _, loaded = load(config)
    assert loaded.keys() == expected.keys()
    for path, array in loaded.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    (tmp_path / "model-1.safetensors").unlink()
    assert "names the shard model-1.safetensors, which is not beside it; download it." in refusal(lambda: load(config))


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("dinov2_reg_hf", {"quantization_config": {"bits": 8}}, "is quantized, by its config.json; choose the repository"),
        ("dinov2_reg_hf", {"num_attention_heads": 5}, "is of another architecture"),
        ("dinov3_vit_hf", {"hidden_act": "relu"}, "is of another architecture"),
        ("siglip_hf", {"model_type": "siglip2_vision_model"}, "cannot be used: it is a NaFlex SigLIP 2"),
    ],
)
def test_a_network_that_is_not_one_of_these_is_refused(name, changed, words, tmp_path):
    assert words in refusal(lambda: config_of(published(name, tmp_path, changed)))


def test_a_naflex_file_is_refused(tmp_path):
    published("siglip_hf", tmp_path)
    params = {key.removeprefix("params/"): array for key, array in arrays_of("siglip_hf").items() if key.startswith("params/")}
    kernel = params["embeddings.patch_embedding.weight"]
    save_file(params | {"embeddings.patch_embedding.weight": kernel.reshape(len(kernel), -1)}, tmp_path / "model.safetensors")
    config = config_of(tmp_path)
    assert "model.safetensors cannot be used: it is a NaFlex SigLIP 2" in refusal(lambda: load(config))


def test_a_folder_without_weights_or_with_a_damaged_config_is_refused(tmp_path):
    published("siglip_hf", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "has no file of weights (model.safetensors, " in refusal(lambda: config_of(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in refusal(lambda: config_of(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("vit_base_patch14_reg4_dinov2", {"size": "B", "registers": 4, "antialias": True}),
        ("vit_giant_patch14_dinov2", {"size": "g", "mlp": "swiglu", "registers": 0, "antialias": True}),
        (
            "vit_huge_plus_patch16_dinov3_qkvb",
            {"size": "H+", "mlp": "swiglu", "rotary": 100.0, "qkv_bias": "qv", "pool": "mean"},
        ),
        ("vit_7b_patch16_dinov3", {"size": "7B", "mlp": "swiglu", "qkv_bias": "none", "eps": 1e-5, "pool": "mean"}),
        ("vit_base_patch16_siglip_224", {"size": "B", "mlp": "gelu", "class_token": False, "pool": "attention"}),
        ("vit_so400m_patch14_siglip_384", {"size": "So400m", "patch": 14, "mlp": "gelu"}),
        ("vit_so400m_patch16_siglip_256", {"size": "So400m", "mlp": "gelu_tanh"}),
        ("vit_base_patch32_siglip_256", {"mlp": "gelu_tanh", "antialias": True}),
        ("vit_giantopt_patch16_siglip_384", {"size": "giant-opt", "mlp": "gelu_tanh"}),
    ],
)
def test_an_architecture_of_timm_gives_its_features(architecture, expected):
    fields = kinds.described({"architecture": architecture})
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("architecture", "arguments", "expected"),
    [
        (
            "vit_small_patch16_224",
            {"num_heads": 12},
            {"size": "custom", "width": 384, "depth": 12, "num_heads": 12, "hidden": 1536},
        ),
        ("vit_base_patch16_224", {"patch_size": 32, "img_size": 256, "drop_path_rate": 0.1}, {"size": "B", "patch": 32}),
        ("vit_giant_patch14_dinov2", {"depth": 30}, {"size": "custom", "depth": 30, "hidden": 4096, "mlp": "swiglu"}),
        ("vit_base_patch14_dinov2", {"reg_tokens": 4, "init_values": 1e-5}, {"registers": 4}),
        (
            "vit_base_patch16_224",
            {"class_token": False, "global_pool": "avg", "fc_norm": False},
            {"class_token": False, "pool": "mean"},
        ),
        ("vit_base_patch16_224", {"embed_dim": 192, "num_heads": 3}, {"size": "Ti"}),
        ("vit_base_patch16_224", {"act_layer": "gelu_tanh"}, {"mlp": "gelu_tanh"}),
        ("vit_base_patch16_dinov3", {"global_pool": "token"}, {"pool": "cls"}),
        ("vit_base_patch16_224", {"global_pool": "token", "fc_norm": True}, {"pool": "cls"}),
        ("vit_base_patch16_siglip_224", {"global_pool": "map"}, {"pool": "attention"}),  # as it is
        ("convnext_tiny", {"global_pool": "avg"}, {"size": "T"}),
    ],
)
def test_arguments_change_an_architecture_of_timm(architecture, arguments, expected):
    family = families.FAMILIES["vit" if "vit" in architecture else "convnext"]
    fields = family.described({"architecture": architecture, "model_args": arguments})
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("vit_base_patch16_224", {"qk_norm": True}),
        ("vit_base_patch16_224", {"global_pool": "avg"}),
        ("vit_base_patch16_224", {"global_pool": "map"}),
        ("vit_base_patch16_224", {"patch_size": [16, 16]}),
        ("vit_base_patch16_siglip_224", {"act_layer": "relu"}),
        ("convnext_tiny", {"conv_bias": False}),
    ],
)
def test_arguments_that_no_network_here_has_are_refused(architecture, arguments):
    described = families.FAMILIES["vit" if "vit" in architecture else "convnext"].described
    name, value = next(iter(arguments.items()))
    with pytest.raises(Unusable, match=re.escape(f"its model_args set {name}={value!r}, which no network here has")):
        described({"architecture": architecture, "model_args": arguments})


def test_a_plain_vit_takes_its_epsilon_from_transformers():
    sides = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}
    assert kinds.described(sides | {"layer_norm_eps": 1e-5})["eps"] == 1e-5
    assert kinds.described(sides)["eps"] == kinds.described(sides | {"layer_norm_eps": 1e-12})["eps"] == 1e-6  # of Google's


def test_a_two_tower_config_of_defaults_alone_is_siglip_base():
    fields = kinds.described({"model_type": "siglip", "vision_config": {"image_size": 512}})
    assert fields["size"] == "B" and fields["patch"] == 16 and fields["mlp"] == "gelu_tanh"
    assert Features(**{name: fields[name] for name in ("mlp", "class_token", "eps")}).eps == 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(37, (16, 16)), (4, (6, 9)), (5, (3, 7))])
@pytest.mark.parametrize("special", [0, 1])
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_of_any_grid_are_resized_as_pytorch_does(old, new, special, antialias):
    torch = pytest.importorskip("torch")
    embed = np.random.default_rng(0).standard_normal((1, special + old**2, 4), np.float32)
    resized = pretrained.resize_pos_embed(embed, special + new[0] * new[1], new, antialias)
    grid = torch.from_numpy(embed[:, special:]).reshape(1, old, old, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    np.testing.assert_allclose(resized[:, special:], expected.permute(0, 2, 3, 1).reshape(1, -1, 4).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(resized[:, :special], embed[:, :special])


def test_the_pages_list_every_kind():
    page, readme = ((ROOT / name).read_text() for name in ("docs/weights.md", "README.md"))
    rows = [line.split(" | ") for line in page.partition("### Kinds of ViT")[2].partition("\n- ")[0].splitlines()]
    listed = {row[0].removeprefix("| "): row[1:] for row in rows if len(row) == 4}
    assert list(listed)[1:] == [kind.title for kind in kinds.KINDS]
    for kind in kinds.KINDS:
        names, _, repositories = listed[kind.title]
        assert re.findall("`([^`]+)`", repositories) == list(kind.examples)
        for name in re.findall("`([^`]+)`", names):
            assert kind.tag in name and backbone_names.of_images(name)["backbone.family"] == "vit"
        assert kind.title in readme or not kind.tag
    assert all(f"`{layout.name}`" in page for family in families.FAMILIES.values() for layout in family.names.layouts)


def test_a_file_is_converted_to_the_names_of_another_library(tmp_path):
    published("dinov3_vit_hf", tmp_path)
    text = f"from={tmp_path}/model.safetensors,to={tmp_path}/timm.safetensors,names=dinov3_timm"
    convert.run(convert_config.get_config(text), "unused")
    _, expected, _ = pretrained.layers(str(tmp_path / "model.safetensors"))
    _, layers, _ = pretrained.layers(str(tmp_path / "timm.safetensors"))
    assert layers.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(layers[path], array, rtol=0, atol=1e-6, err_msg=path)


def test_an_absvit_is_a_backbone_with_its_module(tmp_path):
    """Its checkpoints have the release's names, a classifier, and no transform."""
    recorded = recording.read(str(FIXTURES / "vit_toast.npz"))
    params = {key.removeprefix("params/").removeprefix("enc."): recorded[key] for key in recorded if key.startswith("params/")}
    head = {"head.weight": np.ones((7, 32), "f4"), "head.bias": np.ones(7, "f4")}
    dropped = ("head.last_layer.weight", "head.last_layer.bias", "top_down_transform")
    state = {name: array for name, array in params.items() if name not in dropped} | head
    save_file(state, tmp_path / "absvit.safetensors")
    config = folder_config.get_config("method=toast,backbone=vit_s8_absvit")
    config.backbone.update({"size": "custom", "width": 32, "depth": 3, "num_heads": 4})
    config.data.image_size = 32
    model, method = steered.build(config, 3)
    loaded = initial_parameters.load(model, method, weights=str(tmp_path / "absvit.safetensors"))
    np.testing.assert_array_equal(loaded["top_down/prior"], params["prompt"])
    np.testing.assert_array_equal(loaded["top_down/out"][1], params["decoders.1.linear2.weight"].T)
    np.testing.assert_array_equal(loaded["top_down/transform"], np.eye(32))
    assert "backbone/cls_token" in loaded and "head/kernel" not in loaded
