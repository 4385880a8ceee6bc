"""Sweeps whose runs are real, on data and networks made small: grid, selection, seeds and table."""

import functools
import json
import math
import os
import subprocess
import sys

import pytest

from configs import sweep as sweep_config
from configs import table as table_config
from tests import ROOT, small_tfds
from tests.conftest import CLASSES, are_dropped, noted_steps
from tests.data.images.segmentation import small_set
from toast_jax.config import paper_recipes
from toast_jax.data.images.vtab import tasks
from toast_jax.tables import paper_tables
from toast_jax.tasks import sweep, table


def small(text, root):
    config = sweep_config.get_config(f"{text},backbone=vit_ti16")
    config.backbone.update({"size": "tiny", "patch": 8, "weights": "random"})
    config.data.update({"root": str(root), "image_size": 16, "resize": 16})
    config.batch_size, config.epochs, config.warmup_epochs, config.eval_every = 8, 2, 0, 2
    config.sweep.seeds = (1, 2)
    return config


def with_grid(config, lr, weight_decay):
    for grid in config.sweep.grid.values():
        grid.lr, grid.weight_decay = lr, weight_decay
    return config


@pytest.fixture(scope="module")
def vtab_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vtab")
    for name in ("cifar100", "dtd"):
        prepare(name, root)
    return root


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN", 8)
    monkeypatch.setattr(tasks, "VAL", 8)


def prepare(name, root, change=lambda example, index: None):
    row = tasks.BUILDERS[name]
    splits = dict.fromkeys({"train", row.val[0], row.test[0]}, 90)
    small_tfds.prepare(f"{name}:{row.versions[0]}", root, splits, change=change)


@pytest.mark.slow
def test_vtab(vtab_root, few_images, tmp_path, monkeypatch):
    config = with_grid(small("task=cifar100+dtd,method=toast", vtab_root), (0.1, 1.0), (0.01, 0.0))
    steps = noted_steps(monkeypatch)
    sweep.run(config, str(tmp_path / "sweep"))
    check(tmp_path, "toast", ["cifar100", "dtd"], points=4)
    assert are_dropped(steps)


@pytest.mark.slow
def test_all_of_vtab(few_images, tmp_path):
    def plausible(example, index):
        """What the labels of KITTI and CLEVR are made from."""
        for one in example.get("objects", ()):
            if "pixel_coords" in one:
                one["pixel_coords"] = [0.0, 0.0, 9.0]
            if "location" in one:
                one["location"] = [0.0, 0.0, 10.0]

    for name in tasks.BUILDERS:
        prepare(name, tmp_path / "data", plausible)
    config = with_grid(small("method=linear", tmp_path / "data"), (0.1, 1.0), (0.01, 0.0))
    config.epochs = config.eval_every = 1
    sweep.run(config, str(tmp_path / "sweep"))
    check(tmp_path, "linear", list(tasks.TASKS), points=4)
    entries = paper_tables.collect([tmp_path / "sweep"]).entries("linear")
    assert len(entries) == len(tasks.TASKS) + 5 and all(math.isfinite(mean) for _, mean, _ in entries.values())


