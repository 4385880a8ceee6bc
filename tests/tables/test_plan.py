"""Sweeps: which runs there are, what is selected, and that nothing is lost, repeated or done twice. The runs are made up."""

import json
import logging
import math
import re
import signal
import socket

import jax
import pytest
from PIL import Image

from configs import fgvc, segment, vtab
from configs import sweep as config_of
from tests.workdir.test_locks import held_elsewhere
from toast_jax import trees
from toast_jax.config import paper_recipes
from toast_jax.config.check import check
from toast_jax.data.images.vtab import tasks
from toast_jax.errors import Diverged, InputError, Interrupted
from toast_jax.model import methods, steered
from toast_jax.tables import paper_tables, plan
from toast_jax.tables.plan import Cell, Point
from toast_jax.tasks import sweep as task
from toast_jax.train import loop


class Runs:
    """In the place of `fit_seeds`: writes what it would write and remembers what it was asked for."""

    def __init__(self, score=lambda config: 0.5):
        self.score, self.asked, self.made, self.raises = score, [], [], {}

    def __call__(self, config, folders):
        for seed, folder in folders.items():
            self.asked.append(str(folder).split("/sweep/")[-1])
            if (folder / "result.json").exists():
                continue
            self.made.append(name := self.asked[-1])
            config = config.copy_and_resolve_references()
            config.seed = seed
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config.to_dict()))
            (folder / "checkpoints/1").mkdir(parents=True, exist_ok=True)
            logging.getLogger("toast_jax.train.loop").info("told by a run")
            if errors := self.raises.get(name):
                raise errors.pop(0)
            split = "test" if config.data.splits.test else "val"
            result = {
                split: {plan.score_of(config): self.score(config)},
                "seed": seed,
                "steps": 36,
                "images_per_second": 10.0,
                "tuned_parameters": {"all": 11, "without_head": 1},
                "config": config.to_dict(),
            }
            (folder / "result.json").write_text(json.dumps(result))


def small(text="table=vtab,method=toast,task=cifar100+dtd", together=1):
    """Two by two points, two seeds; each run on its own."""
    config = config_of.get_config(text)
    for grid in config.sweep.grid.values():
        grid.lr, grid.weight_decay = (1.0, 0.1), (0.01, 0.0)
    config.sweep.seeds = (1, 2)
    config.sweep.together = together
    return config


@pytest.fixture
def runs(monkeypatch):
    made_up = Runs()
    monkeypatch.setattr(task, "fit_seeds", made_up)
    monkeypatch.setattr(task, "_check", lambda *_: None)
    return made_up


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def failure(config, folder):
    with pytest.raises(InputError) as error:
        task.run(config, str(folder))
    return str(error.value)


# Which runs there are


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("toast", 28),
        ("toast_lite", 28),
        ("lora", 28),
        ("vpt", 40),
        ("finetune", 16),
        ("linear", 40),
        ("bias", 28),
        ("partial", 28),
        ("ln", 28),
        ("ssf", 28),
        ("adapter_plus", 28),
        ("ep", 28),
        ("toast_ep", 28),
    ],
)
def test_grid_of_vtab(method, count, folder):
    config = config_of.get_config(f"table=vtab,method={method}")
    everything = plan.cells(config)
    assert [cell.task for cell in everything] == list(tasks.TASKS)
    assert {len(plan.points(config, cell)) for cell in everything} == {count}
    units = plan.selection(config, everything[0], folder)
    assert len({unit.folder for unit in units.values()}) == count and config.optimizer.base_batch_size == 256


def test_runs_of_segmentation_are_those_of_its_config(folder):
    """With the splits of each set; the validation images are scored once, after the last step."""
    config = config_of.get_config("table=segmentation,method=linear+toast,task=ade20k+mine,head=linear,backbone=vit_s16")
    config.data.root = "sets"
    config.sweep.seeds = (1,)
    units = {
        (cell.method, cell.task): plan.final(config, cell, *plan.points(config, cell), folder) for cell in plan.cells(config)
    }
    assert list(units) == [("linear", "ade20k"), ("linear", "mine"), ("toast", "ade20k"), ("toast", "mine")]
    for (method, name), unit in units.items():
        dataset = {"mine": "folder"}.get(name, name)
        expected = segment.get_config(f"dataset={dataset},method={method},backbone=vit_s16,head=linear")
        expected.name, expected.seed = unit.config.name, 1
        expected.data.root = {"mine": "sets/mine", "ade20k": "sets/ADEChallengeData2016"}[name]
        expected.data.splits.update({"val": "", "test": expected.data.splits.val})
        assert unit.config.to_dict() == expected.to_dict()
        check(unit.config)
    assert units["toast", "ade20k"].names["data.splits"] == "sweep.recipes.ade20k.splits.final"


