"""Runs that train together are the runs they would be alone, and what they share is computed once."""

import contextlib
import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vtab
from tests import small_tfds
from tests.conftest import tiny_config
from toast_jax.data.images import batches, pixels
from toast_jax.data.images.vtab import tasks
from toast_jax.errors import Diverged, InputError, Interrupted
from toast_jax.model import methods, steered
from toast_jax.train import checkpoint, feature_cache, grid, loop, setup
from toast_jax.workdir import run_folder

POINTS = [(0.05, 0.0), (0.2, 0.1), (0.01, 0.01)]


def grid_of(config, points=POINTS):
    configs = []
    for lr, weight_decay in points:
        configs.append(config.copy_and_resolve_references())
        configs[-1].optimizer.update({"lr": lr, "weight_decay": weight_decay})
    return configs


def together(config, folder, points=POINTS, **options):
    folders = [folder / str(i) for i in range(len(points))]
    return loop.fit_grid(grid_of(config, points), folders, folder / "all", **options)


def numbers(folder, name="train/loss"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in methods.METHODS if name != "linear"]


@pytest.mark.parametrize("method", ["linear", *SLOW])
def test_together_they_are_the_runs_they_are_alone(method, image_folder, tmp_path):
    config = tiny_config(image_folder, method)
    config.backbone.drop_path = 0.3
    config.optimizer.base_batch_size = 16
    results = together(config, tmp_path, at_once=2)
    for i, one in enumerate(grid_of(config)):
        alone = loop.fit(one, tmp_path / f"alone_{i}")
        for name in ("train/loss", "train/grad_norm", "train/lr", "val/loss", "test/accuracy"):
            ours, theirs = (numbers(tmp_path / folder, name) for folder in (str(i), f"alone_{i}"))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert results[i]["config"] == alone["config"] and results[i]["test"]["accuracy"] == alone["test"]["accuracy"]
        assert results[i]["test"] == json.loads((tmp_path / str(i) / "result.json").read_text())["test"]
        correct, alone_correct = (run_folder.read_correct(tmp_path / folder) for folder in (str(i), f"alone_{i}"))
        np.testing.assert_array_equal(correct, alone_correct)
        assert correct.mean() == pytest.approx(alone["test"]["accuracy"])
        assert results[i]["trained_together"] == 3 and "trained_together" not in alone
    assert len({tuple(numbers(tmp_path / str(i))) for i in range(3)}) == 3


def test_one_that_diverges_leaves_the_others_alone(image_folder, tmp_path):
    config = tiny_config(image_folder, "linear")
    good = together(config, tmp_path / "good", POINTS[:2])
    results = together(config, tmp_path / "mixed", [POINTS[0], (3e38, 0.0), POINTS[1]])
    assert (
        isinstance(results[1], Diverged) and "The loss is " in str(results[1]) and str(tmp_path / "mixed/1") in str(results[1])
    )
    assert [results[0]["test"], results[2]["test"]] == [one["test"] for one in good]
    assert numbers(tmp_path / "mixed/2") == numbers(tmp_path / "good/1")
    assert not (tmp_path / "mixed/1/result.json").exists()
    steps = len(numbers(tmp_path / "mixed/1"))
    assert steps < len(numbers(tmp_path / "mixed/0")) == 6
    results = together(config, tmp_path / "bad", [(1e10, 1.0), (3e38, 0.0)])  # the second one is the first to go
    assert all(isinstance(one, Diverged) and str(tmp_path / f"bad/{i}") in str(one) for i, one in enumerate(results))


def test_those_that_were_stopped_go_on_together(image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, "linear")
    together(config, tmp_path / "whole")
    save = checkpoint.save

    def save_and_stop(*args):
        save(*args)
        raise Interrupted("Stopped.")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(Interrupted):
            together(config, tmp_path / "parts")
    assert len(numbers(tmp_path / "parts/1")) == 3
    together(config, tmp_path / "parts")
    for i in range(3):
        assert numbers(tmp_path / f"parts/{i}") == numbers(tmp_path / f"whole/{i}")
        assert numbers(tmp_path / f"parts/{i}", "test/loss") == numbers(tmp_path / f"whole/{i}", "test/loss")


# Frozen features


@pytest.fixture(scope="module")
def vtab_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vtab")
    row = tasks.BUILDERS["cifar100"]
    small_tfds.prepare(f"cifar100:{row.versions[0]}", root, dict.fromkeys({"train", row.val[0], row.test[0]}, 90))
    return root


