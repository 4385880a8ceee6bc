"""Runs as plain weights: the names of timm and transformers, the same logits in them, and what cannot be merged."""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from configs import folder as folder_config
from tests.conftest import CLASSES
from tests.data.text.test_chat import CHAT
from tests.data.text.test_tokenizer import json_model, sentencepiece_model
from tests.export.runs import logits, of_config, pixels, text_run, tuned
from tests.weights import test_convnext_files as convnext_files
from tests.weights.test_pretrained import assert_same
from toast_jax import trees
from toast_jax.config import backbone_names, hub_backbones
from toast_jax.data.images import pixels as views
from toast_jax.data.text import tokenizer
from toast_jax.errors import InputError
from toast_jax.export import folder, plain
from toast_jax.model import families, steered
from toast_jax.model.backbones import export_formats as formats
from toast_jax.model.backbones.llama import kinds as llama
from toast_jax.model.backbones.normalize import normalize, statistics_of
from toast_jax.model.backbones.vit import features
from toast_jax.model.backbones.vit.features import Size
from toast_jax.train import text_runs
from toast_jax.weights import initial_parameters, pretrained, rename

SMALL = Size(width=16, depth=3, num_heads=2)
TINY = {"vit": "vit_ti16", "convnext": "convnext_t"}


def written(run, kind, path):
    folder.write(path, plain.files(run, kind))
    return path


@pytest.mark.parametrize("kind", ["timm", "hf"])
@pytest.mark.parametrize("family", TINY)
def test_names_are_those_that_are_read(family, kind, tmp_path, monkeypatch):
    """The files of timm and transformers are read by `weights/`; what is written in their names comes back."""
    monkeypatch.setitem(features.SIZES, "Ti", SMALL)  # timm has a name for it
    run = tuned("lora", TINY[family])
    arrays = plain.named(plain.merged(run), families.FAMILIES[family].plain[kind], run.model.backbone)
    path = tmp_path / "model.safetensors"
    plain.write(path, arrays, {})
    read_family, layers, ignored = pretrained.layers(str(path))
    assert read_family is families.FAMILIES[family] and not ignored
    flat = trees.flat(steered.merged(run.method, run.params))
    depth = rename.stacked_depth(flat, read_family)
    expected = {path.replace("head/", "classifier/"): array for path, array in rename.unstack(flat, read_family, depth).items()}
    assert layers.keys() == expected.keys()
    for name in layers:
        np.testing.assert_array_equal(layers[name], expected[name])


CONVNEXT = {
    "timm": """
        stem.{0,1}.{weight,bias} stages.{1,2,3}.downsample.{0,1}.{weight,bias} head.{norm,fc}.{weight,bias}
        stages.{0,1}.blocks.0.{conv_dw,norm,mlp.fc1,mlp.fc2}.{weight,bias} stages.{0,1}.blocks.0.gamma
        stages.{2,3}.blocks.{0,1}.{conv_dw,norm,mlp.fc1,mlp.fc2}.{weight,bias} stages.{2,3}.blocks.{0,1}.gamma
    """,
    "hf": """
        convnext.embeddings.{patch_embeddings,layernorm}.{weight,bias} {convnext.layernorm,classifier}.{weight,bias}
        convnext.encoder.stages.{1,2,3}.downsampling_layer.{0,1}.{weight,bias}
        convnext.encoder.stages.{0,1}.layers.0.{dwconv,layernorm,pwconv1,pwconv2}.{weight,bias}
        convnext.encoder.stages.{2,3}.layers.{0,1}.{dwconv,layernorm,pwconv1,pwconv2}.{weight,bias}
        convnext.encoder.stages.{0,1}.layers.0.layer_scale_parameter
        convnext.encoder.stages.{2,3}.layers.{0,1}.layer_scale_parameter
    """,
}


def expanded(patterns):
    """Expand braces as a shell does."""
    for pattern in patterns.split():
        yield from map("".join, itertools.product(*(part.split(",") for part in re.split("[{}]", pattern))))