def test_a_table_of_segmentation_selects_by_mean_iou_and_resumes(runs, folder):
    config = config_of.get_config("table=segmentation,method=toast,task=voc,backbone=vit_s16")
    config.sweep.seeds, config.sweep.grid.toast.lr = (1, 2), (1e-3, 1e-4, 1e-5)
    runs.score = lambda config: {1e-3: 0.2, 1e-4: 0.4, 1e-5: 0.3}[config.optimizer.lr]
    task.run(config, str(folder))
    place = folder / "toast/voc"
    selected = json.loads((place / "selected.json").read_text())
    assert selected["selected"]["lr"] == 1e-4 and [row["val_mean_iou"] for row in selected["grid"]] == [0.2, 0.4, 0.3]
    tested = json.loads((place / "final/seed_2/result.json").read_text())
    assert tested["test"] == {"mean_iou": 0.4} and tested["config"]["optimizer"]["lr"] == 1e-4
    made = len(runs.made)
    task.run(config, str(folder))
    assert len(runs.made) == made == 3 + 2
    table = paper_tables.collect([folder])
    assert table.tasks == ("voc",) and table.measured["toast", "voc"].scores == (40.0, 40.0)
    assert paper_tables.cells(table)[1][0][:3] == ["toast", "40.0 +- 0.0 (2)", "40.0"]
    assert any(note.startswith("mIoU on test") for note in paper_tables.notes(table))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table=segmentation,method=ep,task=voc", "The config argument method is 'ep'"),
        ("table=segmentation,shots=4", "shots is for table=fewshot"),
        ("table=vtab,head=linear", "head is for table=segmentation; a sweep of vtab classifies images"),
        ("table=segmentation,head=fcn,task=voc,method=toast", None),
    ],
)
def test_arguments_of_other_tables(text, message, folder):
    if message:
        with pytest.raises(InputError, match=message):
            config_of.get_config(text)
    else:  # the head is a field of the runs
        config = config_of.get_config(text)
        with pytest.raises(InputError, match="config.segmentation.head is 'fcn'"):
            check(plan.final(config, *plan.cells(config), *plan.points(config, plan.cells(config)[0]), folder).config)


