"""The loop, end to end on a small data set: what it writes, that it can be interrupted, and how it fails."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import COUNTS, METHODS, refusal, tiny_config
from tests.workdir.test_locks import held_elsewhere
from toast_jax import trees
from toast_jax.data.images import batches
from toast_jax.devices import parallel
from toast_jax.errors import InputError, Interrupted
from toast_jax.model.backbones.vit import network as vit
from toast_jax.tasks import evaluate, train
from toast_jax.train import checkpoint, evaluation, image_runs, loop, saved_run, setup
from toast_jax.train.evaluation import Evaluation
from toast_jax.weights import containers, pretrained, rename
from toast_jax.workdir import interrupt, metrics, run_folder


@pytest.fixture(scope="module")
def fitted(image_folder, tmp_path_factory):
    """The folder of a run of `config`, and the result of the run."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        return folder, loop.fit(tiny_config(image_folder, "linear"), folder)


@pytest.fixture
def result(fitted, tmp_path):
    """The result of a run of `config`, whose folder was copied to `tmp_path`."""
    folder, result = fitted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return result


class Killed(Exception):
    pass


def kill_after(monkeypatch, saves):
    """Ends a run as a kill would, right after so many checkpoints were begun."""
    save, seen = checkpoint.save, []

    def save_and_die(*args):
        save(*args)
        seen.append(args)
        if len(seen) == saves:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_and_die)


def final_state(folder, config):
    run, state = setup.prepare(config, folder)
    with checkpoint.manager(folder) as checkpoints:
        return checkpoint.restore(checkpoints, state)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["train/loss"] for line in lines(folder) if "train/loss" in line]


# The steps of all of them are compared over devices in test_step.py.
QUICK = ("toast",)
SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in METHODS if method not in QUICK]


@pytest.mark.parametrize("method", [*QUICK, *SLOW])
def test_every_method_runs_to_its_result(method, image_folder, tmp_path, caplog):
    caplog.set_level("INFO", "toast_jax")
    config = tiny_config(image_folder, method)
    config.save_predictions = True
    train.run(config, str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test"]["count"] == 3 * COUNTS["test"] and result["val"]["count"] == 3 * COUNTS["val"]
    assert 0.0 <= result["test"]["accuracy"] <= 1.0
    assert result["config"]["method"] == method and result["seed"] == 42
    assert result["versions"]["jax"] == jax.__version__ and result["device"]["count"] == 8
    assert "xla_force_host_platform_device_count=8" in result["xla_flags"]
    correct = run_folder.read_correct(tmp_path)
    assert correct.shape == (3 * COUNTS["test"],) and correct.mean() == pytest.approx(result["test"]["accuracy"])
    predictions = run_folder.read_predictions(tmp_path)
    assert predictions["logits"].shape == (3 * COUNTS["test"], 3) and predictions["logits"].dtype == np.float32
    assert np.array_equal(predictions["logits"].argmax(axis=-1) == predictions["label"], correct)
    assert result["tuned_parameters"]["all"] > result["tuned_parameters"]["without_head"]
    assert len(losses(tmp_path)) == result["steps"] == 6
    assert f"test accuracy {result['test']['accuracy']:.4f}" in caplog.text


def test_seeds_that_share_a_program_are_runs_of_their_own(image_folder, tmp_path):
    config = tiny_config(image_folder, "linear")
    results = loop.fit_seeds(config, {3: tmp_path / "3", 4: tmp_path / "4"})
    config.seed = 4
    alone = loop.fit(config, tmp_path / "alone")
    assert losses(tmp_path / "4") == losses(tmp_path / "alone") != losses(tmp_path / "3")
    assert results[1]["test"] == alone["test"] and [one["seed"] for one in results] == [3, 4]
    assert results[1]["config"] == alone["config"]


def test_weights_are_read_once_for_all_seeds(image_folder, tmp_path, monkeypatch):
    """Also those of parameters that training changes, and donates."""
    config = tiny_config(image_folder, "toast")
    config.data.verify, config.head.start = False, "random"
    network = setup.load_network(config, 3)
    params = trees.flat(trees.merge(network.tuned, network.frozen))
    params = {path: np.asarray(leaf) for path, leaf in params.items() if not path.startswith("head/")}
    containers.write(tmp_path / "weights.safetensors", rename.to_torch(params), {})
    config.backbone.weights = str(tmp_path / "weights.safetensors")
    reads, read = [], pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda path, *args, **options: reads.append(path) or read(path, *args, **options))
    run, state = setup.prepare(config, tmp_path / "42", several_seeds=True)
    jax.tree.map(lambda leaf: leaf.delete(), state.tuned)
    run, state = setup.reseed(run, 43, tmp_path / "43")
    run, state = setup.reseed(run, 44, tmp_path / "44")
    assert reads == [config.backbone.weights]
    config.seed = 44
    other_run, other_state = setup.prepare(config, tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, (state, run.frozen), (other_state, other_run.frozen))
    np.testing.assert_array_equal(state.tuned["top_down"]["prior"], params["top_down/prior"])


