"""Where a run's parameters start: released files against recorded logits, what is created, and what is said about it."""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import fgvc
from tests import FIXTURES
from tests.conftest import SOME_SLOW, tiny_config
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import methods
from toast_jax.model.additions.probe import AttentionProbe
from toast_jax.model.additions.prompts import Prompts
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.backbones.vit.network import ViT
from toast_jax.model.families import FAMILIES
from toast_jax.model.steered import Steered, apply, build, classifier, init
from toast_jax.model.top_down import TopDown
from toast_jax.train import setup
from toast_jax.weights import initial_parameters, pretrained, rename

BACKBONE = str(FIXTURES / "vit_bottom_up_deit_style.pth")
TOP_DOWN = str(FIXTURES / "vit_top_down_pretuned.pth")
TUNED = str(FIXTURES / "vit_toast_tuned.pth")
SIZE = ViT(width=32, depth=3, num_heads=4, patch=8, grid=4)  # of the recordings
HEAD = ("head.last_layer.weight", "head.last_layer.bias")


def network(method, num_classes=7, **changed):
    """The network of the recordings with the signal of a method, and the method's row."""
    row = FAMILIES["vit"].methods[method]
    backbone = dataclasses.replace(SIZE, last_blocks=2 if method == "partial" else 1, **changed)
    signal = {
        "": {},
        "prompts": {"prompts": Prompts(backbone.depth, 5, backbone.width, backbone.patch)},
        "top_down": {"top_down": TopDown(backbone.depth, backbone.width, backbone.dtype)},
    }
    probe = AttentionProbe(backbone.width) if row.probe else None
    return Steered(backbone, classifier(num_classes), probe=probe, **signal[row.signal]), row


def start(method, num_classes=7, *, weights="random", seed=0, dtype=jnp.float32, **files):
    """`initial_parameters.start` as a flat dict."""
    model, row = network(method, num_classes, dtype=dtype)
    return trees.flat(initial_parameters.start(model, row, seed=seed, weights=weights, **files))


def recording(name):
    """A recording, its parameters under `params/` without `enc.`."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key.replace("/enc.", "/"): file[key] for key in file.files}


def weights_file(path, name, leave_out=()):
    """Saves the parameters of a recording without those whose names start as told."""
    state = {key.removeprefix("params/"): array for key, array in recording(name).items() if key.startswith("params/")}
    save_file({name: array for name, array in state.items() if not name.startswith(tuple(leave_out))}, path)
    return str(path)


@pytest.fixture
def backbone(tmp_path):
    """A file of a backbone alone, readable without PyTorch."""
    return weights_file(tmp_path / "backbone.safetensors", "vit_linear", leave_out=["head"])


@pytest.fixture
def both(tmp_path):
    """A file of a backbone and a pre-tuned top-down module, readable without PyTorch."""
    return weights_file(tmp_path / "both.safetensors", "vit_toast", leave_out=["head"])


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged, whatever the command line did to the logger before."""
    monkeypatch.setattr(logging.getLogger("toast_jax"), "propagate", True)
    caplog.set_level(logging.INFO, logger="toast_jax")
    return caplog


def warnings(logged):
    return [record.getMessage() for record in logged.records if record.levelno >= logging.WARNING]


# Released files.


@pytest.mark.parametrize(
    ("name", "method", "files"),
    [
        ("vit_linear", "linear", {"weights": BACKBONE}),
        pytest.param("vit_finetune", "finetune", {"weights": BACKBONE}, marks=pytest.mark.slow),
        pytest.param("vit_linear", "partial", {"weights": BACKBONE}, marks=pytest.mark.slow),
        pytest.param("vit_linear", "linear", {"weights": TOP_DOWN}, marks=pytest.mark.slow),
        ("vit_toast", "toast", {"weights": BACKBONE, "top_down": TOP_DOWN}),
        pytest.param("vit_toast", "toast", {"weights": TOP_DOWN}, marks=pytest.mark.slow),
        ("vit_toast", "toast", {"weights": "", "tuned": TUNED}),
    ],
)
def test_released_files_give_the_recorded_logits(name, method, files):
    pytest.importorskip("torch")
    recorded = recording(name)
    params = start(method, seed=3, **files)
    if "tuned" not in files:  # the head that the recording was made with
        head, _ = rename.from_torch({name: recorded[f"params/{name}"] for name in HEAD}, 1)
        params |= {path: jnp.asarray(array) for path, array in head.items()}
    images = recorded["input/images_nchw"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        logits = apply(*network(method), trees.nested(params), images)
    error = np.abs(logits - recorded["out/logits"]).max() / np.abs(recorded["out/logits"]).max()
    assert error <= 1e-5


def test_a_tuned_file_is_everything(tmp_path, logged):
    params = start(
        "toast", weights="not read", top_down="not read", tuned=weights_file(tmp_path / "t.safetensors", "vit_toast")
    )
    expected, _ = rename.from_torch(
        {key.removeprefix("params/"): array for key, array in recording("vit_toast").items() if key.startswith("params/")}, 1
    )
    assert set(params) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array, err_msg=path)
    assert logged.messages == []