def test_published_grids():
    assert paper_recipes.VTAB_LR["toast"] == (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
    assert paper_recipes.VTAB_LR["vpt"] == (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
    assert sorted(paper_recipes.VTAB_LR["finetune"]) == [1e-4, 5e-4, 1e-3, 5e-3]
    assert paper_recipes.VTAB_WEIGHT_DECAY == (1e-2, 1e-3, 1e-4, 0.0)
    assert paper_recipes.SEEDS == (42, 44, 82, 100, 800)


# The rate and the decay of each point, and what a run has beside them.
OF_PAPERS = {
    "ssf": ([1e-3, 5e-3, 1e-2, 5e-2], [5e-5, 5e-2], ("head/bias", "ssf/.*")),
    "adapter_plus": ([1e-3], [1e-4], ("head/bias", "adapter/.*(_bias|scaling)")),
    "bias": ([1e-3, 1e-2], [1e-4, 1e-3], ("head/bias",)),
    "ln": ([1e-3, 1e-2], [1e-4, 1e-3], ("head/bias",)),
}


@pytest.mark.parametrize("method", OF_PAPERS)
def test_recipes_of_other_papers(method, folder):
    config = config_of.get_config(f"table=vtab,method={method},task=dtd,recipe=paper")
    (cell,), (rates, decays, no_decay) = plan.cells(config), OF_PAPERS[method]
    points = plan.points(config, cell)
    assert points == [Point(lr, decay) for lr in rates for decay in decays]
    unit = plan.final(config, cell, points[0], folder)
    run, optimizer = unit.config, unit.config.optimizer
    assert (optimizer.name, optimizer.base_batch_size, run.batch_size, tuple(optimizer.no_decay)) == ("adamw", 0, 64, no_decay)
    assert (run.epochs, run.warmup_epochs, run.backbone.drop_path, tuple(unit.folders)) == (100, 10, 0.1, paper_recipes.SEEDS)
    assert unit.names["batch_size"] == f"sweep.changes.{method}.batch_size"


def test_one_recipe_for_all_tasks_and_methods(folder):
    """No selection, three seeds, the last epoch; decay leaves out what has one axis."""
    config = config_of.get_config("table=vtab,method=all,recipe=fixed")
    everything = plan.cells(config)
    assert len(everything) == 13 * 19
    for cell in everything:
        (point,) = plan.points(config, cell)
        assert point == Point(1e-3, 1e-4) and plan.selection(config, cell, folder) == {}
    for cell in [cell for cell in everything[::19] if cell.method in ("bias", "ssf", "adapter_plus", "toast_ep")]:
        unit = plan.final(config, cell, point, folder)
        check(unit.config)
        assert (unit.config.optimizer.name, unit.config.batch_size, tuple(unit.folders)) == ("adamw", 64, (18, 45, 25))
        assert (unit.config.data.splits.train, unit.config.data.splits.val) == ("train800val200", "")
        network, row = steered.build(unit.config, 10)
        shapes = jax.eval_shape(lambda n=network, r=row: steered.init(n, r, jax.random.key(0)))
        mask = trees.flat(methods.tuned_mask(shapes, row))
        kept = {path for path, tuned in mask.items() if tuned}
        kept -= {path for path in kept for regex in unit.config.optimizer.no_decay if re.fullmatch(regex, path)}
        matrices = ("kernel", "/a", "/b", "back", "out", "transform", "queries", "values", "down", "up", "tokens", "embed")
        assert all(path.endswith((*matrices, "cls_token", "running_mean", "running_var")) for path in kept), kept
        assert all(any(re.fullmatch(regex, path) for path in mask) for regex in unit.config.optimizer.no_decay)
        assert any(re.fullmatch(regex, "backbone/stages_0/blocks/gamma") for regex in unit.config.optimizer.no_decay)


def test_fields_that_a_recipe_sets_for_each_method_are_not_fields_of_the_sweep(folder):
    of_toast = config_of.get_config("table=vtab,method=toast,task=dtd")
    of_toast.optimizer.no_decay = (".*/bias",)
    (cell,) = plan.cells(of_toast)
    assert plan.final(of_toast, cell, plan.points(of_toast, cell)[0], folder).config.optimizer.no_decay == (".*/bias",)
    config = config_of.get_config("table=vtab,method=ssf,task=dtd,recipe=paper")
    assert "batch_size" not in config and not {"name", "base_batch_size", "no_decay"} & set(config.optimizer)
    config.sweep.changes.ssf.batch_size = 32
    assert plan.final(config, *plan.cells(config), Point(1e-3, 5e-5), folder).config.batch_size == 32


def test_recipes_of_several_papers_in_one_sweep(folder):
    """A field that one recipe sets is in the runs of the others as before."""
    config = config_of.get_config("table=vtab,method=ep+ssf,task=dtd,recipe=paper")
    units = [plan.final(config, cell, plan.points(config, cell)[0], folder) for cell in plan.cells(config)]
    for unit in units:
        check(unit.config)
    facts = [(unit.config.optimizer.name, unit.config.batch_size, unit.config.epochs) for unit in units]
    assert facts == [("lars", 32, 90), ("adamw", 64, 100)]


def test_a_method_without_a_recipe_of_its_own_is_refused():
    with pytest.raises(InputError, match="With recipe=paper, the config argument method is 'lora'; it must be one of"):
        config_of.get_config("table=vtab,method=lora,recipe=paper")
    with pytest.raises(InputError, match="The config argument recipe is 'fixd'; .*the nearest is 'fixed'"):
        config_of.get_config("table=vtab,recipe=fixd")
    with pytest.raises(InputError, match="The config argument recipe is for table=vtab; a sweep of fgvc has one recipe"):
        config_of.get_config("table=fgvc,recipe=fixed")


def test_a_sweep_with_another_recipe_needs_another_folder(folder):
    for text in ("table=vtab,task=dtd", "table=vtab,task=svhn"):
        plan.claim(config_of.get_config(text), folder)
    assert plan.opened(folder) == {"table": "vtab", "backbone": "vit_b16_in1k", "recipe": "toast"}
    with pytest.raises(InputError, match="is a sweep with recipe=toast, not fixed; give another --workdir"):
        plan.claim(config_of.get_config("table=vtab,recipe=fixed"), folder)


def test_a_sweep_and_a_run_need_folders_of_their_own(runs, folder):
    (folder.parent / "run").mkdir()
    (folder.parent / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"/run is the folder of a run, and a sweep needs one of its own; give another --work"):
        plan.claim(small(), folder.parent / "run")
    assert not (folder.parent / "run" / plan.FILE).exists()
    plan.claim(small(), folder)
    plan.claim(small(), folder)
    with pytest.raises(InputError, match=r"/sweep is the folder of a sweep, and a run needs one of its own; give another"):
        loop.fit(fgvc.get_config("dataset=cub"), folder)


def test_names_can_be_read(folder):
    config = config_of.get_config("table=vtab,method=toast")
    names = [unit.name for unit in plan.selection(config, Cell("toast", "dtd"), folder).values()]
    assert names[0] == "toast/dtd/selection/lr_1.0_wd_0.01" and names[-2] == "toast/dtd/selection/lr_0.01_wd_0.0001"
    final = plan.final(config, Cell("toast", "dtd"), Point(0.1, 0.0), folder)
    assert final.folders[800] == folder / "toast/dtd/final/seed_800"


@pytest.mark.parametrize("recipe", ["paper", "fixed"])
def test_run_of_another_recipe_is_that_of_the_single_config(recipe, folder):
    config = config_of.get_config(f"table=vtab,method=ssf,task=svhn,recipe={recipe}")
    single = vtab.get_config(f"task=svhn,method=ssf,split=final,recipe={recipe}")
    single.seed = config.sweep.seeds[0]
    point = Point(single.optimizer.lr, single.optimizer.weight_decay)
    unit = plan.final(config, Cell("ssf", "svhn"), point, folder)
    assert point in plan.points(config, Cell("ssf", "svhn"))
    assert {**unit.config.to_dict(), "name": single.name} == single.to_dict()


@pytest.mark.parametrize("phase", ["selection", "final"])
def test_run_is_that_of_the_single_config(phase, folder):
    config = config_of.get_config("table=vtab,method=lora+toast,task=kitti+svhn,backbone=vit_b16_in21k")
    config.data.root, config.top_down, config.epochs = "elsewhere", "top_down.pth", 7
    for method in ("lora", "toast"):
        single = vtab.get_config(f"task=svhn,method={method},backbone=vit_b16_in21k,split={phase}")
        single.data.root, single.epochs, single.optimizer.lr, single.optimizer.weight_decay = "elsewhere", 7, 0.1, 0.0
        single.top_down = "top_down.pth" if method == "toast" else ""
        cell, point = Cell(method, "svhn"), Point(0.1, 0.0)
        unit = plan.final(config, cell, point, folder) if phase == "final" else None
        ours = (unit or next(iter(_selection_at(config, cell, point, folder)))).config
        assert {**ours.to_dict(), "name": single.name} == single.to_dict()


def test_every_method_starts_from_its_own_module_file(folder):
    config = config_of.get_config("table=fgvc,method=linear+lora+toast,task=cub")
    config.module = "runs/pre/{method}/module.safetensors"
    files = [plan.final(config, Cell(m, "cub"), Point(0.1, 0.0), folder).config.module for m in ("linear", "lora", "toast")]
    assert files == ["", "runs/pre/lora/module.safetensors", "runs/pre/toast/module.safetensors"]


def _selection_at(config, cell, point, folder):
    config.sweep.grid[cell.method].lr = (point.lr, 9.0)
    config.sweep.grid[cell.method].weight_decay = (point.weight_decay,)
    return plan.selection(config, cell, folder).values()


@pytest.mark.parametrize("dataset", paper_recipes.FGVC)
def test_fgvc_is_the_recipe_of_the_set(dataset, folder):
    config = config_of.get_config("table=fgvc,method=all")
    assert len(plan.cells(config)) == 5 * 13
    cell = Cell("linear", dataset)
    (point,) = plan.points(config, cell)
    assert plan.selection(config, cell, folder) == {}
    ours, single = plan.final(config, cell, point, folder), fgvc.get_config(f"dataset={dataset},method=linear")
    assert {**ours.config.to_dict(), "name": single.name} == single.to_dict()
    assert tuple(ours.folders) == (42, 44, 82, 100, 800)


def test_shots_are_an_axis(folder):
    text = "table=fewshot,method=linear+lora,task=birds+cars,shots=all+16+1,backbone=vit_ti16"
    config = config_of.get_config(text)
    config.data.root, config.data.image_size = "data", 96
    everything = plan.cells(config)
    names = ("1shot", "16shot", "all")
    assert [str(cell) for cell in everything] == [
        f"{method}/{task}_{name}" for method in ("linear", "lora") for task in ("birds", "cars") for name in names
    ]
    assert [[point.lr for point in plan.points(config, cell)] for cell in (everything[0], everything[-1])] == [
        [50.0, 10.0, 2.5, 0.5, 0.1],
        [1.0, 0.25, 0.05, 0.01],
    ]
    point = Point(0.25, 1e-3)
    for name, shots, batch_size in zip(names, (1, 16, 0), (8, 32, 32), strict=True):
        cell = Cell("lora", f"cars_{name}")
        unit = plan.final(config, cell, point, folder)
        run = unit.config
        assert (run.data.root, run.data.shots, run.batch_size, run.data.image_size) == ("data/cars", shots, batch_size, 96)
        assert (run.data.splits.val, run.data.splits.test, run.optimizer.lr) == ("", "test", 0.25)
        assert unit.folders[42] == folder / f"lora/cars_{name}/final/seed_42"
        assert unit.names["batch_size"] == f"sweep.recipes.cars_{name}.batch_size"
        selection = plan.selection(config, cell, folder)[point].config
        assert (selection.data.splits.val, selection.data.splits.test) == ("val", "")


def test_a_root_of_ones_own(folder):
    config = config_of.get_config("table=fgvc,task=cub+cars")
    config.data.root, config.sweep.recipes.cars.data.root = "/data", "/elsewhere/cars"
    roots = [plan.final(config, Cell("toast", name), Point(1.0, 0.0), folder).config.data.root for name in ("cub", "cars")]
    assert roots == ["/data/cub", "/elsewhere/cars"]


def test_selection_sees_no_test_image(folder):
    for table in ("vtab", "fgvc"):
        config = config_of.get_config(f"table={table}")
        config.sweep.grid.toast.lr = (0.1, 0.2)
        for cell in plan.cells(config):
            assert all(not one.config.data.splits.test for one in plan.selection(config, cell, folder).values())


@pytest.mark.parametrize("n", [1, 3, 7, 200])
def test_shards_are_disjoint_and_complete(n):
    everything = plan.cells(config_of.get_config("table=vtab,method=all"))
    shares = [plan.shard(everything, f"{i}/{n}") for i in range(n)]
    assert sorted(sum(shares, []), key=str) == sorted(everything, key=str)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["8/8", "1", "-1/2", "a/b", "0/0"])
def test_no_such_shard(text):
    with pytest.raises(InputError, match=re.escape(f"config.sweep.shard is {text!r}; write i/n, i being one of 0 to n - 1.")):
        plan.shard([], text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("table=imagenet", "The config argument table is 'imagenet'; it must be one of vtab, fgvc, fewshot"),
        ("method=toast+lore", r"The config argument method is 'lore'; .* \(the nearest is 'lora'\)"),
        ("task=cifar", "The config argument task is 'cifar'; it must be one of cifar100"),
        ("table=fgvc,task=dtd", "The config argument task is 'dtd'; it must be one of cub, nabirds"),
        ("table=fewshot", "The config argument task is 'all'; for table=fewshot name folders of data.root, joined by"),
        ("table=fewshot,task=a/b", "The config argument task is 'a/b'; for table=fewshot name folders"),
        (
            "table=fewshot,task=cub,shots=1+0",
            "The config argument shots is '0'; write numbers of images of each class from 1 on",
        ),
        ("table=fewshot,task=cub,shots=few", "The config argument shots is 'few'; write numbers of images of each class"),
        ("table=fgvc,shots=4", "The config argument shots is for table=fewshot; fgvc has training splits of its own"),
    ],
)
def test_unknown_names(text, message):
    with pytest.raises(InputError, match=message):
        config_of.get_config(text)


