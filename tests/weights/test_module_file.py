"""The file that pre-tuning leaves: from the run that makes it to the run that starts from it."""

import json
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
from toast_jax.train import checkpoint, loop, saved_run, setup
from toast_jax.weights import containers, top_down_file
from toast_jax.weights.rename import to_torch


@pytest.fixture(scope="module")
def pretuned(image_folder, tmp_path_factory):
    """Folder of a pre-tuning run on a saved backbone, and that backbone's file."""
    root = tmp_path_factory.mktemp("pretuned")
    with pytest.MonkeyPatch.context() as patch:
        from toast_jax.model.backbones import vit

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
        assert "top_down" in task_fields.TASKS[name]


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
    top_down_file.save(tmp_path / "late.safetensors", params, config)
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
    before = top_down_file.fingerprint(params)
    name = f"backbone/{part.replace('/0/', '/')}"
    changed = params[name].copy()
    changed[0] *= 1.5
    after = top_down_file.fingerprint({**params, name: changed})
    assert [name for name in before if before[name] != after[name]] == [f"backbone/{part}"]
    assert before == top_down_file.fingerprint({**params, "backbone/pos_embed": rng.normal(size=(1, 9, 8))})


@pytest.mark.parametrize(("factor", "same"), [(1.001, True), (1.05, False)])
def test_fingerprints_may_differ_by_rounding_alone(pretuned, image_folder, factor, same):
    params = {name: np.asarray(leaf) for name, leaf in flat_backbone(pretuned[1], image_folder).items()}
    name = "backbone/blocks/attn/q/kernel"
    mean = params[name].mean(axis=(1, 2), keepdims=True)
    params[name] = mean + factor * (params[name] - mean)  # the root mean square alone has to tell
    if same:
        return top_down_file.check_backbone(pretuned[0] / "top_down.safetensors", params)
    with pytest.raises(InputError, match="attn/q/kernel differs"):
        top_down_file.check_backbone(pretuned[0] / "top_down.safetensors", params)


def flat_backbone(weights, image_folder):
    return trees.flat(trees.merge(*network(tuning(image_folder, weights, "", "linear"))))


def test_random_backbone_is_another_one(pretuned, image_folder):
    with pytest.raises(InputError, match="was made for another backbone"):
        network(tuning(image_folder, "random", pretuned[0] / "top_down.safetensors"))


@pytest.mark.parametrize("text", ["{", "[]", '{"backbone": [1]}', '{"backbone": {"a": 1}}', '{"backbone": {"a": ["x", 1]}}'])
def test_damaged_header_is_told(pretuned, tmp_path, text):
    save_file(load_file(pretuned[0] / "top_down.safetensors"), tmp_path / "x.safetensors", {"toast_jax": text})
    with pytest.raises(InputError, match="The header of .*x.safetensors is damaged"):
        top_down_file.check_backbone(str(tmp_path / "x.safetensors"), {})


def test_network_of_another_depth_is_refused(pretuned, image_folder, monkeypatch):
    from toast_jax.model.backbones import vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=2, num_heads=2))
    config = tuning(image_folder, "random", pretuned[0] / "top_down.safetensors")
    with pytest.raises(InputError, match="has 3 layers, the network of the config has 2"):
        network(config)


def test_network_of_another_width_is_refused(pretuned, image_folder, monkeypatch):
    from toast_jax.model.backbones import vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=32, depth=3, num_heads=2))
    config = tuning(image_folder, "random", pretuned[0] / "top_down.safetensors")
    with pytest.raises(InputError, match="does not fit the network of the config"):
        network(config)


def test_steps_from_a_pretuned_module_are_finite_and_move_it(pretuned, image_folder, tmp_path):
    config = tuning(image_folder, pretuned[1], pretuned[0] / "top_down.safetensors")
    run, state = setup.prepare(config, tmp_path)
    before = parallel.fetch(state.tuned["top_down"]["prior"])
    batch = {"image": np.zeros((8, 16, 16, 3), np.uint8), "label": np.arange(8, dtype=np.int32) % 3}
    state, metrics = run.step(parallel.place(state), run.frozen, parallel.shard(batch))
    assert np.isfinite(metrics["loss"]) and np.any(before != parallel.fetch(state.tuned["top_down"]["prior"]))