@pytest.mark.parametrize(("kind", "form"), [("timm", convnext_files.timm), ("hf", convnext_files.hugging_face)])
def test_a_convnext_has_the_names_of_the_library(kind, form):
    """Each array is the one of the release that `form` gives this name."""
    run = tuned("lora", TINY["convnext"])
    layers, family = plain.merged(run), families.FAMILIES["convnext"]
    arrays = plain.named(layers, family.plain[kind], run.model.backbone)
    assert sorted(arrays) == sorted(expanded(CONVNEXT[kind]))
    release = rename.rename_back(layers, family)
    assert_same(arrays, form({name.replace("head.last_layer.", "head."): array for name, array in release.items()}))


def test_a_language_model_keeps_the_names_of_the_release():
    run = text_run("lora")
    layers, family = plain.merged(run), families.FAMILIES["llama"]
    assert_same(plain.named(layers, family.plain["hf"], run.model.backbone), rename.rename_back(layers, family))


KINDS = {
    "plain mean": ("vit_b16", {"pool": "mean"}),
    "dinov2": ("vit_s14_dinov2", {"antialias": True}),
    "dinov2 registers": ("vit_s14_reg4_dinov2", {"pool": "mean"}),
    "dinov2 giant": ("vit_g14_reg4_dinov2", {}),
    "dinov3": ("vit_s16_dinov3", {}),
    "dinov3 plus": ("vit_splus16_dinov3", {"pool": "mean", "qkv_bias": "none"}),
    "siglip": ("vit_b16_siglip", {"mlp": "gelu_tanh"}),
    "siglip mean": ("vit_b16_siglip", {"pool": "mean"}),
}
LACKING = {("plain mean", "hf"), ("dinov3", "hf"), ("dinov3 plus", "hf"), ("siglip", "hf")}

QUICK = {
    ("plain mean", "timm"),
    ("dinov2 giant", "hf"),
    ("dinov2 giant", "timm"),
    ("dinov3", "timm"),
    ("siglip", "timm"),
    *LACKING,
}
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in itertools.product(KINDS, ("timm", "hf"))
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_kind_of_vit_is_read_as_it_was_written(name, kind, tmp_path, monkeypatch):
    """Strictly, with the config.json that was written beside it."""
    backbone, changed = KINDS[name]
    fields = {**backbone_names.of_images(backbone), **{f"backbone.{field}": value for field, value in changed.items()}}
    monkeypatch.setitem(features.SIZES, size := fields["backbone.size"], dataclasses.replace(SMALL, hidden=48 * (size == "g")))
    config = tuned("linear").config
    config.update_from_flattened_dict({field: value for field, value in fields.items() if field != "variational_weight"})
    config.data.image_size = config.data.resize = 2 * config.backbone.patch
    run = of_config(config, CLASSES)
    if (name, kind) in LACKING:
        with pytest.raises(InputError, match=r"as=timm or as=stablehlo\.$"):
            plain.files(run, kind)
        return
    read = folder_config.get_config(f"method=linear,backbone={written(run, kind, tmp_path / kind)}")
    assert read.backbone.pool == config.backbone.pool or kind == "hf"  # whose classifiers read several
    model, method = steered.build(read, 3)
    own = run.model.backbone
    assert dataclasses.replace(model.backbone.features, antialias=own.features.antialias) == own.features
    assert (model.backbone.width, model.backbone.depth, model.backbone.num_heads) == (own.width, own.depth, own.num_heads)
    loaded = initial_parameters.load(model, method, weights=read.backbone.weights)
    expected = {path: leaf for path, leaf in trees.flat(run.params).items() if path.startswith("backbone/")}
    assert loaded.keys() == expected.keys()
    # timm adds the position of the class token to the token where there are registers.
    tokens, positions = ("backbone/cls_token", "backbone/pos_embed")
    if {tokens, positions} <= expected.keys():
        for arrays in (loaded, expected):
            arrays[tokens] = arrays[tokens] + arrays[positions][:, :1]
            arrays[positions] = arrays[positions][:, 1:]
    for path, leaf in expected.items():
        np.testing.assert_array_equal(loaded[path], leaf, err_msg=path)