def test_a_tuned_file_of_another_method_is_refused(tmp_path):
    path = weights_file(tmp_path / "tuned.safetensors", "vit_toast")
    with pytest.raises(InputError, match=f"{path} has top_down/.*check config.method"):
        start("linear", tuned=path)


# What is loaded, and what is said about it.


@pytest.mark.parametrize("method", SOME_SLOW)
def test_every_method_loads_a_backbone_whole(method, backbone, logged):
    params = start(method, weights=backbone)
    with np.load(FIXTURES / "vit_linear.npz") as file:
        blocks = [file[f"params/enc.blocks.{i}.norm1.weight"] for i in range(3)]
    ours = [params.get("backbone/blocks/norm1/scale"), params["backbone/last_0/norm1/scale"]]
    ours += [params["backbone/last_1/norm1/scale"]] if method == "partial" else []
    np.testing.assert_array_equal(np.concatenate([np.atleast_2d(array) for array in ours]), blocks)
    created = {path.split("/")[0] for path in params} - {"backbone"}
    assert f"Created at random with seed 0: {', '.join(sorted(created))}." in logged.messages


def test_top_down_comes_from_the_weights_if_they_have_it(both, logged):
    expected = recording("vit_toast")
    params = start("toast", weights=both)
    np.testing.assert_array_equal(params["top_down/prior"], expected["params/prompt"])
    np.testing.assert_array_equal(params["top_down/out"][1], expected["params/decoders.1.linear2.weight"].T)
    assert warnings(logged) == []
    assert "Created at random with seed 0: head." in logged.messages


def test_a_top_down_file_comes_before_the_one_in_the_weights(tmp_path, both):
    state = {key[7:]: array for key, array in recording("vit_toast").items() if key.startswith("params/")}
    top_down = ("prompt", "top_down_transform", "decoders")
    other = {name: 2 * array if name.startswith(top_down) else array for name, array in state.items() if name not in HEAD}
    other = {name: array for name, array in other.items() if not name.startswith("prompt_")}
    save_file(other, tmp_path / "other.safetensors")
    params = start("toast", weights=both, top_down=str(tmp_path / "other.safetensors"))
    np.testing.assert_array_equal(params["top_down/prior"], 2 * state["prompt"])
    np.testing.assert_array_equal(params["backbone/cls_token"], state["cls_token"])


def test_a_top_down_file_needs_no_backbone(tmp_path, backbone, logged):
    names = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head")
    path = weights_file(tmp_path / "top_down.safetensors", "vit_toast", leave_out=names)
    params = start("toast", weights=backbone, top_down=path)
    np.testing.assert_array_equal(params["top_down/prior"], recording("vit_toast")["params/prompt"])
    assert warnings(logged) == []


def test_a_top_down_module_in_the_weights_that_is_not_used_is_told(both, logged):
    params = start("linear", weights=both)
    assert not any(path.startswith("top_down/") for path in params)
    assert f"{both} also holds top_down, not used here." in logged.messages
    assert warnings(logged) == []


@pytest.mark.parametrize("method", ["finetune", "vpt", "lora"])
def test_a_top_down_file_that_is_not_used_is_a_warning(method, backbone, logged):
    params = start(method, weights=backbone, top_down="file.pth")
    assert not any(path.startswith("top_down/") for path in params)
    assert warnings(logged) == ["file.pth is not used: this method has no top-down module."]