def test_it_learns(image_folder, tmp_path):
    """Three colours are told apart; nothing else in this file would notice a loss that goes up."""
    config = tiny_config(image_folder, "finetune")
    config.epochs, config.checkpoint_every = 20, 20
    config.optimizer.lr = 0.05
    assert loop.fit(config, tmp_path)["test"]["accuracy"] == 1.0
    seen = losses(tmp_path)
    assert np.mean(seen[-5:]) < 0.3 * np.mean(seen[:5])


# With real kills: test_killed_runs.py.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["toast_lite", "vpt", "toast"])
def test_resumed_equals_uninterrupted_bit_for_bit(method, image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, method)
    config.epochs = 3
    if method == "toast":  # with all that pre-tuning adds
        config.stage, config.ema, config.batch_size = "pretune", 0.9, 16
        config.optimizer.update({"name": "adamw", "schedule": "step", "base_batch_size": 8, "lr": 0.01})
        config.optimizer.update({"lr_scale": 10.0, "lr_scaled": ("top_down/prior",)})
        augmented = {"min_crop_area": 0.3, "randaugment_ops": 2, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}
        config.augment.update({**augmented, "label_smoothing": 0.1})
    config.prompts.dropout = 0.1
    config.backbone.drop_path = 0.3
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.fit(config, whole)
    with monkeypatch.context() as patch:
        kill_after(patch, saves=2)
        with pytest.raises(Killed):
            loop.fit(config, parts)
    assert len(losses(parts)) == 2 * (24 // config.batch_size)
    loop.fit(config, parts)
    jax.tree.map(np.testing.assert_array_equal, final_state(parts, config), final_state(whole, config))
    assert losses(parts) == losses(whole)
    assert len(losses(parts)) == 3 * (24 // config.batch_size)


def test_a_run_that_was_killed_before_its_result_has_no_number_twice(config, tmp_path, result):
    seen = lines(tmp_path)
    (tmp_path / "result.json").unlink()
    assert loop.fit(config, tmp_path)["test"] == result["test"]
    assert lines(tmp_path) == seen


def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_there(config, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "toast_jax")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.fit(config, whole)
    with monkeypatch.context() as patch:
        answers = iter([False, True])
        patch.setattr(interrupt, "asked", lambda: contextlib.nullcontext(lambda: next(answers)))
        with pytest.raises(Interrupted, match="Stopped after step 2 of 6, which is saved in"):
            loop.fit(config, parts)
    assert final_state(parts, config).step == 2 and len(losses(parts)) == 2
    assert "Created at random" in caplog.text
    caplog.clear()
    loop.fit(config, parts)
    assert "at random" not in caplog.text  # what is created is replaced by the checkpoint
    jax.tree.map(np.testing.assert_array_equal, final_state(parts, config), final_state(whole, config))
    assert losses(parts) == losses(whole)


def test_first_signal_asks_and_second_one_ends():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.asked() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert before == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


def test_a_signal_reaches_the_blocks_around_and_the_blocks_after():
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with interrupt.asked() as outer:
        with interrupt.asked() as inner:
            assert not inner() and not outer()
            signal.raise_signal(signal.SIGINT)
            assert inner() and outer()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with interrupt.asked() as later:
            assert later()
    assert before == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


def test_every_field_of_the_recipe_reaches_the_run(config, tmp_path, monkeypatch):
    values = {"min_crop_area": 0.31, "randaugment_ops": 3, "randaugment_magnitude": 4.5, "flip": False}
    on_device = {"erasing": 0.11, "mixup": 0.21, "cutmix": 0.41, "label_smoothing": 0.05}
    config.augment.update({**values, **on_device})
    config.batch_size, config.ema, config.optimizer.base_batch_size = 16, 0.7, 8
    config.data.normalize = [[0.5, 0.4, 0.3], [0.2, 0.3, 0.4]]  # lists, as in a saved config
    run, _ = setup.prepare(config, tmp_path)
    np.testing.assert_allclose(run.members[0].rates[0], 2 * config.optimizer.lr)
    seen = {}
    with monkeypatch.context() as patch:
        patch.setattr(setup, "train_step", lambda *_, **options: seen.update(options))
        patch.setattr(setup.parallel, "replicate", lambda step, **_: step)
        setup.prepare(config, tmp_path)[0].step()
    on_device["smoothing"] = on_device.pop("label_smoothing")
    assert seen["ema"] == 0.7 and seen["augment"].keywords == {
        **on_device,
        **{"num_classes": 3, "degradation": 0.0, "statistics": ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))},
    }

    def stop(source, **options):
        seen.update(options)
        raise Killed

    monkeypatch.setattr(batches, "train_batches", stop)
    with pytest.raises(Killed):
        loop.fit(config, tmp_path)
    assert {name: seen[name] for name in values} == values