@pytest.mark.parametrize("method", ["lora", pytest.param("toast_lite", marks=pytest.mark.slow)])
def test_merged_parameters_compute_the_same(method):
    run = tuned(method)
    inputs, merged = pixels(run), steered.merged(run.method, run.params)
    assert "lora" not in merged
    plain_logits = jax.jit(lambda params: run.model.apply({"params": params}, inputs))(merged)
    np.testing.assert_allclose(plain_logits, logits(run, inputs), rtol=1e-5, atol=1e-5)


def test_files_say_what_hub_backbones_reads(tmp_path, monkeypatch):
    """A folder that was uploaded is a backbone again: family, size, patch, image size, normalization."""
    run = tuned("lora")
    hf = written(run, "hf", tmp_path / "hf")
    monkeypatch.setattr(hub_backbones.hub, "read_json", lambda place, name: json.loads((hf / name).read_text()))
    monkeypatch.setattr("toast_jax.model.backbones.vit.features.SIZES", {"tiny": families.FAMILIES["vit"].sizes["tiny"]})
    fields = hub_backbones.fields("hf:owner/name", "images")
    for name in ("backbone.family", "backbone.size", "backbone.patch", "data.image_size", "data.resize", "data.normalize"):
        section, key = name.split(".")
        assert fields[name] == run.config[section][key], name
    config = json.loads((hf / "config.json").read_text())
    assert config["id2label"] == {"0": "heron", "1": "kite", "2": "owl"} and config["label2id"]["owl"] == 2
    with safe_open(hf / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_images_of_a_run_on_vtab_are_stretched():
    run = tuned("linear", "convnext_t")
    run.config.data.format, run.config.data.resize = "vtab", run.config.data.image_size
    stretched = plain.preprocessing_of(run)
    assert stretched.stretched and not plain.preprocessing_of(tuned("linear")).stretched
    processor = plain._image_processor(stretched)
    square = {"height": stretched.size, "width": stretched.size}
    assert processor["size"] == processor["crop_size"] == square and not processor["do_center_crop"]
    names = {"layers": ("a", "b"), "pool": "token", "fixed_size": True}
    config = formats.timm_config("vit", 16, CLASSES, stretched, **names)["pretrained_cfg"]
    assert (config["crop_mode"], config["crop_pct"]) == ("squash", 1.0)


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (18, 16), (73, 64), (36, 32), (64, 64), (455, 448), (299, 97)])
def test_share_of_the_crop_gives_the_size_back(resize, size):
    """Timm divides by the share and rounds down."""
    preprocessing = formats.Preprocessing(resize, size, ((0.5,) * 3, (0.5,) * 3))
    names = {"layers": ("a", "b"), "pool": "token", "fixed_size": True}
    config = formats.timm_config("vit", 16, CLASSES, preprocessing, **names)
    assert int(size / config["pretrained_cfg"]["crop_pct"]) == resize


@pytest.mark.parametrize(
    ("run", "kind", "message"),
    [
        (
            lambda: tuned("toast"),
            "hf",
            "cannot be merged .* method toast has a signal that depends on the input; write as=st",
        ),
        (lambda: tuned("vpt"), "timm", "method vpt has prompts, which are added tokens; write as=stablehlo, which exports"),
        (lambda: text_run("toast"), "hf", "a signal that depends on the input; write as=release, which the PyTorch release"),
        (lambda: text_run("lora"), "timm", "as=timm is not written for a LLaMA; write as=hf or as=release"),
        (lambda: tuned("lora"), "timm", "timm has no name for a ViT of width 16, 3 blocks, 2 heads and patch 8; write as=hf"),
        (
            lambda: tuned("lora", "convnext_t"),
            "timm",
            "timm has no name for a ConvNeXt with 1, 1, 2, 2 blocks of width 8, 8",
        ),
        (lambda: tuned("lora", pool="mean"), "hf", "classifies the class token, and this one the mean of the patches; write"),
        (
            lambda: tuned("lora", pool="attention", class_token=False),
            "hf",
            "SigLIP of transformers classifies the mean of the patches, and this one what its attention pools; write as=t",
        ),
        (lambda: tuned("lora", rotary=100.0), "hf", "transformers has no classifier for the ViT of DINOv3; write as=timm or"),
        (lambda: tuned("lora", mlp="gelu_tanh"), "hf", "transformers has no ViT with mlp=gelu_tanh; write as=stablehlo"),
        (lambda: tuned("lora", registers=2, pool="attention"), "hf", "transformers has no DINOv2 ViT with attention pooling;"),
        (
            lambda: tuned("lora", registers=2),
            "timm",
            "timm has no name for a DINOv2 ViT of width 16, 3 blocks, 2 heads and pat",
        ),
    ],
)
def test_refusals(run, kind, message):
    with pytest.raises(InputError, match=message) as raised:
        plain.files(run(), kind)
    assert str(raised.value).endswith(".")


