"""Evaluation between the first and the tuned parameters, and of runs that have not kept their logits."""

import json

import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax.tasks import evaluate
from toast_jax.train import loop
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