def test_terminal_gets_a_bar_and_no_lines(config, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level("INFO", "toast_jax")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    config.log_every = 1
    loop.fit(config, tmp_path)
    assert "/6 [" in capfd.readouterr().out
    assert not [line for line in caplog.messages if " lr " in line]


def test_speed_counts_the_time_that_the_device_takes(image_folder, tmp_path, monkeypatch):
    """A step returns before it is computed; here what is waited for takes 0.4 s for 24 images, an epoch of one step."""
    config, device_get = tiny_config(image_folder, "linear"), jax.device_get
    config.batch_size, config.epochs = 24, 4
    monkeypatch.setattr(jax, "device_get", lambda tree: time.sleep(0.4) or device_get(tree))
    monkeypatch.setattr(loop, "_evaluate", lambda run, *_: {"test": [{"loss": 1.0}]})
    assert loop.fit(config, tmp_path)["images_per_second"] <= 60.0


class OnDevice:
    """A metric that only `jax.device_get` may read: converting it anywhere else would wait for the device unseen."""

    def __init__(self, value):
        self.value = value


def test_the_host_waits_for_no_step_before_it_has_dispatched_the_next(config, tmp_path, monkeypatch):
    """Between two dispatches it only takes a batch and fetches earlier metrics, once for each window of steps."""
    config.epochs, config.log_every, config.eval_every, config.checkpoint_every = 4, 2, 4, 4
    run, state = setup.prepare(config, tmp_path)
    events, fetch, shard = [], jax.device_get, parallel.shard

    def step(*args):
        events.append(("dispatch", sum(what == "dispatch" for what, _ in events) + 1))
        with jax.transfer_guard("disallow"):  # all that a step takes is on the devices
            state, metrics = run.step(*args)
        return state, jax.tree.map(OnDevice, metrics)

    step.lower = run.step.lower

    def logged_fetch(tree):
        if isinstance(tree, list) and tree and isinstance(tree[0], tuple):  # metrics of steps
            events.append(("fetch", [number for number, *_ in tree]))
        return fetch(jax.tree.map(lambda leaf: leaf.value if isinstance(leaf, OnDevice) else leaf, tree))

    def logged_shard(batch):
        events.append(("batch", sum(what == "batch" for what, _ in events) + 1))
        return shard(batch)

    monkeypatch.setattr(loop, "_evaluate", lambda *args: {})
    monkeypatch.setattr(jax, "device_get", logged_fetch)
    monkeypatch.setattr(parallel, "shard", logged_shard)
    loop._finish(dataclasses.replace(run, step=step), state, time.perf_counter())
    assert [value for what, value in events if what == "dispatch"] == list(range(1, 13))
    fetches = [value for what, value in events if what == "fetch"]
    # The first step is logged for its compilation; epochs have three steps; the run waits for its last step.
    assert fetches == [[1], [2], [3], [4], [5, 6], [7, 8], [9], [10], [11, 12]]
    for value in fetches[:-1]:  # a step and a batch are ahead
        assert events.index(("batch", value[-1] + 2)) + 1 == events.index(("fetch", value))
        assert events.index(("dispatch", value[-1] + 1)) + 2 == events.index(("fetch", value))


@pytest.mark.slow
def test_some_steps_can_be_profiled(config, tmp_path, caplog):
    """More is tested without a network in tests/workdir/test_profile.py."""
    caplog.set_level("INFO", "toast_jax")
    config.epochs, config.profile = 2, 2
    loop.fit(config, tmp_path / "run")
    assert "Traced 2 steps; open" in caplog.text
    (trace,) = (tmp_path / "run/profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_which_examples_a_step_saw_is_noted_on_the_host(config, tmp_path, monkeypatch):
    """The batch on the devices of several hosts cannot be fetched by one of them."""
    device_get, fetched = jax.device_get, []
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or device_get(tree))
    loop.fit(config, tmp_path)
    steps = [entry for tree in fetched if isinstance(tree, list) for entry in tree if isinstance(entry, tuple)]
    assert [step for step, *_ in steps] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(examples, np.ndarray) and len(examples) == 8 for *_, examples in steps)