def test_additions_that_stay_after_merging_are_named():
    run = tuned("lora")
    run = dataclasses.replace(run, params={**run.params, "adapter": {"down": np.zeros(3, np.float32)}})
    with pytest.raises(InputError, match=r"lora has parameters that a plain network lacks \(adapter\); write as=stablehlo"):
        plain.files(run, "hf")


# The rest is compared with the libraries themselves.
NETWORKS = {
    "vit": ("lora", "vit_ti16", {"size": "Ti"}),
    "vit of other patches": ("finetune", "vit_s8", {"size": "S"}),
    "dinov2": ("bias", "vit_s14", {"size": "S"}),
    "dinov2 with registers": ("bias", "vit_s14_reg4_dinov2", {"size": "S"}),
    "dinov2 with a gate": ("linear", "vit_s14_reg4_dinov2", {"size": "S", "mlp": "swiglu", "hidden": 1024}),
    "dinov3": ("ln", "vit_s16_dinov3", {"size": "S"}),
    "dinov3 with a gate": ("linear", "vit_splus16_dinov3", {"size": "S", "qkv_bias": "none", "pool": "mean"}),
    "siglip": ("ssf", "vit_b16_siglip", {"size": "B"}),
    "siglip, mean of patches": ("linear", "vit_b16_siglip", {"size": "B", "pool": "mean", "mlp": "gelu"}),
    "mean of patches": ("lora", "vit_ti16", {"size": "Ti", "pool": "mean"}),
    "convnext": ("lora", "convnext_t", {"size": "T"}),
}


WITH_TIMM_ALONE = ("dinov3", "dinov3 with a gate", "siglip")


def named_run(name):
    method, backbone, fields = NETWORKS[name]
    run = tuned(method, backbone, **fields)
    if "vit" not in backbone:
        return run
    patch = run.config.backbone.patch
    run.config.backbone.patch, run.config.data.image_size, run.config.data.resize = patch, 3 * patch, 3 * patch + 8
    return of_config(run.config, CLASSES)


def as_torch(run, inputs):
    torch = pytest.importorskip("torch")
    seen = np.array(normalize(inputs, statistics_of(run.config.data)))
    return torch.from_numpy(seen).permute(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "dinov2 with a gate"])  # timm has that of size g alone
def test_timm_computes_the_same(name, tmp_path):
    timm = pytest.importorskip("timm")
    run = named_run(name)
    network = timm.create_model(f"local-dir:{written(run, 'timm', tmp_path / 'timm')}", pretrained=True).eval()
    inputs = pixels(run)
    expected = logits(run, inputs)
    outputs = network(as_torch(run, inputs)).detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert tuple(network.pretrained_cfg["label_names"]) == CLASSES
    state = timm.models.load_state_dict(str(tmp_path / "timm" / "model.safetensors"))
    network.load_state_dict(state, strict=True)
    view = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    shown = views.eval_view(image, resize=run.config.data.resize, size=run.config.data.image_size)
    np.testing.assert_allclose(view(Image.fromarray(image)), as_torch(run, shown[None])[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("mean of patches", *WITH_TIMM_ALONE)])
