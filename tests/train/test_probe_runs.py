"""Runs with a probe: cached tokens, and the module of toast as a start."""

import json

import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax.train import loop, saved_run, setup

pytestmark = pytest.mark.slow


def test_cached_tokens_train_the_same_probe(image_folder, tmp_path):
    losses, statistics = [], []
    for cached in (True, False):
        config, folder = tiny_config(image_folder, "ep"), tmp_path / str(cached)
        config.data.views, config.backbone.drop_path, config.keep_known = 2, 0.0, cached
        loop.fit(config, folder)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
        statistics.append(saved_run.load_tuned(folder).params["probe"]["norm"])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for name, initial in (("running_mean", 0.0), ("running_var", 1.0)):
        np.testing.assert_allclose(*(saved[name] for saved in statistics), rtol=1e-4, atol=1e-6)
        assert np.all(statistics[0][name] != initial)


def test_a_module_of_toast_is_a_start(image_folder, tmp_path):
    config = tiny_config(image_folder, "toast")
    config.stage, config.epochs = "pretune", 1
    loop.fit(config, tmp_path)
    tuned = tiny_config(image_folder, "toast_ep")
    tuned.module = str(tmp_path / "module.safetensors")
    network, pretuned = setup.load_network(tuned, 3), saved_run.load(tmp_path).params["top_down"]
    np.testing.assert_array_equal(network.tuned["top_down"]["back"], pretuned["back"])
