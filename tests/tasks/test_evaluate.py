"""Evaluation between the first and the tuned parameters, and of runs that have not kept their logits."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.tasks import evaluate
from toast_jax.train import image_runs, loop, setup
from toast_jax.weights import containers, rename
from toast_jax.workdir import run_folder


def test_parameters_are_interpolated_and_the_head_is_not():
    start = {"lora": {"b": np.zeros(2)}, "head": {"bias": np.zeros(1)}, "probe": {"values": np.ones(1)}, "backbone": None}
    tuned = {"lora": {"b": np.full(2, 4.0)}, "head": {"bias": np.ones(1)}, "probe": {"values": np.zeros(1)}, "backbone": None}
    between = evaluate._between(start, tuned, 0.25, kept="(head|probe)/")
    np.testing.assert_array_equal(between["lora"]["b"], [1.0, 1.0])
    assert between["head"]["bias"] == 1 and between["probe"]["values"] == 0 and between["backbone"] is None
    assert evaluate._between(start, tuned, 0.25, kept="")["head"]["bias"] == 0.25


@pytest.mark.slow
def test_a_run_is_evaluated_between_its_start_and_its_end(image_folder, tmp_path):
    config = tiny_config(image_folder, "finetune")
    result = loop.fit(config, tmp_path)
    config.task, config.save_predictions, losses = "evaluate", True, []
    for share in (0.0, 0.5, 1.0):
        config.interpolation = share
        evaluate.run(config, str(tmp_path))
        evaluation = json.loads((tmp_path / "evaluation.json").read_text())
        losses.append(evaluation["test"]["loss"])
        assert (tmp_path / run_folder.PREDICTIONS).exists() == (share == 1)
        assert (f"{share} of the way from its start" in evaluation["checkpoint"]) == (share < 1)
    assert losses[2] == pytest.approx(result["test"]["loss"], rel=1e-6) and len(set(losses)) == 3
    predictions = run_folder.read_predictions(tmp_path)
    assert (predictions["logits"].argmax(axis=-1) == predictions["label"]).mean() == pytest.approx(result["test"]["accuracy"])
    config.data.splits.test, config.data.splits.val = "val", ""
    evaluate.run(config, str(tmp_path))
    np.testing.assert_array_equal(run_folder.read_predictions(tmp_path)["logits"], predictions["logits"])
    with np.load(tmp_path / "logits_val.npz") as others:
        assert len(others["label"]) == json.loads((tmp_path / "evaluation.json").read_text())["test"]["count"]


def write_weights(config, path, factor=1.0):
    """A file of the network of a config, with the parameters that are tuned times a factor."""
    network = setup.load_network(config, 3)
    tuned = {name: np.asarray(leaf) * factor for name, leaf in trees.flat(trees.prune(network.tuned)).items()}
    frozen = {name: np.asarray(leaf) for name, leaf in trees.flat(trees.prune(network.frozen)).items()}
    containers.write(path, rename.to_torch(tuned | frozen), {})


def test_a_run_is_not_evaluated_on_the_way_from_another_start(image_folder, tmp_path):
    """The frozen parameters are the same; those that it tuned began elsewhere."""
    config, weights = tiny_config(image_folder, "ln"), tmp_path / "weights.safetensors"
    created = config.copy_and_resolve_references()
    write_weights(created, weights)
    config.backbone.weights, config.epochs = str(weights), 1
    loop.fit(config, tmp_path / "run")
    config.task, config.interpolation = "evaluate", 0.5
    evaluate.run(config, str(tmp_path / "run"))
    write_weights(created, weights, factor=0.3)
    with pytest.raises(InputError, match="began from other parameters than --config.backbone.weights .*norm.* differs"):
        evaluate.run(config, str(tmp_path / "run"))
    config.interpolation = 1.0
    evaluate.run(config, str(tmp_path / "run"))


def test_a_folder_without_a_run_is_refused_before_images_are_decoded(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_runs, "verify_splits", lambda *_, **__: pytest.fail("decoded"))
    config = tiny_config(image_folder, "linear")
    config.data.skip_corrupt = True
    with pytest.raises(InputError, match="There are no checkpoints in"):
        evaluate.run(config, str(tmp_path))
    config.data.splits.val = config.data.splits.test = ""
    with pytest.raises(InputError, match="There is nothing to evaluate on"):
        evaluate.run(config, str(tmp_path))


def test_logits_of_other_data_leave_those_of_the_test_split(tmp_path):
    data = ConfigDict({"root": f"{tmp_path}/data", "splits": {"test": "test"}})
    (tmp_path / "config.json").write_text(json.dumps({"data": data.to_dict()}))
    (tmp_path / "data").mkdir()
    assert run_folder.is_tested_on(tmp_path, ConfigDict({**data, "root": f"{tmp_path}/data/", "image_dir": ""}))
    for change in ({"splits": {"test": "val"}}, {"root": f"{tmp_path}/degraded"}, {"image_dir": "large"}):
        other = ConfigDict({**data, **change})
        assert not run_folder.is_tested_on(tmp_path, other) and run_folder.is_tested_on(tmp_path / "no run", other)
    for content in ('{"model_type": "vit"}', "{"):  # of another program, or damaged
        (tmp_path / "data" / "config.json").write_text(content)
        assert run_folder.is_tested_on(tmp_path / "data", data)
    label = np.arange(2)
    run_folder.write_predictions(tmp_path, logits=np.eye(2), label=label)
    run_folder.write_predictions(tmp_path, logits=np.zeros((2, 2)), label=label, split="other/test[:2]")
    np.testing.assert_array_equal(run_folder.read_predictions(tmp_path)["logits"], np.eye(2))
    assert not np.load(tmp_path / "logits_other_test[:2].npz")["logits"].any()


def test_a_run_that_is_evaluated_on_other_images_keeps_its_logits(config, image_folder, tmp_path):
    config.save_predictions, config.epochs = True, 1
    loop.fit(config, tmp_path / "run")
    before = run_folder.read_predictions(tmp_path / "run")["logits"]
    shutil.copytree(image_folder, tmp_path / "other")
    for path in (tmp_path / "other/test").glob("*/*.jpg"):
        Image.new("RGB", (40, 48)).save(path)
    config.task, config.data.root = "evaluate", str(tmp_path / "other")
    evaluate.run(config, str(tmp_path / "run"))
    np.testing.assert_array_equal(run_folder.read_predictions(tmp_path / "run")["logits"], before)
    assert (np.load(tmp_path / "run/logits_test.npz")["logits"] != before).any()


def test_a_run_keeps_its_logits_where_a_network_of_the_release_is_evaluated_in_its_folder(config, tmp_path):
    config.save_predictions, config.epochs = True, 1
    loop.fit(config, tmp_path / "run")
    before = run_folder.read_predictions(tmp_path / "run")["logits"]
    write_weights(config, tmp_path / "other.safetensors", factor=3.0)
    config.task, config.checkpoint = "evaluate", str(tmp_path / "other.safetensors")
    evaluate.run(config, str(tmp_path / "run"))
    np.testing.assert_array_equal(run_folder.read_predictions(tmp_path / "run")["logits"], before)
    evaluate.run(config, str(tmp_path / "of its own"))
    others = run_folder.read_predictions(tmp_path / "of its own")["logits"]
    assert (others != before).any()
    np.testing.assert_array_equal(np.load(tmp_path / "run/logits_test.npz")["logits"], others)
