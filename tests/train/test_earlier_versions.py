"""A run that an earlier version began resumes with this one, and ends with the numbers that version would have given."""

import json
import zipfile

import pytest

from tests import FIXTURES
from toast_jax.config.check import check
from toast_jax.train import loop, saved_run
from toast_jax.train.checkpoint import manager

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
    """The same command, given to this version."""
    from configs import folder

    config = folder.get_config("method=toast_lite,backbone=vit_mini16")
    config.name, config.data.root = "saved", "images"
    config.data.image_size, config.data.resize = 32, 36
    config.backbone.weights, config.head.start = "random", "random"
    config.batch_size, config.epochs, config.warmup_epochs = 8, 4, 0
    config.eval_every = config.checkpoint_every = 1
    config.optimizer.lr, config.confusion = 0.002, False
    check(config)
    return config


def test_a_killed_run_resumes_and_ends_as_it_would_have(earlier, tmp_path):
    result = loop.fit(this_versions_config(earlier), "run")
    assert result["steps"] == 12
    expected = {(line["step"], name): value for line in lines(tmp_path / "expected.jsonl") for name, value in line.items()}
    actual = {(line["step"], name): value for line in lines(tmp_path / "run/metrics.jsonl") for name, value in line.items()}
    assert actual.keys() == expected.keys()
    assert actual == pytest.approx(expected, rel=1e-4)


def test_its_network_is_read_back(earlier):
    saved = saved_run.load("run")
    assert saved.step == 6 and saved.classes == ("heron", "kite", "owl")
    with manager("run") as checkpoints:
        assert checkpoints.latest_step() == 6