@pytest.mark.parametrize(("method", "random"), [("toast", False), ("toast_lite", False), ("toast", True)])
def test_a_top_down_module_at_random_is_a_warning(method, random, backbone, logged):
    start(method, weights="random" if random else backbone)
    (warning,) = warnings(logged)
    assert "starts at random" in warning and "config.top_down" in warning


def test_half_a_top_down_module_is_refused(tmp_path, backbone):
    path = weights_file(tmp_path / "half.safetensors", "vit_toast", leave_out=["head", "decoders.1"])
    for files in ({"weights": path}, {"weights": backbone, "top_down": path}):
        with pytest.raises(InputError, match=f"{path} lacks top_down/back/1, top_down/out/1; it belongs to another"):
            start("toast", **files)


def test_a_backbone_in_place_of_a_top_down_file_is_refused(backbone):
    with pytest.raises(InputError, match=f"{backbone} lacks top_down/.*top_down/prior"):
        start("toast", weights=backbone, top_down=backbone)


# What is created.


def test_random_weights_are_those_of_init():
    model, row = network("toast_lite")
    initial = trees.flat(jax.jit(lambda: init(model, row, jax.random.key(5)))())
    params = start("toast_lite", weights="random", seed=5)
    assert trees.shapes(params) == trees.shapes(initial)
    for path, leaf in initial.items():
        np.testing.assert_allclose(params[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("method", ["linear", "vpt", "lora", "toast_lite"])
def test_created_leaves_depend_on_the_seed_and_not_on_what_is_loaded(method, backbone):
    created, beside_a_file = start(method, seed=5), start(method, seed=5, weights=backbone)
    other_seed = start(method, seed=6, weights=backbone)
    assert set(created) == set(beside_a_file)
    for path, leaf in created.items():
        same = np.array_equal(leaf, beside_a_file[path])
        if path.startswith("backbone/"):
            assert not same or np.ptp(leaf) == 0, path
            continue
        assert same, path
        constant = np.ptp(leaf) == 0 or path == "top_down/transform"
        assert np.array_equal(leaf, other_seed[path]) == constant, path


def test_top_down_at_random_and_loaded_leave_the_same_head(backbone, both):
    heads = [start("toast", weights=weights)["head/kernel"] for weights in ("random", backbone, both)]
    np.testing.assert_array_equal(heads[0], heads[1])
    np.testing.assert_array_equal(heads[0], heads[2])


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_head_starts_as_the_release_has_it(num_classes):
    model, row = network("linear", num_classes, width=512)
    head = initial_parameters.start(model, row, seed=0, weights="random")["head"]
    np.testing.assert_allclose(head["bias"], -math.log(99), rtol=1e-6)
    assert head["kernel"].shape == (512, num_classes)
    assert np.std(head["kernel"]) == pytest.approx(math.sqrt(2 / num_classes), rel=0.05)
    assert abs(np.mean(head["kernel"])) < 0.05 * math.sqrt(2 / num_classes)


def test_top_down_module_of_another_backbone_is_refused(tmp_path):
    other = weights_file(tmp_path / "pretuned.safetensors", "vit_toast")
    arrays = load_file(other)
    arrays["norm.weight"] = arrays["norm.weight"] + 0.5
    save_file(arrays, other)
    backbone = weights_file(tmp_path / "backbone.safetensors", "vit_linear", leave_out=["head"])
    with pytest.raises(InputError, match="was made for another backbone .*norm/scale differs.*--config.backbone.weights"):
        start("toast", weights=backbone, top_down=other)


def test_top_down_module_of_half_precision_is_of_the_same_backbone(tmp_path):
    half = weights_file(tmp_path / "half.safetensors", "vit_toast")
    save_file({name: array.astype(np.float16) for name, array in load_file(half).items()}, half)
    backbone = weights_file(tmp_path / "backbone.safetensors", "vit_linear", leave_out=["head"])
    assert "top_down/prior" in start("toast", weights=backbone, top_down=half)


def with_classifier(path, classes=7):
    """A backbone file with the classifier of its own task, and that classifier."""
    state = {key.removeprefix("params/"): array for key, array in recording("vit_linear").items() if key.startswith("params/")}
    kernel, bias = (state.pop(name)[:classes] for name in HEAD)
    save_file({**state, "head.weight": kernel, "head.bias": bias}, path)
    return str(path), kernel, bias


@pytest.mark.parametrize("method", ["linear", "toast"])
def test_head_can_start_from_the_classifier_of_the_backbone(method, tmp_path):
    weights, kernel, bias = with_classifier(tmp_path / "vit.safetensors")
    params = start(method, weights=weights, classifier=True)
    np.testing.assert_array_equal(params["head/kernel"], kernel.T)
    np.testing.assert_array_equal(params["head/bias"], bias)
    assert np.any(start(method, weights=weights)["head/bias"] != bias)


def test_classifier_of_other_classes_is_refused(tmp_path):
    weights, *_ = with_classifier(tmp_path / "vit.safetensors", classes=5)
    with pytest.raises(InputError, match=r"head/kernel is \(32, 5\) in the file and \(32, 7\).*check the number of classes"):
        start("linear", weights=weights, classifier=True)


def test_without_labels_a_classifier_keeps_its_own_number_of_classes(tmp_path, monkeypatch):
    weights, _, bias = with_classifier(tmp_path / "vit.safetensors", classes=5)
    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(SIZE.width, SIZE.depth, SIZE.num_heads))
    config = tiny_config("", "toast")
    config.update({"stage": "pretune", "task_weight": 0.0, "distillation_weight": 1.0})
    config.head.start, config.backbone.weights, config.data.image_size = "classifier", weights, 32
    with pytest.raises(InputError, match="check the number of classes"):
        setup.load_network(config, 1)
    config.data.labels = False
    loaded = setup.load_network(config, 1)
    np.testing.assert_array_equal(loaded.frozen["head"]["bias"], bias)


def test_file_without_a_classifier_is_told(backbone):
    for read in (lambda: start("linear", weights=backbone, classifier=True), lambda: pretrained.num_classes(backbone)):
        with pytest.raises(InputError, match="no classifier to start from; set --config.head.start=random"):
            read()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16_in1k", "vit_l16_in21k"])
def test_files_of_the_released_sizes_fit(name, monkeypatch):
    """Shapes alone: the names and shapes that the release has for ViT-B and ViT-L, top-down module and all."""
    config = fgvc.get_config(f"method=toast,backbone={name}")
    model, row = build(config, 7)
    width, depth = model.backbone.width, model.backbone.depth
    block = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    block |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "prompt": (width,),
        "top_down_transform": (width, width),
    }
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for i in range(depth):
        for part, shape in block.items():
            shapes |= {f"blocks.{i}.{part}.weight": shape, f"blocks.{i}.{part}.bias": shape[:1]}
        shapes |= {f"decoders.{i}.{part}.weight": (width, width) for part in ("linear", "linear2")}
    state = {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()}
    monkeypatch.setattr(pretrained, "read", lambda path, field: state)
    expected = trees.flat(jax.eval_shape(lambda: init(model, row, jax.random.key(0))))
    loaded = pretrained.load("file", expected, last_blocks=1, wanted="(backbone|top_down)/.*")
    assert {name: array.shape for name, array in loaded.items()} == {
        name: leaf.shape for name, leaf in expected.items() if not name.startswith("head/")
    }