def test_fields_that_do_not_fit(folder):
    config = small()
    config.sweep.tasks = ("cifar100", "svhn")
    with pytest.raises(InputError, match="config.sweep.tasks is 'svhn'; it must be one of cifar100, dtd"):
        plan.cells(config)
    config = small()
    for wrong in ("0.1,nan", float("nan")):
        config.sweep.grid.toast.lr = (0.1, wrong)
        with pytest.raises(InputError, match=f"config.sweep.grid.toast.lr has {wrong!r}; give numbers, as in 0.1,0.5"):
            plan.points(config, Cell("toast", "dtd"))
    config.sweep.grid.toast.lr = ()
    with pytest.raises(InputError, match="config.sweep.grid.toast.lr is empty; give at least one value"):
        plan.points(config, Cell("toast", "dtd"))
    config.sweep.update({"seeds": (), "at_once": -1})
    message = r"(?s)2 mistakes:\n  config.sweep.seeds is \(\); give 1 or more.*config.sweep.at_once is -1; it has to be a whole"
    with pytest.raises(InputError, match=message):
        plan.cells(config)


# What is selected


def test_best_point_and_ties():
    high, low = Point(0.5, 0.01), Point(0.1, 0.01)
    assert plan.best({high: 0.8, low: 0.7}) == high
    assert plan.best({high: 0.8, low: 0.8}) == plan.best({low: 0.8, high: 0.8}) == low
    less = Point(0.1, 0.001)
    assert plan.best({low: 0.8, less: 0.8, high: 0.8}) == plan.best({less: 0.8, low: 0.8}) == less
    assert plan.best({high: math.nan, low: 0.1, less: None}) == low
    assert plan.best({high: math.nan, low: None}) is plan.best({}) is None