@pytest.fixture
def fixed(vtab_root, monkeypatch):
    """A run of VTAB whose images look alike in every epoch: ten of them, of which every epoch drops two."""
    monkeypatch.setattr(tasks, "TRAIN", 10)
    monkeypatch.setattr(tasks, "VAL", 8)
    config = vtab.get_config("method=toast,task=cifar100,split=selection,backbone=vit_ti8")
    config.backbone.update({"size": "tiny", "weights": "random", "drop_path": 0.0})
    config.data.update({"root": str(vtab_root), "image_size": 16, "resize": 16})
    config.batch_size, config.epochs, config.warmup_epochs = 8, 3, 0
    return config


@pytest.mark.parametrize(
    ("method", "steered_blocks"),
    [("toast", 0), ("toast", 2), ("linear", 0)],
)
@pytest.mark.slow
def test_what_is_kept_is_what_would_be_computed(method, steered_blocks, fixed, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "toast_jax")
    fixed.method, fixed.steered_blocks = method, steered_blocks
    seen = []
    sharded = feature_cache.FeatureCache.sharded
    monkeypatch.setattr(feature_cache.FeatureCache, "sharded", lambda *args: seen.append(sharded(*args)) or seen[-1])
    loop.fit(fixed, tmp_path / "kept")
    assert len(seen) == 3 and "Frozen features are computed once for each view and cached in memory" in caplog.text
    assert ("image" in seen[0]) == (method == "toast" and not steered_blocks)
    together(fixed, tmp_path / "grid", POINTS[:2])
    assert len(seen) == 6
    fixed.keep_known = False
    loop.fit(fixed, tmp_path / "computed")
    together(fixed, tmp_path / "grid_computed", POINTS[:2])
    assert len(seen) == 6
    np.testing.assert_allclose(numbers(tmp_path / "kept"), numbers(tmp_path / "computed"), rtol=1e-5)
    for i in range(2):
        np.testing.assert_allclose(numbers(tmp_path / f"grid/{i}"), numbers(tmp_path / f"grid_computed/{i}"), rtol=1e-5)


def test_what_is_kept_is_in_the_order_of_the_source(fixed, tmp_path):
    run, _ = setup.prepare(fixed, tmp_path)
    kept = feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path)
    (tokens,) = kept.arrays.values()
    np.testing.assert_array_equal(kept.labels, [run.train[i]["label"] for i in range(10)])
    assert tokens.shape == (10, 5, 16)
    for i in (0, 9):
        alone = run.features(run.frozen, {"image": run.train[i]["image"][None]})["tokens"]
        np.testing.assert_allclose(tokens[i], alone[0], rtol=1e-5, atol=1e-6)
    batch = next(batches.train_batches(run.train, batch_size=8, epochs=1, seed=0, resize=16, size=16, flip=False))
    np.testing.assert_array_equal(kept.sharded(batch)["features"]["tokens"].reshape(8, 5, 16), tokens[batch["index"]])


@pytest.mark.parametrize(("steered_blocks", "views"), [(0, 1), (2, 3)])
def test_features_on_the_devices_are_those_on_the_host(steered_blocks, views, fixed, tmp_path, monkeypatch):
    fixed.steered_blocks, fixed.data.views = steered_blocks, views
    run, _ = setup.prepare(fixed, tmp_path)
    on_host, on_devices = [], []
    for free, batches_of in ((0, on_host), (10**9, on_devices)):
        monkeypatch.setattr(feature_cache, "_free_on_device", lambda device, free=free: free)
        with contextlib.closing(loop._train_batches(run, 0)) as loader:
            batches_of += [batch for batch, _ in loader]
    cache = feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path)
    assert cache.on_devices and all(array.sharding.is_fully_replicated for array in cache.arrays.values())
    assert len(on_host) == len(on_devices) == 3
    for batch, expected in zip(on_devices, on_host, strict=True):
        assert jax.tree.map(lambda leaf: leaf.sharding, batch) == jax.tree.map(lambda leaf: leaf.sharding, expected)
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
    monkeypatch.setattr(feature_cache, "_free_on_device", lambda device: 4 * sum(a.nbytes for a in cache.arrays.values()) - 4)
    assert not feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path).on_devices


