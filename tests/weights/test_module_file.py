"""The files that pre-tuning leaves: from the run that makes it to the run that starts from it."""

import functools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.config import task_fields
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.model.methods import module_paths
from toast_jax.train import checkpoint, loop, saved_run, setup
from toast_jax.weights import containers, module_file
from toast_jax.weights.rename import to_torch
from toast_jax.workdir import fingerprint


@pytest.fixture(scope="module")
def pretuned(image_folder, tmp_path_factory):
    """Folder of a pre-tuning run on a saved backbone, and that backbone's file."""
    root = tmp_path_factory.mktemp("pretuned")
    with pytest.MonkeyPatch.context() as patch:
        from toast_jax.model.backbones.vit import network as vit

        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        weights = save_backbone(root / "backbone.safetensors", image_folder, seed=1)
        config = tiny_config(image_folder, "toast")
        config.stage, config.epochs, config.backbone.weights = "pretune", 1, weights
        config.optimizer.name, config.ema = "adamw", 0.5
        loop.fit(config, root / "run")
    return root / "run", weights


def save_backbone(path, image_folder, seed):
    config = tiny_config(image_folder, "linear")
    config.seed = seed
    params = trees.merge(*network(config))
    arrays = {name: np.asarray(array) for name, array in trees.flat(params).items() if name.startswith("backbone/")}
    containers.write(path, to_torch(arrays), {})
    return str(path)


@pytest.mark.slow
def test_a_module_that_moved_is_read_where_the_field_of_the_message_says(pretuned, image_folder, tmp_path):
    folder, weights = pretuned
    module = shutil.copy(folder / "top_down.safetensors", tmp_path)
    config = tuning(image_folder, weights, module)
    config.epochs, config.warmup_epochs = 1, 0
    loop.fit(config, tmp_path / "run")
    moved = Path(module).rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"no weights file at .*/top_down.* needs; correct --config.top_down\.$"):
        saved_run.load(tmp_path / "run")
    saved = saved_run.load(tmp_path / "run", top_down=str(moved))
    assert saved.config.top_down == str(moved)
    for name in ("predict", "visualize", "generate", "corruptions", "attention_metrics", "convert"):
        assert {"top_down", "module"} <= task_fields.TASKS[name].keys()


def network(config):
    loaded = setup.load_network(config, 3)
    return loaded.tuned, loaded.frozen


def tuning(image_folder, weights, top_down, method="toast"):
    config = tiny_config(image_folder, method)
    config.backbone.weights, config.top_down = str(weights), str(top_down)
    return config


def test_run_leaves_the_module_that_it_evaluated(pretuned, image_folder):
    folder, weights = pretuned
    config = tuning(image_folder, weights, "")
    with checkpoint.manager(folder) as checkpoints:
        _, kept = checkpoint.restore_tuned(checkpoints, network(config)[0])
    saved = load_file(folder / "top_down.safetensors")
    assert set(saved) == {"prompt", "top_down_transform"} | {
        f"decoders.{i}.{name}.weight" for i in range(3) for name in ("linear", "linear2")
    }
    expected = {name: array for name, array in trees.flat(kept).items() if name.startswith("top_down/") and array is not None}
    expected["top_down/transform"] = np.eye(16, dtype=np.float32)
    for name, array in to_torch(expected).items():
        np.testing.assert_array_equal(saved[name], array)


@pytest.mark.parametrize("method", ["toast", "toast_lite"])
def test_tuning_starts_from_it(pretuned, image_folder, method):
    folder, weights = pretuned
    saved = load_file(folder / "top_down.safetensors")
    params = trees.merge(*network(tuning(image_folder, weights, folder / "top_down.safetensors", method)))
    np.testing.assert_array_equal(params["top_down"]["prior"], saved["prompt"])
    np.testing.assert_array_equal(params["top_down"]["back"][2], saved["decoders.2.linear.weight"].T)
    np.testing.assert_array_equal(params["top_down"]["out"][0], saved["decoders.0.linear2.weight"].T)