def test_a_finished_run_is_only_reported(config, tmp_path, monkeypatch, result):
    before = final_state(tmp_path, config)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prepare", None)  # nothing is loaded for it
        assert loop.fit(config, tmp_path)["test"] == result["test"]
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path, config), before)
    assert len(losses(tmp_path)) == 6


def test_checkpoint_holds_no_backbone(image_folder, tmp_path, result):
    config = tiny_config(image_folder, "linear")
    run_, state = setup.prepare(config, tmp_path)
    assert trees.count(state.tuned) < 100 < trees.count(run_.frozen)
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000


def test_unfinished_checkpoint_is_not_read(config, tmp_path, result):
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    finished = tmp_path / "checkpoints" / str(step)
    finished.rename(finished.with_name(f"{step}.orbax-checkpoint-tmp"))
    run, state = setup.prepare(config, tmp_path)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoint.restore(checkpoints, state).step == step - run.steps_per_epoch


def test_evaluate_task_gives_the_numbers_of_training(config, tmp_path, caplog, result):
    caplog.set_level("INFO", "toast_jax")
    config.task = "evaluate"
    evaluate.run(config, str(tmp_path))
    assert "at random" not in caplog.text  # what is created is replaced by the checkpoint
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["test"] == result["test"] and saved["val"] == result["val"]
    assert f"test accuracy {result['test']['accuracy']:.4f}" in caplog.text


def test_a_run_without_a_module_is_read_where_its_top_down_file_is_not(config, tmp_path, caplog):
    """Of a sweep over all methods, say, whose commands name one file."""
    caplog.set_level("INFO", "toast_jax")
    config.top_down = "not_there.pth"
    loop.fit(config, tmp_path)
    assert "Created at random" in caplog.text
    assert saved_run.load_tuned(tmp_path).step == 6


def test_checkpoint_is_not_evaluated_with_another_config(config, tmp_path, result):
    """Frozen parameters that were created at random are in no file: with another seed they would be others."""
    config.task, config.seed = "evaluate", 7
    with pytest.raises(InputError, match=r"another config \(seed 42 -> 7\)"):
        evaluate.run(config, str(tmp_path))


def test_evaluating_on_no_split_is_an_error(config, tmp_path):
    config.data.splits.val = config.data.splits.test = ""
    with pytest.raises(InputError, match="nothing to evaluate on; name a split"):
        evaluate.run(config, str(tmp_path))


def test_loss_of_an_evaluation_that_is_not_finite_stops_before_the_checkpoint(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *_: Evaluation({"accuracy": 0.5, "loss": float("nan"), "count": 1}, None)
    )
    with pytest.raises(InputError, match="The loss on val is nan after step 3; the last good checkpoint"):
        loop.fit(config, tmp_path)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == []


