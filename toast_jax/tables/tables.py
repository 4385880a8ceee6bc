"""The paper's tables: what sweeps have measured beside what is published. The published numbers are in published.json."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import InputError
from toast_jax.model.methods import METHODS
from toast_jax.tables import plan

NOTHING = "-"
HEADER = ("method", "task", "mean", "std", "seeds", "published", "difference", "tuned_parameters", "hours")
_FGVC = ("cub", "nabirds", "flowers", "dogs", "cars")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One method on one task.

    Attributes:
      accuracy: on test, in percent, one for each seed.
      tuned: parameters without the head.
      hours: of training steps at their median speed, those of the selection included.
    """

    accuracy: tuple[float, ...]
    tuned: int
    hours: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracy)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else None


@dataclasses.dataclass(frozen=True)
class Table:
    """What sweeps have measured and what is published.

    Attributes:
      table, backbone: of the sweeps.
      measured: by method and task; pairs without a result are left out.
      published: an entry of published.json, or one without rows where none is for this table and backbone.
    """

    table: str
    backbone: str
    measured: Mapping[tuple[str, str], Measured]
    published: Mapping

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(TASKS) if self.table == "vtab" else _FGVC

    @property
    def methods(self) -> list[str]:
        """Those that are measured or published."""
        return [
            name for name in METHODS if name in self.published["rows"] or any(name == method for method, _ in self.measured)
        ]

    def ours(self, method: str) -> dict[str, float]:
        return {task: self.measured[method, task].mean for task in self.tasks if (method, task) in self.measured}

    def theirs(self, method: str) -> dict[str, float]:
        return dict(zip(self.published["columns"], self.published["rows"].get(method, ()), strict=False))


def collect(folders: Sequence[str | Path]) -> Table:
    """Reads the results of sweeps, finished or not.

    Raises:
      InputError: a folder is no sweep; they differ in table or backbone; two hold the same runs; a result is damaged.
    """
    if not folders:
        raise InputError("There is no sweep to read; write --config=configs/table.py:from=FOLDER.")
    facts = {str(folder): plan.opened(folder) for folder in folders}
    first = facts[str(folders[0])]
    if other := next((name for name, one in facts.items() if one != first), None):
        raise InputError(
            f"{folders[0]} is a sweep of {first['table']} with {first['backbone']} and {other} one of {facts[other]['table']} "
            f"with {facts[other]['backbone']}; make a table of each."
        )
    measured, where = {}, {}
    for folder in map(str, folders):
        for method, task in ((method, task) for method in METHODS for task in (*TASKS, *_FGVC)):
            if one := _measured(Path(folder).expanduser() / method / task):
                if (method, task) in measured:
                    raise InputError(f"Both {where[method, task]} and {folder} hold {method} on {task}; leave one of them out.")
                measured[method, task], where[method, task] = one, folder
    return Table(first["table"], first["backbone"], measured, _published(**first))


def _published(table: str, backbone: str) -> dict:
    entries = json.loads(Path(__file__).with_name("published.json").read_text())
    nothing = {"source": "", "columns": [], "rows": {}, "tuned": {}, "notes": []}
    return next((one for one in entries if (one["table"], one["backbone"]) == (table, backbone)), nothing)


def _measured(folder: Path) -> Measured | None:
    tested = [_read(path) for path in sorted(folder.glob("final/seed_*/result.json"))]
    if not tested:
        return None
    hours = sum(map(_hours, tested + [_read(path) for path in folder.glob("selection/*/result.json")]))
    accuracy = tuple(100 * one["test"]["accuracy"] for one in tested)
    return Measured(accuracy, tested[0]["tuned_parameters"]["without_head"], hours)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and give the sweep's command again.") from error


def _hours(result: dict) -> float:
    images = result["steps"] * result["config"]["batch_size"]
    return images / result["images_per_second"] / 3600 if result["images_per_second"] else 0.0


