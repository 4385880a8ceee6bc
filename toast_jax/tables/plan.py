"""Plan a sweep: the runs of a table, their folders, and how a grid point is selected. Trains nothing."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax.config.check import check_fields
from toast_jax.errors import InputError, choose
from toast_jax.fields import flat_fields
from toast_jax.model.methods import METHODS
from toast_jax.workdir import run_folder

FILE = run_folder.SWEEP


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one task: one entry of the table."""

    method: str
    task: str

    def __str__(self):
        return f"{self.method}/{self.task}"


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the grid of hyperparameters."""

    lr: float
    weight_decay: float

    def __str__(self):
        return f"lr_{self.lr}_wd_{self.weight_decay}"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Runs that differ in the seed only; one process trains them one after the other.

    Attributes:
      name: such as toast/cifar100/selection/lr_0.5_wd_0.001.
      config: of the run with the first seed.
      folder: of the unit.
      folders: of its runs, by seed.
      names: names in the sweep of fields that it sets for its runs, for `errors.renaming`.
    """

    name: str
    config: ConfigDict
    folder: Path
    folders: dict[int, Path]
    names: dict[str, str]

    def results(self) -> list[dict] | None:
        """Read the results of all runs; None if one is missing.

        Raises:
          InputError: a folder holds a run of another config.
        """
        results, config = [], self.config.copy_and_resolve_references()
        for seed, folder in self.folders.items():
            config.seed = seed
            if not (result := run_folder.recorded(folder, config)):
                return None
            results.append(result)
        return results


def cells(config: ConfigDict) -> list[Cell]:
    """List all pairs of method and task, in the order of the config.

    Raises:
      InputError: the config has no grid for a method or no recipe for a task, or a field of the sweep is out of range.
    """
    check_fields(config)
    for method in config.sweep.methods:
        choose("config.sweep.methods", method, config.sweep.grid)
    for task in config.sweep.tasks:
        choose("config.sweep.tasks", task, config.sweep.recipes)
    return [Cell(method, task) for method in config.sweep.methods for task in config.sweep.tasks]


def shard(cells: Sequence[Cell], text: str) -> list[Cell]:
    """Return shard `i/n` of the cells: every n-th, from index i. Selection and seeds of a cell stay together.

    Raises:
      InputError: `text` does not have this form, or i is not less than n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"config.sweep.shard is {text!r}; write i/n, i being one of 0 to n - 1.")
    return list(cells[int(match[1]) :: int(match[2])])


def points(config: ConfigDict, cell: Cell) -> list[Point]:
    """List the grid of a method; an axis without values takes the value of the task's recipe.

    Raises:
      InputError: the recipe does not set it either, or a value is no finite number.
    """
    grid, recipe = config.sweep.grid[cell.method], config.sweep.recipes[cell.task].get("optimizer", {})
    axes = [tuple(grid[name]) or tuple([recipe[name]] if name in recipe else []) for name in ("lr", "weight_decay")]
    for name, axis in zip(("lr", "weight_decay"), axes, strict=True):
        if not axis:
            raise InputError(f"config.sweep.grid.{cell.method}.{name} is empty; give at least one value.")
        if wrong := [value for value in axis if not (isinstance(value, (int, float)) and math.isfinite(value))]:
            raise InputError(f"config.sweep.grid.{cell.method}.{name} has {wrong[0]!r}; give numbers, as in 0.1,0.5.")
    return [Point(float(lr), float(weight_decay)) for lr, weight_decay in itertools.product(*axes)]


def selection(config: ConfigDict, cell: Cell, folder: Path) -> dict[Point, Unit]:
    """Plan a run per grid point, with the first seed and without the test split; empty if the grid has one point."""
    grid = points(config, cell)
    if len(grid) == 1:
        return {}
    seeds = tuple(config.sweep.seeds)[:1]
    return {point: _unit(config, cell, "selection", point, folder, f"selection/{point}", seeds) for point in grid}


def folder_of_all(units: Sequence[Unit]) -> Path:
    """Return the folder for runs that train as one program; each set of runs has its own."""
    names = "\n".join(unit.name for unit in units)
    return units[0].folder.parent / f"together_{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def final(config: ConfigDict, cell: Cell, point: Point, folder: Path) -> Unit:
    """Plan the tested runs of the selected point, one per seed."""
    return _unit(config, cell, "final", point, folder, "final", tuple(config.sweep.seeds))


def best(scores: Mapping[Point, float | None]) -> Point | None:
    """Return the point with the highest score; ties go to the smaller learning rate, then the smaller weight decay.

    Points without a finite score (diverged runs) are skipped; None if no point is left.
    """
    finite = {point: score for point, score in scores.items() if score is not None and math.isfinite(score)}
    return min(finite, key=lambda point: (-finite[point], point.lr, point.weight_decay), default=None)


def score_of(config: Mapping) -> str:
    """Return the name of the score in a table of runs with this config: accuracy, or of segmentation the mIoU."""
    return "mean_iou" if "segmentation" in config else "accuracy"


def claim(config: ConfigDict, path: str | Path) -> Path:
    """Create the folder of a sweep; an existing sweep there must have the same table and backbone.

    Raises:
      InputError: the folder cannot be written, or belongs to another sweep or to a run.
    """
    folder = run_folder.writable(path)
    if (folder / "config.json").exists() and not (folder / FILE).exists():
        raise InputError(f"{folder} is the folder of a run, and a sweep needs one of its own; give another --workdir.")
    facts = {name: config.sweep[name] for name in ("table", "backbone", "recipe") if name in config.sweep}
    saved = opened(folder) if (folder / FILE).exists() else facts
    if any(saved[name] != facts[name] for name in ("table", "backbone")):
        raise InputError(
            f"{folder} is a sweep of {saved['table']} with {saved['backbone']}, not of {facts['table']} with "
            f"{facts['backbone']}; give another --workdir."
        )
    if (recipe := recipe_of(saved)) != recipe_of(facts):
        raise InputError(f"{folder} is a sweep with recipe={recipe}, not {recipe_of(facts)}; give another --workdir.")
    run_folder.write_json(folder / FILE, facts)
    return folder


def recipe_of(facts: Mapping[str, str]) -> str:
    """Return the recipe of a sweep from the facts of `opened`; TOAST's for sweeps of earlier versions."""
    return facts.get("recipe", "toast")