def test_padding_of_the_last_batch_does_not_count(config, tmp_path, result):
    nine = result["test"]
    assert nine["count"] == 9
    config.batch_size = 24  # as many rows of padding would hide that they count
    config.task = "evaluate"
    evaluate.run(config, str(tmp_path))
    again = json.loads((tmp_path / "evaluation.json").read_text())["test"]
    assert again["accuracy"] == nine["accuracy"]
    assert again["loss"] == pytest.approx(nine["loss"], rel=1e-5)


def test_pretuning_is_tuning_with_another_loss(image_folder, tmp_path, caplog):
    config = tiny_config(image_folder, "toast_lite")
    config.stage, config.task_weight = "pretune", 0.5
    result = loop.fit(config, tmp_path)
    last = [line for line in lines(tmp_path) if "train/loss" in line][-1]
    total = 0.5 * last["train/task_loss"] + config.variational_weight * last["train/variational_loss"]
    assert last["train/loss"] == pytest.approx(total, rel=1e-5)
    assert set(result["val"]) == {"accuracy", "count", "loss", "task_loss", "variational_loss"}
    assert "starts at random" not in caplog.text  # as a module that is pre-tuned should


@pytest.mark.slow
def test_pretuning_without_labels_trains_what_the_variational_loss_trains(image_folder, tmp_path, caplog):
    caplog.set_level("INFO", "toast_jax")
    config = tiny_config(image_folder, "toast")
    config.stage, config.task_weight, config.data.labels = "pretune", 0.0, False
    config.epochs, config.checkpoint_every, config.eval_every = 8, 8, 8
    config.optimizer.name, config.optimizer.lr = "adamw", 0.01
    train.run(config, str(tmp_path))
    _, start = setup.prepare(config, tmp_path / "other")
    assert [path for path, leaf in trees.flat(start.tuned).items() if leaf is not None] == ["top_down/back"]
    seen = losses(tmp_path)
    assert seen[-1] < 0.9 * seen[0]
    assert "test loss " in caplog.text and "accuracy" not in caplog.text


def test_moving_average_is_what_is_evaluated_and_kept(config, tmp_path):
    config.ema = 0.9
    config.epochs = 1
    loop.fit(config, tmp_path)
    final = final_state(tmp_path, config)
    run, state = setup.prepare(config, tmp_path / "again")
    placed, loader = parallel.place(state), batches.train_batches(run.train, **train_options(config))
    average = trees.prune(parallel.fetch(state.average))
    for batch in parallel.sharded(loader):
        placed, _ = run.step(placed, run.frozen, batch)
        tuned = trees.prune(parallel.fetch(placed.tuned))
        average = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, average, tuned)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), trees.prune(final.average), average)
    jax.tree.map(np.testing.assert_array_equal, trees.prune(final.tuned), tuned)
    with checkpoint.manager(tmp_path) as checkpoints:
        _, kept = checkpoint.restore_tuned(checkpoints, state.tuned)
    jax.tree.map(np.testing.assert_array_equal, trees.prune(kept), trees.prune(final.average))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(final.average), jax.tree.leaves(final.tuned), strict=True))


def train_options(config):
    data = config.data
    return {"batch_size": config.batch_size, "epochs": 1, "seed": config.seed, "resize": data.resize, "size": data.image_size}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0, "ema": 1.0}, r"The config has 2 mistakes:\n  config.ema is 1.0; .*\n  config.epochs is 0; it has to be"),
        ({"batch_size": 32}, "24 examples, fewer than one batch of 32"),
        ({"backbone.weights": "nowhere.pth"}, "no weights file at nowhere.pth"),
        ({"data.root": "nowhere"}, "Data folder nowhere does not exist"),
        ({"data.root": __file__}, "test_loop.py is a file: set --config.data.root to a folder or, for tables, the format too"),
        ({"data.num_classes": 7}, "3 classes but config.data.num_classes is 7"),
        ({"optimizer.no_decay": ("bias",)}, "config.optimizer.no_decay has 'bias', which matches no parameter"),
        ({"optimizer.lr_scaled": ("prior",)}, "config.optimizer.lr_scaled has 'prior', which matches no tuned parameter"),
        ({"data.shots": 9}, "has 8 training images, fewer than config.data.shots"),
        ({"data.shots": 2}, "6 examples, fewer than one batch of 8"),
    ],
)
def test_errors_before_images_are_decoded_leave_nothing_behind(config, tmp_path, change, message, monkeypatch):
    monkeypatch.setattr(image_runs, "verify_splits", lambda *_, **__: pytest.fail("decoded"))
    config.update_from_flattened_dict({"data.verify": True, **change})
    with pytest.raises(InputError, match=message):
        loop.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["backbone.weights", "module", "top_down"])