def test_a_shorter_second_look_uses_the_layers_of_its_blocks(pretuned, image_folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    folder, weights = pretuned
    config = tuning(image_folder, weights, folder / "top_down.safetensors")
    config.steered_blocks = 2
    params = trees.merge(*network(config))
    assert "top_down.safetensors steers the last 3 blocks; only its layers of the last 2 are used." in caplog.text
    saved = load_file(folder / "top_down.safetensors")
    for layer, block in enumerate((1, 2)):
        np.testing.assert_array_equal(params["top_down"]["back"][layer], saved[f"decoders.{block}.linear.weight"].T)
        np.testing.assert_array_equal(params["top_down"]["out"][layer], saved[f"decoders.{block}.linear2.weight"].T)


def test_a_module_of_the_last_blocks_has_their_numbers_and_steers_no_more(pretuned, image_folder, tmp_path):
    _, weights = pretuned
    config = tuning(image_folder, weights, "")
    config.steered_blocks = 2
    params = trees.merge(*network(config))
    module_file.save([tmp_path / "late.safetensors"], params, setup.load_network(config, 3).mask, config)
    assert {name for name in load_file(tmp_path / "late.safetensors") if name.endswith("linear.weight")} == {
        "decoders.1.linear.weight",
        "decoders.2.linear.weight",
    }
    config.top_down, config.seed = str(tmp_path / "late.safetensors"), 7
    loaded = trees.merge(*network(config))
    for name in ("prior", "transform", "back", "out"):
        np.testing.assert_array_equal(loaded["top_down"][name], params["top_down"][name])
    config.steered_blocks = 0
    with pytest.raises(InputError, match="late.safetensors steers the last 2 blocks, the network of the config 3; name a mod"):
        network(config)


def test_file_says_how_it_was_made(pretuned):
    facts = json.loads(containers.read_header(pretuned[0] / "top_down.safetensors")["toast_jax"])
    assert facts["config"]["stage"] == "pretune" and facts["config"]["backbone"]["weights"] == pretuned[1]
    assert facts["versions"]["jax"] == jax.__version__ and facts["device"]["count"] == 8
    assert not any("pos_embed" in name for name in facts["backbone"])


def test_another_backbone_is_refused(pretuned, image_folder, tmp_path):
    other = save_backbone(tmp_path / "other.safetensors", image_folder, seed=2)
    config = tuning(image_folder, other, pretuned[0] / "top_down.safetensors")
    with pytest.raises(InputError, match="was made for another backbone .backbone/.* differs.*config.backbone.weights"):
        network(config)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_the_backbone_in_half_precision_is_the_same(pretuned, image_folder, tmp_path, dtype):
    half = {name: array.astype(jax.numpy.dtype(dtype)) for name, array in load_file(pretuned[1]).items()}
    save_file(half, tmp_path / "half.safetensors")
    network(tuning(image_folder, tmp_path / "half.safetensors", pretuned[0] / "top_down.safetensors"))


def test_the_backbone_at_another_image_size_is_the_same(pretuned, image_folder):
    config = tuning(image_folder, pretuned[1], pretuned[0] / "top_down.safetensors")
    config.data.image_size = config.data.resize = 32
    network(config)


@pytest.mark.parametrize("part", ["norm/scale", "blocks/0/mlp/fc1/kernel", "patch_embed/bias"])
def test_one_changed_parameter_changes_the_fingerprint(part):
    rng = np.random.default_rng(0)
    params = {"backbone/norm/scale": rng.normal(size=8), "backbone/blocks/mlp/fc1/kernel": rng.normal(size=(3, 8, 8))}
    params |= {"backbone/patch_embed/bias": rng.normal(size=8), "backbone/pos_embed": rng.normal(size=(1, 5, 8))}
    before = module_file.fingerprint(params)
    name = f"backbone/{part.replace('/0/', '/')}"
    changed = params[name].copy()
    changed[0] *= 1.5
    after = module_file.fingerprint({**params, name: changed})
    assert [name for name in before if before[name] != after[name]] == [f"backbone/{part}"]
    assert before == module_file.fingerprint({**params, "backbone/pos_embed": rng.normal(size=(1, 9, 8))})


def test_a_backbone_on_an_accelerator_stays_there_and_is_read_layer_by_layer(monkeypatch):
    rng, asarray = np.random.default_rng(0), np.asarray
    shapes = {"blocks/mlp/fc1/kernel": (3, 8, 16), "blocks/norm1/scale": (3, 8), "norm/scale": (8,), "patch_embed/bias": (8,)}
    params = {f"backbone/{name}": rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    expected = module_file.fingerprint(params)
    reduced, moments = [], fingerprint._moments_on_device
    monkeypatch.setattr(fingerprint, "_is_on_host", lambda leaf: False)
    monkeypatch.setattr(fingerprint, "_moments_on_device", lambda leaf: reduced.append(leaf.shape) or moments(leaf))
    placed = {name: jax.device_put(array) for name, array in params.items()}

    def read(array, *dtype):
        assert not isinstance(array, jax.Array) or array.shape == (2,)
        return asarray(array, *dtype)

    monkeypatch.setattr(np, "asarray", read)
    found = module_file.fingerprint(placed)
    monkeypatch.undo()
    assert found.keys() == expected.keys() and sorted(reduced) == sorted([(8, 16)] * 3 + [(8,)] * 5)
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("factor", "same"), [(1.001, True), (1.05, False)])
def test_fingerprints_may_differ_by_rounding_alone(pretuned, image_folder, factor, same):
    params = {name: np.asarray(leaf) for name, leaf in flat_backbone(pretuned[1], image_folder).items()}
    name = "backbone/blocks/attn/q/kernel"
    mean = params[name].mean(axis=(1, 2), keepdims=True)
    params[name] = mean + factor * (params[name] - mean)  # the root mean square alone has to tell
    if same:
        return module_file.check_backbone(pretuned[0] / "top_down.safetensors", params)
    with pytest.raises(InputError, match="attn/q/kernel differs"):
        module_file.check_backbone(pretuned[0] / "top_down.safetensors", params)


def flat_backbone(weights, image_folder):
    return trees.flat(trees.merge(*network(tuning(image_folder, weights, "", "linear"))))


def test_random_backbone_is_another_one(pretuned, image_folder):
    with pytest.raises(InputError, match="was made for another backbone"):
        network(tuning(image_folder, "random", pretuned[0] / "top_down.safetensors"))


@pytest.mark.parametrize("text", ["{", "[]", '{"backbone": [1]}', '{"backbone": {"a": 1}}', '{"backbone": {"a": ["x", 1]}}'])
def test_damaged_header_is_told(pretuned, tmp_path, text):
    save_file(load_file(pretuned[0] / "top_down.safetensors"), tmp_path / "x.safetensors", {"toast_jax": text})
    with pytest.raises(InputError, match="The header of .*x.safetensors is damaged"):
        module_file.check_backbone(str(tmp_path / "x.safetensors"), {})


def test_network_of_another_depth_is_refused(pretuned, image_folder, monkeypatch):
    from toast_jax.model.backbones.vit import network as vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=2, num_heads=2))
    config = tuning(image_folder, "random", pretuned[0] / "top_down.safetensors")
    with pytest.raises(InputError, match="has 3 layers, the network of the config has 2"):
        network(config)