def test_transformers_computes_the_same(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = named_run(name)
    path = written(run, "hf", tmp_path / "hf")
    network, info = transformers.AutoModelForImageClassification.from_pretrained(path, output_loading_info=True)
    assert not any(info.values())
    assert tuple(network.config.id2label[i] for i in range(3)) == CLASSES
    inputs = pixels(run)
    expected = logits(run, inputs)
    outputs = network.eval()(as_torch(run, inputs)).logits.detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), np.uint8)
    shown = as_torch(run, views.eval_view(image, resize=run.config.data.resize, size=run.config.data.image_size)[None])
    (seen,) = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    # It resizes tensors, whose pixels differ by one of 255 steps, and crops odd margins one pixel away, which these are not.
    np.testing.assert_allclose(seen, shown[0], atol=1.01 / 255 / 0.2)


@pytest.mark.parametrize(
    ("template", "ends", "begin"),
    [("chatml", ["<|im_end|>", "</s>"], "<s>"), ("vicuna", ["</s>"], "<s>"), ("llama-2", ["</s>"], ""), ("", ["</s>"], "")],
)
def test_answers_end_in_transformers_as_they_were_tuned(template, ends, begin, tmp_path):
    pytest.importorskip("jinja2")
    run = text_run("lora")
    config = run.config.copy_and_resolve_references()
    config.data.update({"tokenizer": str(json_model(tmp_path / "tokenizer.json", special=CHAT))})
    config.data.update({"format": "messages", "template": template} if template else {"format": "instructions"})
    config.backbone.vocabulary = 512
    files = plain.files(dataclasses.replace(run, config=config), "hf")
    words = tokenizer.load(config.data.tokenizer)
    numbers = [words.special[name] for name in ends]
    assert json.loads(files["config.json"])["eos_token_id"] == (numbers if len(numbers) > 1 else numbers[0])
    assert ("chat_template.jinja" in files) == bool(template)
    if template:  # nothing that transformers lacks
        source = files["chat_template.jinja"]
        said = [{"role": "user", "content": "an owl"}, {"role": "assistant", "content": "once"}]
        expected = text_runs.open_template(config, words).documents({"messages": said})[0].text
        assert jinja2_text(source, said) == begin + expected


def test_a_sentencepiece_model_alone_gets_its_begin_token_in_transformers(tmp_path):
    run = text_run("lora")
    config = run.config.copy_and_resolve_references()
    config.data.tokenizer = str(sentencepiece_model(tmp_path / "tokenizer.model"))
    config.backbone.vocabulary = 512
    stated = json.loads(plain.files(dataclasses.replace(run, config=config), "hf")["tokenizer_config.json"])
    assert stated == {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}


def test_a_window_that_transformers_lacks_is_not_dropped(monkeypatch):
    size = llama.Size(16, 2, 2, 1, 24, 512, 64, window=4, kind=llama.LLAMA)
    monkeypatch.setitem(llama.SIZES, "windowed", size)
    with pytest.raises(InputError, match=r"The LLaMA of transformers has no window, and this one has backbone\.window=4"):
        plain.files(text_run("lora", "windowed"), "hf")


def jinja2_text(source, said):
    environment = pytest.importorskip("jinja2.sandbox").ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(messages=said, add_generation_prompt=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*llama.KINDS, None], ids=lambda kind: kind.title if kind else "")
def test_transformers_computes_the_same_of_a_language_model(kind, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    name = f"small_{kind.model_type}" if kind else "stories260k"
    if kind:  # with a window, which a LLaMA cannot have, and heads of another width than the channels divide into
        width = 6 if kind in (llama.LLAMA, llama.QWEN3) else 0
        size = llama.Size(16, 2, 2, 1, 24, 512, 64, head_width=width, window=4 * (kind is not llama.LLAMA), kind=kind)
        monkeypatch.setitem(llama.SIZES, name, size)
    run = text_run("lora", name)
    path = written(run, "hf", tmp_path / "hf")
    network, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()) and (kind is None or type(network).__name__ == kind.architecture)
    tokens = np.random.default_rng(0).integers(0, 512, (2, 9)).astype(np.int32)
    expected = logits(run, {"tokens": tokens, "segments": np.ones_like(tokens)})
    outputs = network(torch.from_numpy(tokens).long()).logits.detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