@pytest.fixture(scope="module")
def fgvc_root(image_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("fgvc")
    for name, one in paper_recipes.FGVC.items():
        (root / name / one.image_dir).mkdir(parents=True)
        for split in ("train", "val", "test"):
            images = {str(path): CLASSES.index(path.parent.name) for path in sorted((image_folder / split).glob("*/*.jpg"))}
            (root / name / f"{split}.json").write_text(json.dumps(images))
    return root


@pytest.mark.parametrize("tasks", ["cub", pytest.param("all", marks=pytest.mark.slow)])
def test_fgvc(tasks, fgvc_root, tmp_path, monkeypatch):
    config = small(f"table=fgvc,method=linear,task={tasks}", fgvc_root)
    config.data.resize = 18
    for recipe in config.sweep.recipes.values():
        recipe.data.num_classes = 3
    steps = noted_steps(monkeypatch)
    sweep.run(config, str(tmp_path / "sweep"))
    check(tmp_path, "linear", list(config.sweep.tasks), points=0)
    assert are_dropped(steps)


@pytest.mark.slow
def test_segmentation(tmp_path):
    small_set.write(tmp_path / "data/mine", {"train": 8, "val": 3})
    config = sweep_config.get_config("table=segmentation,method=linear+toast,task=mine,head=linear,backbone=vit_ti8")
    config.backbone.update({"size": "tiny", "weights": "random"})
    config.data.root, config.data.image_size, config.batch_size, config.warmup_steps = str(tmp_path / "data"), 32, 8, 0
    config.sweep.seeds = (1, 2)
    config.sweep.recipes.mine.update({"steps": 2, "eval_every": 2, "checkpoint_every": 2})
    config.sweep.recipes.mine.data.update({"scale": (48, 32), "crop": (24, 32)})
    config.sweep.grid.toast.lr = (1e-3, 1e-2)
    sweep.run(config, str(tmp_path / "sweep"))
    table.run(table_config.get_config(f"from={tmp_path}/sweep"), str(tmp_path / "tables"))
    measured = paper_tables.collect([tmp_path / "sweep"]).measured
    assert {(method, name): len(cell.scores) for (method, name), cell in measured.items()} == {
        ("linear", "mine"): 2,
        ("toast", "mine"): 2,
    }
    text = (tmp_path / "tables/table.md").read_text()
    assert text.startswith("# Segmentation, vit_ti8") and "| method | mine | mean |" in text


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_makes_the_same_table(vtab_root, tmp_path):
    """Each process is killed a little later after its start than the one before, whatever it is at."""
    command = [sys.executable, "main.py", "--config=configs/sweep.py:method=toast,task=cifar100,backbone=vit_mini16"]
    command += [f"--config.data.root={vtab_root}", "--config.data.image_size=32", "--config.data.resize=32"]
    command += ["--config.backbone.weights=random", "--config.epochs=20", "--config.eval_every=20", "--config.warmup_epochs=1"]
    command += ["--config.sweep.grid.toast.lr=0.1,1.0", "--config.sweep.grid.toast.weight_decay=0.01,0.0"]
    command += ["--config.sweep.seeds=1,2", "--config.checkpoint_every=1", "--config.data.root=" + str(vtab_root)]
    # Of the images that were made, as many as the table has.
    script = "import main, sys; from toast_jax.data.images.vtab import tasks as v; v.TRAIN, v.VAL = 32, 8; main.cli()"
    command[1:2] = ["-c", script]
    env = {**os.environ, "XLA_FLAGS": "", "XDG_CACHE_HOME": str(tmp_path)}
    run = functools.partial(subprocess.Popen, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with run([*command, f"--workdir={tmp_path}/whole"]) as process:
        assert process.wait() == 0, process.stderr.read().decode()
    killed, seconds = 0, 4.0
    while True:
        with run([*command, f"--workdir={tmp_path}/parts"]) as process:
            try:
                process.communicate(timeout=seconds)
                break
            except subprocess.TimeoutExpired:
                process.kill()
        killed, seconds = killed + 1, seconds + 1.0
    assert process.returncode == 0 and killed > 3
    tables_of = [paper_tables.collect([tmp_path / name]).measured[("toast", "cifar100")] for name in ("whole", "parts")]
    assert tables_of[0].scores == tables_of[1].scores
    selected = [(tmp_path / name / "toast/cifar100/selected.json").read_text() for name in ("whole", "parts")]
    assert selected[0] == selected[1]


def check(folder, method, tasks, points, seeds=(1, 2)):
    """Every task has its selection, the seeds of what was best, and a place in the table."""
    for name in tasks:
        cell = folder / "sweep" / method / name
        tried = [json.loads(path.read_text()) for path in cell.glob("selection/*/result.json")]
        tested = [json.loads(path.read_text()) for path in sorted(cell.glob("final/seed_*/result.json"))]
        assert len(tried) == points and all("test" not in one and one["val"]["count"] == 8 for one in tried)
        assert [one["seed"] for one in tested] == list(seeds) and all(one["test"]["count"] > 0 for one in tested)
        if points:
            best = max(tried, key=lambda one: (one["val"]["accuracy"], *(-one["config"]["optimizer"][f] for f in RATES)))
            assert all(one["config"]["optimizer"] == best["config"]["optimizer"] for one in tested)
    table.run(table_config.get_config(f"from={folder}/sweep"), str(folder / "tables"))
    measured = paper_tables.collect([folder / "sweep"]).measured
    assert {name for one, name in measured if one == method} == set(tasks)
    assert method in (folder / "tables/table.md").read_text()


RATES = ("lr", "weight_decay")