def test_a_missing_weights_file_is_reported_before_images_are_decoded(image_folder, tmp_path, field, caplog):
    caplog.set_level("INFO", "toast_jax")
    config = tiny_config(image_folder, "toast")
    config.update_from_flattened_dict({field: "nowhere.pth", "data.verify": True})
    with pytest.raises(InputError, match=f"no weights file at nowhere.pth; correct --config.{field}"):
        loop.fit(config, tmp_path / "run")
    config.update_from_flattened_dict({field: str(tmp_path)})
    with pytest.raises(InputError, match=f"{tmp_path} is a folder; give the weights file itself in --config.{field}"):
        loop.fit(config, tmp_path / "run")
    assert not [record for record in caplog.records if "Decoding" in record.message]


@pytest.mark.parametrize("field", ["backbone.weights", "module", "top_down"])
def test_weights_of_another_network_are_refused_before_images_are_decoded(image_folder, tmp_path, field, caplog):
    caplog.set_level("INFO", "toast_jax")
    config, file = tiny_config(image_folder, "toast"), str(tmp_path / "other.safetensors")
    containers.write(file, {f"norm.{name}": np.zeros(24, np.float32) for name in ("weight", "bias")}, {})
    for skip_corrupt in (False, True):
        config.update_from_flattened_dict({field: file, "data.verify": True, "data.skip_corrupt": skip_corrupt})
        with pytest.raises(InputError, match="other.safetensors lacks"):
            loop.fit(config, tmp_path / "run")
    assert not [record for record in caplog.records if "Decoding" in record.message]


def test_corrupt_image_is_named_before_the_first_step(config, tmp_path):
    for split, count in COUNTS.items():
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(2 * count):
                Image.new("RGB", (30, 30), (i, 0, 0)).save(tmp_path / "data" / split / name / f"{i}.jpg")
    broken = tmp_path / "data" / "train" / "a" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    config.data.root = str(tmp_path / "data")
    with pytest.raises(InputError, match="3.jpg"):
        loop.fit(config, tmp_path / "run")
    config.data.skip_corrupt = True
    train_source, _ = image_runs.open_sources(config, verified=False)
    assert len(train_source) == 31


def test_workdir_of_another_config_is_refused(config, tmp_path, result, monkeypatch):
    monkeypatch.setattr(setup, "reload_network", lambda *_: pytest.fail("read"))
    config.optimizer.lr = 0.01
    config.data.workers = 3  # this may change
    message = r"holds a run of another config \(optimizer.lr 0.05 -> 0.01\); give another --workdir"
    with pytest.raises(InputError, match=message):
        setup.prepare(config, tmp_path)