def test_selected_point_is_run_with_every_seed(runs, folder):
    runs.score = lambda config: 0.9 if (config.optimizer.lr, config.optimizer.weight_decay) == (1.0, 0.0) else 0.3
    task.run(small(), str(folder))
    assert len(runs.made) == 2 * (4 + 2)
    result = json.loads((folder / "toast/dtd/final/seed_2/result.json").read_text())
    assert (result["config"]["optimizer"]["lr"], result["config"]["optimizer"]["weight_decay"]) == (1.0, 0.0)
    assert result["config"]["data"]["splits"] == {"train": "train800val200", "val": "", "test": "test"}
    saved = json.loads((folder / "toast/dtd/selected.json").read_text())
    assert saved["selected"] == {"lr": 1.0, "weight_decay": 0.0} and len(saved["grid"]) == 4
    selection = json.loads((folder / "toast/dtd/selection/lr_0.1_wd_0.01/config.json").read_text())
    assert selection["data"]["splits"]["test"] == "" and selection["seed"] == 1


def test_selection_leaves_no_checkpoints_and_final_runs_do(runs, folder):
    task.run(small(), str(folder))
    assert not list(folder.glob("*/*/selection/*/checkpoints")) and len(list(folder.glob("*/*/final/*/checkpoints"))) == 4


def test_diverged_point_is_never_taken_and_never_tried_again(runs, folder):
    name = "toast/cifar100/selection/lr_1.0_wd_0.01"
    runs.raises[name] = [Diverged("The loss is nan.")]
    task.run(small(), str(folder))
    assert runs.made.count(name) == 1
    saved = json.loads((folder / "toast/cifar100/selected.json").read_text())
    assert saved["grid"][0] == {"lr": 1.0, "weight_decay": 0.01, "val_accuracy": None}
    assert saved["selected"] == {"lr": 0.1, "weight_decay": 0.0}
    task.run(small(), str(folder))
    assert runs.made.count(name) == 1