def means(table: str, values: Mapping[str, float]) -> dict[str, float | None]:
    """The averages of a row, by their labels; None where a task is missing."""

    def mean(names):
        return statistics.fmean(values[name] for name in names) if all(name in values for name in names) else None

    if table != "vtab":
        return {"mean": mean(_FGVC)}
    groups = {}
    for name, task in TASKS.items():
        groups.setdefault(task.group, []).append(name)
    by_group = {group: mean(names) for group, names in groups.items()}
    of_groups = None if None in by_group.values() else statistics.fmean(by_group.values())
    return {**by_group, f"mean of {len(TASKS)} tasks": mean(TASKS), f"mean of {len(groups)} groups": of_groups}


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of every method ours, what is published, and the difference; rows become columns if that is narrower."""
    labels = list(means(table.table, {}))
    header = ["method", *table.tasks, *labels, "tuned, without head", "hours"]
    rows = [row for method in table.methods for row in _rows_of(table, method)]
    if len(header) > 12:
        header, *rows = map(list, zip(*[header, *rows], strict=True))
        header[0] = "task"
    return header, rows


def _rows_of(table: Table, method: str) -> list[list[str]]:
    ours, theirs = table.ours(method), table.theirs(method)
    ours |= means(table.table, ours)
    theirs |= means(table.table, theirs)
    columns = [*table.tasks, *means(table.table, {})]
    done = [table.measured[method, task] for task in table.tasks if (method, task) in table.measured]
    tested = [_spread(table.measured.get((method, name)), ours.get(name)) for name in columns]
    tuned, published = (done[0].tuned if done else None), table.published["tuned"].get(method)
    rows = [[method, *tested, f"{tuned:,}" if done else NOTHING, f"{sum(one.hours for one in done):.1f}" if done else NOTHING]]
    if table.published["rows"].get(method):
        printed = [_number(theirs.get(name)) for name in columns]
        rows.append([f"{method}, published", *printed, f"{published:,}" if published else NOTHING, NOTHING])
        both = [_number(_difference(ours.get(name), theirs.get(name)), "+") for name in columns]
        rows.append([f"{method}, difference", *both, NOTHING, NOTHING])
    return rows


def _spread(one: Measured | None, mean: float | None) -> str:
    """A task's mean, deviation and number of seeds; of an average the number alone."""
    if one is None:
        return _number(mean)
    return f"{one.mean:.1f} +- {one.std:.1f} ({len(one.accuracy)})" if one.std is not None else f"{one.mean:.1f} (1)"


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _number(value: float | None, sign: str = "") -> str:
    return NOTHING if value is None else f"{value:{sign}.1f}"


def values(table: Table) -> list[list[object]]:
    """A row of HEADER for each method and task, then for each average; '' where there is no number."""
    rows = []
    for method in table.methods:
        ours, theirs = table.ours(method), table.theirs(method)
        ours, theirs = ours | means(table.table, ours), theirs | means(table.table, theirs)
        for name in (*table.tasks, *means(table.table, {})):
            one, mean, published = table.measured.get((method, name)), ours.get(name), theirs.get(name)
            facts = [one.std, len(one.accuracy)] if one else [None, None]
            cost = [one.tuned, one.hours] if one else [None, None]
            row = [mean, *facts, published, _difference(mean, published), *cost]
            rows.append([method, name, *("" if value is None else value for value in row)])
    return [[round(value, 4) if isinstance(value, float) else value for value in row] for row in rows]


def notes(table: Table) -> list[str]:
    """What a reader of the table has to know, what is missing first."""
    told = []
    seeds = {pair: len(one.accuracy) for pair, one in table.measured.items()}
    for method in table.methods:
        missing = [task for task in table.tasks if (method, task) not in table.measured]
        if 0 < len(missing) < len(table.tasks):
            done = len(table.tasks) - len(missing)
            told.append(f"Partial: of {method}, {done} of {len(table.tasks)} tasks are done; not {', '.join(missing)}.")
    if idle := [name for name in table.methods if not table.ours(name)]:
        told.append(f"Partial: not run yet: {', '.join(idle)}.")
    if fewer := [f"{method} on {task}" for (method, task), count in seeds.items() if count < max(seeds.values())]:
        told.append(f"Fewer seeds than the others: {', '.join(fewer)}.")
    told.append("Top-1 on test after the last epoch, in percent: mean +- standard deviation (seeds).")
    told.append("Hours: of training steps at their median speed, those of the selection included.")
    if table.published["source"]:
        told.append(f"Published: {table.published['source']}.")
        told.append("Published means are computed here from their rows.")
    else:
        told.append(f"Nothing is published here for {table.table} with {table.backbone}.")
    return told + [f"{note[0].upper()}{note[1:]}." for note in table.published["notes"]]