def test_a_start_that_failed_does_not_keep_the_folder(config, tmp_path, monkeypatch):
    def die(*args):
        raise Killed

    monkeypatch.setattr(loop, "_train", die)
    for config.batch_size in (8, 16):
        with pytest.raises(Killed):
            loop.fit(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 16


def test_a_run_is_not_overwritten(config, tmp_path, result):
    config.resume = False
    with pytest.raises(InputError, match="already holds a run; set --config.resume=True or give another --workdir"):
        setup.prepare(config, tmp_path)


@pytest.mark.parametrize("content", ["", '{"steps": ', "\udcff"])
def test_a_result_that_is_damaged_is_named(config, tmp_path, content):
    run_folder.write_json(tmp_path / "config.json", config.to_dict())
    (tmp_path / "result.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match="/result.json is damaged .*; remove it and give the same command again"):
        run_folder.recorded(tmp_path, config)


@pytest.mark.parametrize("name", ["running", "metrics.jsonl", "result.json", "confusion.csv"])
def test_a_folder_where_a_run_writes_a_file_is_refused_before_the_first_step(name, config, tmp_path):
    (tmp_path / name).mkdir()
    told = refusal(lambda: loop.fit(config, tmp_path))
    assert told == f"{tmp_path / name} is a folder, where a file is needed: move it away, or give another place."


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_a_file_where_a_run_writes_a_folder_is_refused_before_the_first_step(name, config, tmp_path):
    (tmp_path / name).write_text("")
    assert refusal(lambda: loop.fit(config, tmp_path)).startswith(f"{tmp_path / name} is a file, where a folder is needed: ")


@pytest.mark.parametrize("file", ["meta", "meta/metadata", "tuned/_METADATA", "progress/manifest.ocdbt"])
def test_a_checkpoint_that_is_damaged_is_named_and_the_run_goes_on_from_the_one_before(file, config, tmp_path, result):
    (tmp_path / "result.json").unlink()
    last = tmp_path / "checkpoints" / "6"
    if (last / file).is_dir():
        shutil.rmtree(last / file)
    else:
        (last / file).write_bytes(b"\x82" * 20)
    told = refusal(lambda: loop.fit(config, tmp_path))
    assert told.startswith(f"Checkpoint {last} is damaged (")
    assert told.endswith("): remove this folder, and the same command goes on from the checkpoint before it, if there is one.")
    shutil.rmtree(last)
    assert loop.fit(config, tmp_path)["test"] == result["test"]


def test_a_config_that_is_damaged_is_named(config, tmp_path, result):
    (tmp_path / "config.json").write_bytes(b"\x82" * 20)
    assert refusal(lambda: loop.fit(config, tmp_path)).startswith(f"{tmp_path / 'config.json'} is missing or damaged (")


@pytest.mark.parametrize("other", [b"\x82\x83", b'{"epoch": 1}', b"7", b'{"step": null}', b'{"step": 3}'])
def test_lines_that_are_no_metrics_of_the_run_are_left_out(other, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + other + b'\n{"step": 2}\n')
    metrics.Writer(tmp_path, 2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_remote_workdir_is_refused(config):
    with pytest.raises(
        InputError, match="--workdir=gs://bucket/run is a remote address; give a folder of a disk with file locks"
    ):
        setup.prepare(config, "gs://bucket/run")


def test_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run cannot be written .*; give another --workdir"):
        setup.prepare(config, tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["lr[0.1]", "of [a, b] and c", "a\\b"])
def test_a_workdir_whose_checkpoints_could_not_be_read_is_refused(config, tmp_path, name, monkeypatch):
    monkeypatch.setattr(image_runs, "verify_splits", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"Checkpoints in .* could not be read, as .* is a pattern; give another --workdir"):
        loop.fit(config, tmp_path / name / "run")
    assert not (tmp_path / name / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_read_only_workdir(config, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="cannot be written"):
        setup.prepare(config, tmp_path / "run")


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    config.epochs = 3

    def exploding(config, folder, **options):
        """From step 5 on, the loss is NaN."""
        run, state = setup.prepare(config, folder)

        def step(state, frozen, batch):
            step.calls += 1
            state, metrics = run.step(state, frozen, batch)
            return state, {**metrics, "loss": metrics["loss"] * (np.nan if step.calls >= 5 else 1.0)}

        step.calls, step.lower = 0, run.step.lower
        return dataclasses.replace(run, step=step), state

    monkeypatch.setattr(loop, "prepare", exploding)
    facts = r"epoch 1, learning rate 0.0\d+, examples number (\d+, ){7}\d+ of the training data"
    with pytest.raises(InputError, match=rf"The loss is nan .* at step 5 \({facts}\)"):
        loop.fit(config, tmp_path)
    with checkpoint.manager(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [3]
    assert not (tmp_path / "result.json").exists()
    assert lines(tmp_path)[-1]["train/loss"] is None
    monkeypatch.setattr(loop, "prepare", setup.prepare)
    assert np.isfinite(loop.fit(config, tmp_path)["test"]["loss"])


def spoilt(monkeypatch, *images):
    """Makes the loss of a training step with one of these images NaN, and so its gradients."""
    scores_of = setup.scores_of

    def spoilt_scores_of(config, network):
        def scores(params, batch, rng=None):
            bad = np.nan if rng is not None else 0.0
            is_bad = jax.numpy.isin(batch["index"], np.array(images)) if rng is not None else 0.0
            return {
                name: score + jax.numpy.where(is_bad, bad, 0.0) * score
                for name, score in scores_of(config, network)(params, batch, rng).items()
            }

        return scores

    monkeypatch.setattr(setup, "scores_of", spoilt_scores_of)


def test_a_step_that_is_not_finite_can_be_left_out(image_folder, tmp_path, monkeypatch, caplog):
    config = tiny_config(image_folder, "linear")
    config.skip_nonfinite, config.keep_known = 1, False
    spoilt(monkeypatch, 7)
    result = loop.fit(config, tmp_path)
    skipped = [message for message in caplog.messages if "the step is skipped, 1 of at most 1 in a row" in message]
    assert len(skipped) == 2 and all(re.search(r"examples number ([\d, ]*\b)?7\b", message) for message in skipped)
    assert losses(tmp_path).count(None) == 2 and len(losses(tmp_path)) == 6
    lines = metrics.complete_lines(tmp_path / "metrics.jsonl")
    used = [line["train/lr"] for line in lines if line.get("train/loss") is not None]
    np.testing.assert_array_equal(used, setup.rates(config, 3)[:4])  # as the schedule waits
    assert np.isfinite(result["test"]["loss"])
    before, after = setup.prepare(config, tmp_path / "new")[1].tuned, final_state(tmp_path, config).tuned
    assert np.any(before["head"]["kernel"] != after["head"]["kernel"]) and np.all(np.isfinite(after["head"]["kernel"]))


def test_more_steps_in_a_row_than_may_be_left_out_end_the_run(image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, "linear")
    config.skip_nonfinite = 2
    spoilt(monkeypatch, *range(24))
    with pytest.raises(InputError, match="The loss is nan .* at step 3"):
        loop.fit(config, tmp_path)


def test_a_run_that_resumes_among_steps_that_are_left_out_counts_on(image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, "linear")
    config.skip_nonfinite = 3
    spoilt(monkeypatch, *range(24))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, saves=1)
        loop.fit(config, tmp_path)
    with pytest.raises(InputError, match="The loss is nan .* at step 4"):
        loop.fit(config, tmp_path)


def test_a_folder_that_a_run_is_at_is_refused(image_folder, tmp_path):
    config = tiny_config(image_folder, "linear")
    with held_elsewhere(tmp_path / "running") as pid:
        told = f"{tmp_path} is in use: process {pid} on {socket.gethostname()} is at it; wait for it, or give another"
        with pytest.raises(InputError, match=told):
            loop.fit(config, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_checkpoint_of_another_method_is_explained(config, image_folder, tmp_path, result):
    other = tiny_config(image_folder, "toast_lite")
    other.task = "evaluate"
    with pytest.raises(InputError, match="holds a run of another config .method 'linear' -> 'toast_lite'"):
        evaluate.run(other, str(tmp_path))


def test_evaluating_nothing_is_an_error(config, tmp_path):
    with pytest.raises(InputError, match="There are no checkpoints in"):
        evaluate.run(config, str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("given", ["", "lora", "lora/birds", "lora/birds/selection/lr_1.0", "lora/birds/final"])
def test_folder_of_a_sweep_names_a_run_in_it(config, tmp_path, given):
    (tmp_path / "lora/birds/final/seed_1/checkpoints").mkdir(parents=True)
    (tmp_path / "lora/birds/selection/lr_1.0").mkdir(parents=True)
    with pytest.raises(InputError, match="give the --workdir of a run, such as .*lora/birds/final/seed_1.$"):
        evaluate.run(config, str(tmp_path / given))


def test_checkpoint_of_another_network_is_explained(config, tmp_path, result):
    """As when the folder's config.json was replaced."""
    config.lora.rank = 8
    config.method = "lora"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(InputError, match="does not hold this network .*; use the config it was made with"):
        evaluate.run(config, str(tmp_path))