def test_all_points_diverge(runs, folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    for lr in (1.0, 0.1):
        for wd in (0.01, 0.0):
            runs.raises[f"toast/cifar100/selection/lr_{lr}_wd_{wd}"] = [Diverged("The loss is nan.")]
    assert "Not done: toast/cifar100/selection" in failure(small(), folder)
    assert "give lower rates in sweep.grid.toast.lr" in caplog.text
    assert (folder / "toast/dtd/final/seed_2/result.json").exists()


# What goes wrong


def test_crash_is_tried_once_more(runs, folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    name = "toast/dtd/selection/lr_0.1_wd_0.0"
    runs.raises[name] = [RuntimeError("out of memory\nand more")]
    task.run(small(), str(folder))
    assert runs.made.count(name) == 2 and f"{name}: RuntimeError: out of memory; retrying." in caplog.text
    assert "Traceback" in (folder / name / "log.txt").read_text()


def test_second_crash_is_reported_and_others_go_on(runs, folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    name = "toast/cifar100/selection/lr_0.1_wd_0.0"
    runs.raises[name] = [RuntimeError("first"), RuntimeError("second")]
    error = failure(small(), folder)
    assert error.startswith(f"Not done: {name}, toast/cifar100/final; mend or await")
    assert f"{name} is not done: RuntimeError: second." in caplog.text
    assert "toast/cifar100/final waits for 1 runs of its selection" in caplog.text
    assert (folder / "toast/dtd/final/seed_2/result.json").exists() and not (folder / "toast/cifar100/final").exists()
    runs.made.clear()
    task.run(small(), str(folder))
    assert runs.made == [name, "toast/cifar100/final/seed_1", "toast/cifar100/final/seed_2"]


def test_user_error_is_not_tried_again(runs, folder):
    name = "toast/dtd/selection/lr_0.1_wd_0.0"
    runs.raises[name] = [InputError("Image 7 is broken.")]
    assert f"Not done: {name}" in failure(small(), folder)
    assert runs.made.count(name) == 1 and not (folder / name / "diverged.json").exists()


def test_one_seed_that_fails_does_not_keep_the_others(runs, folder):
    name = "toast/dtd/final/seed_1"
    runs.raises[name] = [Diverged("The loss is nan."), Diverged("The loss is nan.")]
    assert f"Not done: {name};" in failure(small(), folder)
    assert (folder / "toast/dtd/final/seed_2/result.json").exists()


def test_stopped_and_killed_sweeps_end_alike(runs, folder, tmp_path):
    runs.score = lambda config: (hash((config.optimizer.lr, config.data.name)) % 97) / 97
    task.run(small(), str(tmp_path / "whole/sweep"))
    whole = list(runs.made)
    runs.made.clear()
    first, second = "toast/cifar100/selection/lr_0.1_wd_0.01", "toast/dtd/final/seed_2"
    runs.raises = {first: [Interrupted("Stopped after step 2.")], second: [KeyboardInterrupt()]}
    with pytest.raises(Interrupted, match="Stopped after step 2"):
        task.run(small(), str(folder))
    assert not list(folder.rglob("lock"))
    with pytest.raises(Interrupted, match=f"Stopped; finished runs are kept in {folder}"):
        task.run(small(), str(folder))
    task.run(small(), str(folder))
    assert sorted(runs.made) == sorted([*whole, first, second])
    for path in (tmp_path / "whole/sweep").rglob("*.json"):
        assert path.read_text() == (folder / path.relative_to(tmp_path / "whole/sweep")).read_text()


def test_ctrl_c_while_a_run_ends_stops_before_the_next(runs, folder):
    """A run that is past its last step ends as ever."""
    runs.score = lambda config: signal.raise_signal(signal.SIGINT) or 0.5
    with pytest.raises(Interrupted, match="Stopped before toast/cifar100/selection/lr_1.0_wd_0.0; what is finished is kept."):
        task.run(small(), str(folder))
    assert runs.made == ["toast/cifar100/selection/lr_1.0_wd_0.01"] and not list(folder.rglob("lock"))


def test_run_that_another_process_is_at_is_left_to_it(runs, folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    lock = folder / "toast/cifar100/selection/lr_1.0_wd_0.01/lock"
    with held_elsewhere(lock) as pid:
        error = failure(small(), folder)
    assert "lr_1.0_wd_0.01, toast/cifar100/final; mend or await what is said above" in error
    assert f"process {pid} on {socket.gethostname()} is at it." in caplog.text
    assert not any("lr_1.0_wd_0.01" in name and "cifar100" in name for name in runs.made)
    task.run(small(), str(folder))


def test_run_that_another_process_finishes_while_we_wait_for_the_lock(runs, folder, monkeypatch):
    """Between looking at a run and getting its lock."""
    real, name = task.locks.lock, "toast/cifar100/selection/lr_1.0_wd_0.01"

    def late(path):
        if runs.made:
            return real(path)
        unit = next(iter(plan.selection(small(), Cell("toast", "cifar100"), folder).values()))
        runs(unit.config, unit.folders)
        return real(path)

    monkeypatch.setattr(task.locks, "lock", late)
    task.run(small(), str(folder))
    assert runs.asked.count(name) == runs.made.count(name) == 1


def test_shards_share_a_folder(runs, folder):
    for i in range(2):
        config = small()
        config.sweep.shard = f"{i}/2"
        task.run(config, str(folder))
    assert len(runs.made) == len(set(runs.made)) == 2 * (4 + 2)
    config.sweep.shard = "5/7"
    task.run(config, str(folder))  # nothing to do


def test_folder_of_another_sweep(runs, folder):
    task.run(small(), str(folder))
    error = failure(small("table=fgvc,task=cub"), folder)
    assert f"{folder} is a sweep of vtab with vit_b16_in1k, not of fgvc with vit_b16_in1k; give another --workdir" in error
    changed, before = small(), len(runs.made)
    changed.epochs = 7
    assert "selection/lr_1.0_wd_0.01 holds a run of another config (epochs 100 -> 7)" in failure(changed, folder)
    assert len(runs.made) == before


def test_console_has_a_line_for_each_run(runs, folder, caplog, capsys):
    console = logging.StreamHandler()
    log = logging.getLogger("toast_jax")
    log.addHandler(console)
    log.setLevel(logging.INFO)
    try:
        task.run(small("task=dtd"), str(folder))
    finally:
        log.removeHandler(console)
        log.setLevel(logging.NOTSET)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines[1:-1]] == ["1/4", "2/4", "3/4", "4/4", "final"]
    assert lines[1] == "1/4  toast/dtd/selection/lr_1.0_wd_0.01: val accuracy 0.5000"
    assert lines[5] == "final  toast/dtd/final: test accuracy 0.5000, 0.5000, mean 0.5000"
    assert "told by a run" in (folder / "toast/dtd/selection/lr_1.0_wd_0.01/log.txt").read_text()


# Runs that train together


@pytest.fixture
def grids(runs, monkeypatch):
    """The sizes of the groups that were asked for, and what the next ones raise or do not return."""
    asked = []

    def fit_grid(configs, folders, folder, at_once):
        asked.append(len(configs))
        if isinstance(fault := grids.faults.pop(0) if grids.faults else None, Exception):
            raise fault
        for config, path in zip(configs, folders, strict=True):
            if path.name != fault:
                runs(config, {config.seed: path})
            else:
                (path / "config.json").write_text(json.dumps(config.to_dict()))
        (folder / "checkpoints/1").mkdir(parents=True)
        return [Diverged("The loss is nan.") if path.name == fault else {} for path in folders]

    def grids():
        return asked

    grids.faults = []
    monkeypatch.setattr(task, "fit_grid", fit_grid)
    return grids


def test_a_grid_is_one_program(grids, runs, folder):
    task.run(small(together=0), str(folder))
    assert grids() == [4, 4] and len(runs.made) == 2 * (4 + 2)
    assert not list(folder.glob("*/*/selection/*/checkpoints")) and len(list(folder.glob("*/*/selection/*/result.json"))) == 8
    assert len(list(folder.glob("*/*/selection/together_*/log.txt"))) == 2
    assert not list(folder.glob("*/*/selection/*/lock"))
    task.run(small(together=0), str(folder))
    assert grids() == [4, 4]


def test_points_of_segmentation_are_trained_one_by_one(grids, runs, folder):
    """Together, they would fail at their first evaluation."""
    config = config_of.get_config("table=segmentation,method=toast,task=voc,backbone=vit_s16")
    config.sweep.seeds, config.sweep.grid.toast.lr, config.sweep.together = (1,), (1e-3, 1e-4), 0
    task.run(config, str(folder))
    assert grids() == [] and len(runs.made) == 2 + 1


def test_groups_of_a_size_of_ones_own(grids, folder):
    task.run(small("task=dtd", together=3), str(folder))
    assert grids() == [3]  # the one that is left is a run like any other
    with pytest.raises(InputError, match="config.sweep.together is -1; it has to be a whole number, 0 or more"):
        task.run(small(together=-1), str(folder))


def test_only_what_is_not_done_trains_together(grids, runs, folder):
    unit = next(iter(plan.selection(small(), Cell("toast", "dtd"), folder).values()))
    runs(unit.config, unit.folders)
    task.run(small("task=dtd", together=0), str(folder))
    assert grids() == [3] and runs.made.count("toast/dtd/selection/lr_1.0_wd_0.01") == 1


def test_a_group_that_crashes_is_run_one_by_one(grids, runs, folder, caplog):
    caplog.set_level("INFO", "toast_jax")
    grids.faults.append(RuntimeError("out of memory"))
    task.run(small("task=dtd", together=0), str(folder))
    assert grids() == [4] and len(runs.made) == 4 + 2
    assert "4 runs of" in caplog.text and "together: RuntimeError: out of memory; now one by one." in caplog.text


def test_a_group_that_crashes_keeps_its_checkpoints_until_its_runs_are_done(grids, runs, folder, monkeypatch):
    """On a full disk, the single runs fail too, and the same command goes on with the group."""
    fit_grid, kept = task.fit_grid, []

    def full(configs, folders, folder, at_once):
        kept.append(folder / "checkpoints/1")
        if kept[-1].exists():
            return fit_grid(configs, folders, folder.parent / "elsewhere", at_once)
        kept[-1].mkdir(parents=True)
        raise InputError("checkpoints cannot be written: free some space.")

    monkeypatch.setattr(task, "fit_grid", full)
    for unit in plan.selection(small(), Cell("toast", "dtd"), folder).values():
        runs.raises[unit.name] = [InputError("config.json cannot be written: free some space.")]
    assert "Not done: toast/dtd/selection/lr_1.0_wd_0.01" in failure(small("task=dtd", together=0), folder)
    assert kept[0].exists()
    task.run(small("task=dtd", together=0), str(folder))
    assert len(kept) == 2 and grids() == [4] and not kept[0].exists()
    assert not list(folder.glob("toast/dtd/selection/together_*/checkpoints"))


def test_a_member_that_diverges_is_not_taken(grids, runs, folder):
    grids.faults.append("lr_0.1_wd_0.0")
    runs.score = lambda config: 1.0 - config.optimizer.lr
    task.run(small("task=dtd", together=0), str(folder))
    assert grids() == [4] and "toast/dtd/selection/lr_0.1_wd_0.0" not in runs.made
    saved = json.loads((folder / "toast/dtd/selected.json").read_text())
    assert saved["selected"] == {"lr": 0.1, "weight_decay": 0.01}


def test_a_group_that_is_stopped_stops_the_sweep(grids, runs, folder):
    grids.faults.append(Interrupted("Stopped after step 7."))
    with pytest.raises(Interrupted, match="step 7"):
        task.run(small(together=0), str(folder))
    assert not runs.made and not list(folder.glob("*/*/selection/*/lock"))


def test_what_another_process_is_at_is_not_in_the_group(grids, runs, folder):
    lock = folder / "toast/dtd/selection/lr_1.0_wd_0.0/lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert "Not done: toast/dtd/selection/lr_1.0_wd_0.0, toast/dtd/final" in failure(small("task=dtd", together=0), folder)
    assert grids() == [3] and len(runs.made) == 3


def test_a_batch_larger_than_a_task_is_reported_before_the_first_run(folder, tmp_path, monkeypatch):
    made_up = Runs()
    monkeypatch.setattr(task, "fit_seeds", made_up)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / f"birds/{split}/{name}").mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / f"birds/{split}/{name}/1.png")
    config = config_of.get_config("table=fewshot,method=linear,task=birds,shots=1,backbone=vit_ti16")
    config.data.root, config.data.format = str(tmp_path), "folder"
    error = failure(config, folder)
    assert "birds_1shot: The training data has 2 examples, fewer than one batch of 8: set" in error
    assert "--config.sweep.recipes.birds_1shot.batch_size=2 or less." in error and not made_up.made


@pytest.mark.parametrize("gone", ["val", "test"])
def test_a_split_that_only_a_later_run_reads_is_reported_before_the_first_run(gone, folder, tmp_path, monkeypatch):
    """The test split was missed after all runs of a selection."""
    made_up = Runs()
    monkeypatch.setattr(task, "fit_seeds", made_up)
    for split in {"train", "val", "test"} - {gone}:
        for name in ("a", "b"):
            (tmp_path / f"birds/{split}/{name}").mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (4, 4)).save(tmp_path / f"birds/{split}/{name}/{i}.png")
    config = config_of.get_config("table=fewshot,method=linear,task=birds,shots=4,backbone=vit_ti16")
    config.data.root, config.data.format, config.batch_size = str(tmp_path), "folder", 8
    config.sweep.recipes.birds_4shot.batch_size = 8
    error = failure(config, folder)
    assert f"birds_4shot: Folder {tmp_path}/birds/{gone} does not exist" in error and not made_up.made