@pytest.mark.parametrize("method", ["toast", "toast_lite"])
def test_what_is_frozen_is_stored_as_it_is_computed_with(method, both):
    half, whole = (start(method, weights=both, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    model, row = network(method, dtype=jnp.bfloat16)
    tuned = trees.flat(methods.tuned_mask(trees.nested(whole), row))
    norms = {path for path in whole if "/norm" in path}
    for path, leaf in half.items():
        assert leaf.dtype == (jnp.float32 if tuned[path] or path in norms | {"top_down/prior"} else jnp.bfloat16), path
        assert whole[path].dtype == jnp.float32
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits = jax.jit(functools.partial(apply, model, row))
    np.testing.assert_array_equal(*(logits(trees.nested(params), images) for params in (half, whole)))


@pytest.mark.parametrize("method", ["toast", "toast_lite"])
def test_the_transform_that_a_pretuned_file_lacks_is_the_identity(method, both, tmp_path):
    path = weights_file(tmp_path / "part.safetensors", "vit_toast", leave_out=["head", "top_down_transform"])
    expected = start(method, weights=both)
    for files in ({"weights": path}, {"weights": both, "top_down": path}):
        params = start(method, **files)
        np.testing.assert_array_equal(params["top_down/transform"], np.eye(32))
        np.testing.assert_array_equal(params["top_down/prior"], expected["top_down/prior"])
