"""A run that an earlier version began resumes with this one, and ends with the numbers that version would have given."""

import json
import zipfile

import numpy as np
import pytest

from tests import FIXTURES
from toast_jax import trees
from toast_jax.config.check import check
from toast_jax.errors import InputError
from toast_jax.train import loop, saved_run
from toast_jax.train.checkpoint import manager
from toast_jax.train.setup import load_network
from toast_jax.weights import containers as weight_files
from toast_jax.weights import rename

# Made by commit 945100a: 24 training images, a random ViT-Mini, toast_lite; killed after the second of four epochs.
# `expected.jsonl` has the numbers of the same run that was not killed.
RUN = FIXTURES / "run_of_0_1.zip"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    with zipfile.ZipFile(RUN) as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return json.loads((tmp_path / "run/config.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def this_versions_config(earlier):
    """The same command, given to this version; the field is one that the earlier one did not have."""
    from configs import folder

    config = folder.get_config("method=toast_lite,backbone=vit_mini16")
    config.name, config.data.root = "saved", "images"
    config.data.exif_orientation = False
    config.data.image_size, config.data.resize = 32, 36
    config.backbone.weights, config.head.start = "random", "random"
    config.batch_size, config.epochs, config.warmup_epochs = 8, 4, 0
    config.eval_every = config.checkpoint_every = 1
    config.optimizer.lr, config.confusion = 0.002, False
    check(config)
    return config


_SLOW = [pytest.param(root, marks=pytest.mark.slow) for root in ("images/", "absolute")]


@pytest.mark.parametrize("root", ["images", "moved", *_SLOW])
def test_a_killed_run_resumes_and_ends_as_it_would_have(root, earlier, tmp_path):
    config = this_versions_config(earlier)
    if root == "moved":
        (tmp_path / "images").rename(tmp_path / "moved")
    config.data.root = str(tmp_path / "images") if root == "absolute" else root
    result = loop.fit(config, "run")
    assert result["steps"] == 12
    expected = {(line["step"], name): value for line in lines(tmp_path / "expected.jsonl") for name, value in line.items()}
    actual = {(line["step"], name): value for line in lines(tmp_path / "run/metrics.jsonl") for name, value in line.items()}
    assert actual.keys() == expected.keys()
    assert actual == pytest.approx(expected, rel=1e-4)


def test_a_field_that_it_did_not_have_is_named(earlier):
    config = this_versions_config(earlier)
    config.data.exif_orientation, config.precision = True, "highest"
    with pytest.raises(InputError) as refused:
        loop.fit(config, "run")
    assert "exif_orientation False -> True, set --config.data.exif_orientation=False; " in str(refused.value)
    assert "precision 'default' -> 'highest', set --config.precision=default)" in str(refused.value)


def test_other_data_and_another_module_are_refused(earlier, tmp_path):
    config = this_versions_config(earlier)
    config.top_down = str(top_down_file(tmp_path, config))
    with pytest.raises(InputError, match=r"began from other parameters .*\(top_down differs\); it began with random and no"):
        loop.fit(config, "run")
    config = this_versions_config(earlier)
    next((tmp_path / "images/train").rglob("*.*")).unlink()
    with pytest.raises(InputError, match="The training data has changed since the run in run began .24 examples then, 23 now"):
        loop.fit(config, "run")


def top_down_file(folder, config):
    network = load_network(config, 3)
    params = trees.flat(trees.merge(network.tuned, network.frozen))
    module = {path: np.asarray(leaf) for path, leaf in params.items() if path.startswith("top_down/")}
    weight_files.write(folder / "module.safetensors", rename.to_torch(module), {})
    return folder / "module.safetensors"


def test_its_network_is_read_back(earlier):
    saved = saved_run.load("run")
    assert saved.step == 6 and saved.classes == ("heron", "kite", "owl")
    with manager("run") as checkpoints:
        assert checkpoints.latest_step() == 6
