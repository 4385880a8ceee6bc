"""A sweep: which runs a table is made of, where each of them is, and which point of the grid is selected. Trains nothing."""

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
from toast_jax.model.methods import METHODS
from toast_jax.workdir import run_folder

FILE = "sweep.json"  # in the folder of every sweep


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one task: a number of the table."""

    method: str
    task: str

    def __str__(self):
        return f"{self.method}/{self.task}"


@dataclasses.dataclass(frozen=True)
class Point:
    """Of the grid."""

    lr: float
    weight_decay: float

    def __str__(self):
        return f"lr_{self.lr}_wd_{self.weight_decay}"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Runs that one process makes in a row, as they share all but the seed.

    Attributes:
      name: such as toast/cifar100/selection/lr_0.5_wd_0.001.
      config: of the run; its seed is the first.
      folder: of the unit.
      folders: of its runs, by seed.
    """

    name: str
    config: ConfigDict
    folder: Path
    folders: dict[int, Path]

    def results(self) -> list[dict] | None:
        """The results of all runs, or None while one is missing.

        Raises:
          InputError: a folder holds a run of another config.
        """
        found = [
            run_folder.recorded(folder, config) for folder, config in zip(self.folders.values(), self._configs(), strict=True)
        ]
        return None if None in found else found

    def _configs(self):
        for seed in self.folders:
            config = self.config.copy_and_resolve_references()
            config.seed = seed
            yield config


def cells(config: ConfigDict) -> list[Cell]:
    """All methods by all tasks, in the order of the config.

    Raises:
      InputError: the config has no grid for a method or no recipe for a task, or a field of the sweep is out of range.
    """
    check_fields(config)
    for method in config.sweep.methods:
        choose("config.sweep.methods", method, config.sweep.grid)
    for task in config.sweep.tasks:
        choose("config.sweep.tasks", task, config.sweep.recipes)
    return [Cell(method, task) for method in config.sweep.methods for task in config.sweep.tasks]


def shard(everything: Sequence[Cell], text: str) -> list[Cell]:
    """The share `i/n` of the cells: each n-th, from the i-th on. Selection and seeds of a cell are in the same share.

    Raises:
      InputError: it is not of that form, or there is no such share.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"config.sweep.shard is {text!r}; write i/n, i being one of 0 to n - 1.")
    return list(everything[int(match[1]) :: int(match[2])])


def points(config: ConfigDict, cell: Cell) -> list[Point]:
    """The grid of a method; where it names no value, the one of the task's recipe is taken.

    Raises:
      InputError: neither names one.
    """
    grid, recipe = config.sweep.grid[cell.method], config.sweep.recipes[cell.task].get("optimizer", {})
    axes = [tuple(grid[name]) or tuple([recipe[name]] if name in recipe else []) for name in ("lr", "weight_decay")]
    for name, axis in zip(("lr", "weight_decay"), axes, strict=True):
        if not axis:
            raise InputError(f"config.sweep.grid.{cell.method}.{name} is empty; give at least one value.")
    return [Point(float(lr), float(weight_decay)) for lr, weight_decay in itertools.product(*axes)]


def selection(config: ConfigDict, cell: Cell, folder: Path) -> dict[Point, Unit]:
    """A run for each point of the grid, with the first seed, that sees no test image; none if there is nothing to select."""
    grid = points(config, cell)
    if len(grid) == 1:
        return {}
    seeds = tuple(config.sweep.seeds)[:1]
    return {point: _unit(config, cell, "selection", point, folder, f"selection/{point}", seeds) for point in grid}


def folder_of_all(units: Sequence[Unit]) -> Path:
    """What runs of a selection that train together share; other runs share another one."""
    names = "\n".join(unit.name for unit in units)
    return units[0].folder.parent / f"together_{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def final(config: ConfigDict, cell: Cell, point: Point, folder: Path) -> Unit:
    """The runs that are tested, one for each seed, with the point that was selected."""
    return _unit(config, cell, "final", point, folder, "final", tuple(config.sweep.seeds))


def best(scores: Mapping[Point, float | None]) -> Point | None:
    """The point with the highest score; ties go to the smaller learning rate, then to the smaller weight decay.

    A point without a finite score, whose run has diverged, is never taken; None if there is no other.
    """
    able = [
        (-score, point.lr, point.weight_decay) for point, score in scores.items() if score is not None and math.isfinite(score)
    ]
    return Point(*min(able)[1:]) if able else None


def claim(config: ConfigDict, path: str | Path) -> Path:
    """Creates the folder of a sweep, or checks that it is of the same table and backbone, which is all that its runs share.

    Raises:
      InputError: it cannot be written or is another sweep's.
    """
    folder = run_folder.writable(path)
    ours = {"table": config.sweep.table, "backbone": config.sweep.backbone}
    if (folder / FILE).exists() and (theirs := opened(folder)) != ours:
        raise InputError(
            f"{folder} is a sweep of {theirs['table']} with {theirs['backbone']}, not of {ours['table']} with "
            f"{ours['backbone']}; give another --workdir."
        )
    run_folder.write_json(folder / FILE, ours)
    return folder


def opened(folder: str | Path) -> dict[str, str]:
    """Table and backbone of a sweep.

    Raises:
      InputError: the folder is no sweep.
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
    return Unit(f"{cell}/{place}", run, unit, folders)


def _run_config(config, cell, phase, point, seed) -> ConfigDict:
    """The config of one run, the same as of a single one by configs/vtab.py or configs/fgvc.py but for its name."""
    run = config.copy_and_resolve_references()
    changes = config.sweep.recipes[cell.task].to_dict()
    if root := changes["data"].get("root"):
        changes["data"]["root"] = os.path.join(config.data.root, root)
    with run.unlocked():
        del run["sweep"]
        run.name = f"{config.name}_{cell.task}_{cell.method}_{phase}"
        run.update({"task": "train", "method": cell.method, "seed": seed})
        run.update({"resume": True, "checkpoint": "", "confusion": False})
        run.data.update({"name": "", "image_dir": run.data.get("image_dir", ""), **changes["data"]})
        run.data.splits = ConfigDict(config.sweep.splits[phase].to_dict())
        run.optimizer.update({"lr": point.lr, "weight_decay": point.weight_decay})
        if METHODS[cell.method].signal != "top_down":
            run.top_down = ""
    return run