def test_it_is_kept_in_a_file_or_not_at_all_where_memory_is_short(fixed, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "toast_jax")
    run, _ = setup.prepare(fixed, tmp_path)
    in_memory = feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path)
    monkeypatch.setattr(feature_cache, "_free_memory", lambda: 1000)
    before = sorted(tmp_path.iterdir())
    in_a_file = feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path)
    assert "are computed once for each view and cached in a file" in caplog.text
    assert isinstance(in_a_file.arrays["tokens"], np.memmap) and sorted(tmp_path.iterdir()) == before
    np.testing.assert_array_equal(in_a_file.arrays["tokens"], in_memory.arrays["tokens"])
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path) is None
    assert "are computed in every epoch: memory and disk are short" in caplog.text


@pytest.mark.parametrize("method", [pytest.param("toast", marks=pytest.mark.slow), "linear"])
def test_views_that_epochs_take_in_turn_are_kept(method, image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, method)
    config.backbone.drop_path, config.data.views, config.epochs, config.augment.randaugment_ops = 0.0, 2, 3, 1
    decoded = []
    decode = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda content, name, **how: decoded.append(name) or decode(content, name, **how))
    config.data.verify = False
    loop.fit(config, tmp_path / "kept")
    of_training = [name for name in decoded if "/train/" in name]
    assert len(of_training) == 24 * 2 + (24 * 3 if method == "toast" else 0)  # a linear probe reads each view once
    config.keep_known = False
    loop.fit(config, tmp_path / "computed")
    np.testing.assert_allclose(numbers(tmp_path / "kept"), numbers(tmp_path / "computed"), rtol=1e-5)


def test_views_that_no_epoch_takes_are_not_computed(image_folder, tmp_path, monkeypatch):
    config = tiny_config(image_folder, "linear")
    config.backbone.drop_path, config.data.views, config.data.verify = 0.0, 20, False
    decoded, decode = [], pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda content, name, **how: decoded.append(name) or decode(content, name, **how))
    loop.fit(config, tmp_path / "kept")
    assert sum("/train/" in name for name in decoded) == 24 * 2  # of two epochs
    config.keep_known = False
    loop.fit(config, tmp_path / "computed")
    np.testing.assert_allclose(numbers(tmp_path / "kept"), numbers(tmp_path / "computed"), rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("augment", "flip", True),
        ("augment", "min_crop_area", 0.5),
        ("augment", "randaugment_ops", 1),
        ("augment", "erasing", 0.1),
        ("augment", "mixup", 0.1),
        ("augment", "cutmix", 0.1),
        ("backbone", "drop_path", 0.1),
        ("data", "format", "folder"),
        ("data", "resize", 18),
    ],
)
def test_views_that_change(section, field, value, fixed):
    assert feature_cache.has_fixed_views(fixed)
    fixed[section][field] = value
    assert not feature_cache.has_fixed_views(fixed)
    fixed.data.views = 3
    assert feature_cache.has_fixed_views(fixed) == (field not in ("erasing", "mixup", "cutmix", "drop_path"))


@pytest.mark.parametrize("method", methods.METHODS)
def test_what_no_step_changes(method, fixed):
    fixed.method = method
    network, row = steered.build(fixed, 3)
    caches = ("linear", "ep", "toast", "toast_lite", "toast_ep")
    assert (feature_cache.features_of(network, row) is not None) == (method in caches)


@pytest.mark.slow
def test_the_first_look_is_computed_once_for_all_points(fixed, tmp_path, monkeypatch):
    """Of four points the program has the work of four second looks and one first, not of eight looks."""
    run, state = setup.prepare(fixed, tmp_path / "alone")
    config = grid_of(fixed, [POINTS[0]] * 4)
    all_of, held = grid.prepare_grid(config, [tmp_path / str(i) for i in range(4)], tmp_path / "all", at_once=4)
    batch = {"image": jnp.zeros((8, 1, 16, 16, 3), jnp.uint8), "label": jnp.zeros((8, 1), jnp.int32)}
    flops = [
        one.step.lower(held_by, one.frozen, batch).compile().cost_analysis()["flops"]
        for one, held_by in ((run, state), (all_of, held))
    ]
    assert flops[1] < 3.5 * flops[0]


# How many side by side


@pytest.mark.parametrize(
    ("count", "each", "free", "expected"),
    [(28, 10, 1000, 28), (28, 10, 200, 14), (28, 10, 130, 10), (28, 10, 12, 1), (28, 10, 0, 1), (1, 10, 1000, 1)],
)
def test_even_shares_that_fit(count, each, free, expected):
    assert grid.side_by_side(count, each, free) == expected


class Accelerator:
    platform = "gpu"

    def __init__(self, memory):
        self.memory = memory

    def memory_stats(self):
        return {"bytes_limit": self.memory, "bytes_in_use": 0}