def test_network_of_another_width_is_refused(pretuned, image_folder, monkeypatch):
    from toast_jax.model.backbones.vit import network as vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=32, depth=3, num_heads=2))
    config = tuning(image_folder, "random", pretuned[0] / "top_down.safetensors")
    with pytest.raises(InputError, match="does not fit the network of the config"):
        network(config)


def test_toast_leaves_it_under_both_names(pretuned, image_folder):
    folder, weights = pretuned
    assert (folder / "module.safetensors").read_bytes() == (folder / "top_down.safetensors").read_bytes()
    config = tuning(image_folder, weights, "")
    config.module = str(folder / "module.safetensors")
    params = trees.merge(*network(config))
    np.testing.assert_array_equal(params["top_down"]["prior"], load_file(folder / "top_down.safetensors")["prompt"])


# Module files of other methods.

KINDS = {
    "lora": "lora/backbone/",
    "vpt": "prompts/tokens",
    "bias": r"backbone/(.*/)?bias",
    "partial": "backbone/last_[01]/",
    "finetune": "backbone/",
    "toast_lite": "lora/top_down/|top_down/",
}


@pytest.fixture(scope="module")
def saved(pretuned, image_folder, tmp_path_factory):
    """A function that writes a module file of a method, as if pre-tuning had moved it, and returns it and its arrays."""
    folder, rng = tmp_path_factory.mktemp("modules"), np.random.default_rng(0)

    @functools.cache
    def of_method(method):
        config = of(method, image_folder, pretuned[1])
        loaded = setup.load_network(config, 3)
        params = trees.flat(trees.merge(loaded.tuned, loaded.frozen))
        inside = module_paths(loaded.mask)
        params |= {path: params[path] + rng.normal(0, 0.1, params[path].shape).astype(np.float32) for path in inside}
        module_file.save([folder / f"{method}.safetensors"], trees.nested(params), loaded.mask, config)
        return str(folder / f"{method}.safetensors"), {path: params[path] for path in inside}

    return of_method


def of(method, image_folder, weights, **fields):
    config = tuning(image_folder, weights, "", method)
    config.tuned_blocks = 2 if method == "partial" else 1
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("method", KINDS)
def test_a_method_starts_from_its_own_file(method, saved, pretuned, image_folder):
    file, expected = saved(method)
    assert expected and all(re.match(KINDS[method], path) for path in expected)
    params = trees.flat(trees.merge(*network(of(method, image_folder, pretuned[1], module=file, seed=7))))
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array, err_msg=path)
    assert all(re.match(KINDS[method], path) is None for path in params.keys() - expected.keys())


@pytest.mark.parametrize(("source", "method"), [("toast_ep", "toast"), ("toast", "toast_ep")])
def test_toast_and_toast_ep_share_a_module(source, method, saved, pretuned, image_folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    file, expected = saved(source)
    config = of(method, image_folder, pretuned[1], module=file, seed=7)
    config.probe.queries = 4  # of no importance to the module
    params = trees.flat(trees.merge(*network(config)))
    assert expected.keys() == {path for path in params if path.startswith("top_down/")}
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array, err_msg=path)
    assert f"was made with method {source}; method {method} takes what both have." in caplog.text