def test_data_without_a_test_split_is_reported_before_the_first_run(folder, tmp_path, monkeypatch):
    """Each run of the table asked its result for the test split, after it had trained."""
    made_up = Runs()
    monkeypatch.setattr(task, "fit_seeds", made_up)
    for name in ("a", "b"):
        (tmp_path / f"birds/{name}").mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (4, 4)).save(tmp_path / f"birds/{name}/{i}.png")
    config = config_of.get_config("table=fewshot,method=linear,task=birds,shots=4,backbone=vit_ti16")
    config.data.update({"root": str(tmp_path), "format": "folder", "held_out": 0.25})
    config.sweep.recipes.birds_4shot.batch_size = 8
    told = f"birds_4shot: The data in {tmp_path}/birds has no test split, only the train and val of --config.data.held_out: "
    error = failure(config, folder)
    assert told in error and "in folders train and test, or give a table a column split." in error and not made_up.made
    config.sweep.splits.final.test = ""
    assert failure(config, folder) == "config.sweep.splits.final.test is '', but the table reports its score; name a split."
    assert not made_up.made


def test_tasks_that_cannot_be_read_are_named_before_the_first_run(folder, tmp_path, monkeypatch):
    made_up = Runs()
    monkeypatch.setattr(task, "fit_seeds", made_up)
    config = small()
    config.data.root = str(tmp_path / "none")
    error = failure(config, folder)
    assert error.startswith("2 tasks cannot be read; mend them or leave them out by task=NAME+NAME:")
    assert f"`python main.py --config=configs/prepare.py:task=dtd --config.root={tmp_path}/none`" in error and not made_up.made