@pytest.mark.slow
def test_memory_decides_on_an_accelerator(fixed, tmp_path):
    run, state = setup.prepare(fixed, tmp_path)
    config = grid_of(fixed)
    all_of, held = grid.prepare_grid(config, [tmp_path / str(i) for i in range(3)], tmp_path / "all", at_once=0)
    parts = all_of.step.__wrapped__.keywords
    parts = {name: value for name, value in parts.items() if name != "at_once"}
    sizes = [grid._step(parts, run, held, 3, 0, Accelerator(memory))[1] for memory in (10**3, 10**10)]
    assert sizes == [1, 3] and grid._step(parts, run, held, 3, 0, jax.local_devices()[0])[1] == 1


@pytest.mark.parametrize(("memory", "at_once", "compiled"), [(10**10, 3, 1), pytest.param(10**3, 1, 2, marks=pytest.mark.slow)])
def test_the_program_whose_memory_is_estimated_runs(memory, at_once, compiled, fixed, tmp_path, monkeypatch, caplog):
    choose, chosen = grid._step, []
    monkeypatch.setattr(grid, "_step", lambda *args: chosen.append(choose(*args[:-1], Accelerator(memory))) or chosen[-1])
    fixed.method, fixed.epochs = "linear", 2
    with jax.log_compiles():
        together(fixed, tmp_path)
    assert chosen[0][1] == at_once
    of_step = r"Compiling jit\(_fun\) with .*ShapedArray\(uint32\[2\]\)"  # the step alone has the key of the state
    assert len(re.findall(of_step, caplog.text)) == compiled


def test_points_that_no_compiler_fits_are_halved(monkeypatch):
    """As on TPUs, where a program that needs too much memory is not compiled."""
    tried = []

    def refuse(*args):
        tried.append(args)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")

    monkeypatch.setattr(grid, "_replicated", lambda parts, at_once: SimpleNamespace(lower=refuse))
    monkeypatch.setattr(grid, "_batch_of", lambda run: {})
    assert grid._step({}, SimpleNamespace(frozen={}), {}, 28, 0, Accelerator(10**10))[1] == 1
    assert len(tried) < 6


@pytest.mark.parametrize("views", [1, 3])
def test_what_is_kept_on_the_devices_is_no_room_for_points(views, fixed, tmp_path, monkeypatch):
    fixed.data.views = views
    run, _ = setup.prepare(fixed, tmp_path)
    kept = feature_cache.build(fixed, run.features, run.frozen, run.train, tmp_path)
    size, frees = sum(array.nbytes for array in kept.arrays.values()), []
    monkeypatch.setattr(grid, "_replicated", lambda parts, at_once: None)
    monkeypatch.setattr(grid, "_temporaries", lambda step, run, state, free: frees.append(free) or 0)
    for memory in (4 * size, 4 * size - 1):  # of which a quarter holds what is kept, or not
        grid._step({}, run, {}, 3, 0, Accelerator(memory))
    fixed.keep_known = False
    others = (dataclasses.replace(run.members[0], config=fixed),)
    grid._step({}, dataclasses.replace(run, members=others), {}, 3, 0, Accelerator(8))
    assert frees == [3 * size, 4 * size - 1, 8]


def test_a_device_that_does_not_report_its_memory_gets_one_run_at_a_time(monkeypatch, caplog):
    caplog.set_level("INFO", "toast_jax")
    monkeypatch.setattr(Accelerator, "memory_stats", lambda device: None)
    assert grid._step({}, None, None, 3, 0, Accelerator(0))[1] == 1
    assert "The device does not report its memory" in caplog.text


@pytest.mark.parametrize("method", ["toast", "linear"])
@pytest.mark.parametrize("cached", [True, False])
def test_memory_is_estimated_for_the_batch_of_the_run(method, cached, fixed, tmp_path):
    """With cached features a step computes none of the first look."""
    fixed.method, fixed.keep_known = method, cached
    run, _ = setup.prepare(fixed, tmp_path)
    ((batch, _),) = itertools.islice(loop._train_batches(run, 0), 1)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), grid._batch_of(run)) == expected
    assert ("features" in expected) == cached and ("image" in expected) == (method == "toast" or not cached)


def test_what_cannot_be_prepared_is_refused(fixed, tmp_path):
    fixed.data.root = str(tmp_path / "none")
    with pytest.raises(InputError, match="is not prepared under"):
        together(fixed, tmp_path)