@pytest.mark.parametrize("method", ["lora", "vpt", "bias", "partial", "toast_lite"])
def test_a_file_of_another_backbone_is_refused(method, saved, image_folder, tmp_path):
    other = save_backbone(tmp_path / "other.safetensors", image_folder, seed=2)
    with pytest.raises(InputError, match="was made for another backbone .backbone/.* differs.*config.backbone.weights"):
        network(of(method, image_folder, other, module=saved(method)[0]))


@pytest.mark.parametrize(
    ("source", "method", "fields", "message"),
    [
        ("lora", "bias", {}, "made with method lora, and method bias starts from one of bias; give such"),
        ("vpt", "toast_lite", {}, "made with method vpt, and method toast_lite starts from one of toast_lite or toast; give"),
        (
            "toast_ep",
            "toast_lite",
            {},
            "made with method toast_ep, and method toast_lite starts from one of toast_lite or toast;",
        ),
        ("toast_lite", "toast", {}, "made with method toast_lite, and method toast starts from one of toast or toast_ep; give"),
        ("lora", "lora", {"lora.rank": 8}, "made with lora.rank=4, and this run has lora.rank=8; make them equal, or"),
        ("lora", "lora", {"lora.alpha": 2.0}, "made with lora.alpha=1.0, and this run has lora.alpha=2.0; make"),
        ("vpt", "vpt", {"prompts.num": 5}, "made with prompts.num=2, and this run has prompts.num=5; make"),
        ("partial", "partial", {"tuned_blocks": 1}, "made with tuned_blocks=2, and this run has tuned_blocks=1; make"),
    ],
)
def test_a_file_of_another_method_is_refused(source, method, fields, message, saved, image_folder, pretuned):
    with pytest.raises(InputError, match=message):
        network(of(method, image_folder, pretuned[1], module=saved(source)[0], **fields))


def test_a_file_without_a_header_is_checked_by_its_arrays(saved, image_folder, pretuned, tmp_path):
    bare = str(tmp_path / "bare.safetensors")
    save_file(load_file(saved("lora")[0]), bare)
    network(of("lora", image_folder, pretuned[1], module=bare))
    with pytest.raises(InputError, match="is .*4.* in the file and .*8.* in the network.*; check config.lora.rank"):
        network(of("lora", image_folder, pretuned[1], **{"module": bare, "lora.rank": 8}))
    with pytest.raises(InputError, match="bare.safetensors lacks prompts/tokens"):
        network(of("vpt", image_folder, pretuned[1], module=bare))


def test_a_missing_file_is_told_with_its_field(image_folder):
    with pytest.raises(InputError, match=r"no weights file at nowhere.safetensors; correct --config.module\.$"):
        network(of("lora", image_folder, "random", module="nowhere.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "bias", "toast_lite"])
def test_a_run_pretunes_another_method_and_a_run_tunes_it(method, image_folder, tmp_path, pretuned):
    config = of(method, image_folder, pretuned[1], stage="pretune", epochs=1)
    result = loop.fit(config, tmp_path / "pretune")
    first = json.loads((tmp_path / "pretune/metrics.jsonl").read_text().splitlines()[0])
    variational = first.get("train/variational_loss", 0.0)
    assert (variational > 0) == (method == "toast_lite")
    assert first["train/loss"] == pytest.approx(first["train/task_loss"] + config.variational_weight * variational, rel=1e-6)
    assert result["tuned_parameters"]["without_head"] > 0 and not (tmp_path / "pretune/top_down.safetensors").exists()
    config = of(method, image_folder, pretuned[1], epochs=1, module=str(tmp_path / "pretune/module.safetensors"))
    loop.fit(config, tmp_path / "tune")
    moved = (tmp_path / "pretune/module.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"no weights file at .*/module.* needs; correct --config.module\.$"):
        saved_run.load(tmp_path / "tune")
    assert saved_run.load(tmp_path / "tune", module=str(moved)).step > 0


def test_steps_from_a_pretuned_module_are_finite_and_move_it(pretuned, image_folder, tmp_path):
    config = tuning(image_folder, pretuned[1], pretuned[0] / "top_down.safetensors")
    run, state = setup.prepare(config, tmp_path)
    before = parallel.fetch(state.tuned["top_down"]["prior"])
    batch = {"image": np.zeros((8, 16, 16, 3), np.uint8), "label": np.arange(8, dtype=np.int32) % 3}
    state, metrics = run.step(parallel.place(state), run.frozen, parallel.shard(batch))
    assert np.isfinite(metrics["loss"]) and np.any(before != parallel.fetch(state.tuned["top_down"]["prior"]))