def opened(folder: str | Path) -> dict[str, str]:
    """Read the table and backbone of a sweep, and the recipe of one of VTAB-1k.

    Raises:
      InputError: the folder is not a sweep.
    """
    path = Path(folder).expanduser() / FILE
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is no sweep, as {path} cannot be read ({error}); give the --workdir of a sweep.") from error


def _unit(config, cell, phase, point, folder, place, seeds) -> Unit:
    run = _run_config(config, cell, phase, point, seeds[0])
    unit = folder / str(cell) / place
    folders = {seed: unit / f"seed_{seed}" for seed in seeds} if phase == "final" else {seeds[0]: unit}
    return Unit(f"{cell}/{place}", run, unit, folders, _names(config, cell, phase))


def _names(config, cell, phase) -> dict[str, str]:
    """Map fields that the sweep sets for its runs to their names in the config of the sweep."""
    recipe, grid = f"sweep.recipes.{cell.task}", f"sweep.grid.{cell.method}"
    own_splits = "splits" in config.sweep.recipes[cell.task]
    names = {"method": "sweep.methods", "seed": "sweep.seeds"}
    names["data.splits"] = f"{recipe}.splits.{phase}" if own_splits else f"sweep.splits.{phase}"
    names |= {name: f"{recipe}.{name}" for name in flat_fields(config.sweep.recipes[cell.task].to_dict())}
    changes = config.sweep.get("changes", {}).get(cell.method, ConfigDict()).to_dict()
    names |= {name: f"sweep.changes.{cell.method}.{name}" for name in flat_fields(changes)}
    names |= {f"optimizer.{axis}": f"{grid}.{axis}" for axis, values in config.sweep.grid[cell.method].items() if values}
    return names | {"data.root": "data.root"}  # the recipe's is below it


def _run_config(config, cell, phase, point, seed) -> ConfigDict:
    """Build the config of one run; for a paper's table, only its name differs from a config of configs/vtab.py or fgvc.py."""
    run = config.copy_and_resolve_references()
    changes = config.sweep.recipes[cell.task].to_dict()
    splits = changes.pop("splits", None) or config.sweep.splits.to_dict()
    if root := changes["data"].get("root"):
        changes["data"]["root"] = os.path.join(config.data.root, root)
    with run.unlocked():
        del run["sweep"]
        run.name = f"{config.name}_{cell.task}_{cell.method}_{phase}"
        run.update({"task": "train", "method": cell.method, "seed": seed, "resume": True})
        run.update({name: value for name, value in changes.items() if name not in ("data", "optimizer")})
        if "segmentation" not in run:
            run.update({"checkpoint": "", "confusion": False})
            run.data.update({"name": "", "image_dir": run.data.get("image_dir", "")})
        run.data.update(changes["data"])
        run.data.splits = ConfigDict(splits[phase])
        run.update(config.sweep.get("changes", {}).get(cell.method, ConfigDict()).to_dict())
        run.optimizer.update({"lr": point.lr, "weight_decay": point.weight_decay})
        row = METHODS[cell.method]
        run.module = run.module.replace("{method}", cell.method) if row.pretunes else ""
        if row.signal != "top_down":
            run.top_down = ""
    return run
