"""The paper's tables and that of segmentation: results of sweeps beside the published numbers (published_results.json)."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from toast_jax.config.paper_recipes import FGVC
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import InputError
from toast_jax.model.methods import METHODS
from toast_jax.tables import plan

NOTHING = "-"
RECIPES = ("toast", "paper", "fixed")  # of sweeps of VTAB-1k, see `paper_recipes.vtab_recipe`
_TESTED = "final/seed_*/result.json"
_SCORED = {"segmentation": "mIoU on test after the last step, in percent: mean +- standard deviation (seeds)."}
HEADER = ("method", "task", "mean", "std", "seeds", "published", "difference", "tuned_parameters", "hours")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of one method on one task.

    Attributes:
      scores: on test, in percent, by seed; see `plan.score_of`.
      tuned: number of tuned parameters, without the head.
      hours: time in training steps at their median speed, selection included.
    """

    scores: tuple[float, ...]
    tuned: int
    hours: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Table:
    """Measured and published results of one table.

    Attributes:
      table, backbone: of the sweeps.
      tasks: of VTAB-1k or FGVC; of segmentation those with a result.
      measured: by method, `labeled` with the recipe, and task; pairs without a result are absent.
      published: the entry of published_results.json for this table and backbone; without rows if nothing is published.
    """

    table: str
    backbone: str
    tasks: tuple[str, ...]
    measured: Mapping[tuple[str, str], Measured]
    published: Mapping

    @property
    def methods(self) -> list[str]:
        """Lists the methods that are measured or published."""
        measured = {method for method, _ in self.measured}
        labels = [labeled(name, recipe) for name in METHODS for recipe in RECIPES]
        return [label for label in labels if label in self.published["rows"] or label in measured]

    def entries(self, method: str) -> dict[str, tuple[Measured | None, float, float]]:
        """Return the results of a method, then its averages over tasks, by label.

        Returns:
          the measured result (None for an average), the measured mean and the published mean, NaN where missing.
        """
        measured = {task: self.measured[method, task].mean for task in self.tasks if (method, task) in self.measured}
        published = dict(zip(self.published["columns"], self.published["rows"].get(method, ()), strict=False))
        measured |= means(self.tasks, measured)
        published |= means(self.tasks, published)
        return {
            name: (self.measured.get((method, name)), measured.get(name, math.nan), published.get(name, math.nan))
            for name in (*self.tasks, *means(self.tasks, {}))
        }


def labeled(method: str, recipe: str) -> str:
    """Name a method with its recipe, unless that is the default, TOAST's."""
    return method if recipe == "toast" else f"{method} ({recipe} recipe)"


def collect(folders: Sequence[str | Path]) -> Table:
    """Read the results of sweeps, finished or not.

    Raises:
      InputError: a folder is not a sweep; the sweeps differ in table or backbone; two have the same runs; a result is damaged.
    """
    first = opened(folders)
    measured: dict[tuple[str, str], Measured] = {}
    where: dict[tuple[str, str], str] = {}
    tasks = _tasks(first["table"], folders)
    for method, folder in method_folders(folders):
        for task in tasks:
            if result := read_measured(folder / task):
                if (method, task) in measured:
                    raise InputError(
                        f"Both {where[method, task]} and {folder.parent} hold {method} on {task}; leave one of them out."
                    )
                measured[method, task], where[method, task] = result, str(folder.parent)
    return Table(first["table"], first["backbone"], tasks, measured, _published(first["table"], first["backbone"]))


def _tasks(table: str, folders: Sequence[str | Path]) -> tuple[str, ...]:
    of_paper: Mapping[str, Iterable[str]] = {"vtab": TASKS, "fgvc": FGVC}
    if table in of_paper:
        return tuple(of_paper[table])
    return tuple(sorted({path.parts[-4] for _, folder in method_folders(folders) for path in folder.glob(f"*/{_TESTED}")}))


def method_folders(folders: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Yield the label and the folder of every method in sweeps, whether it has runs there or not."""
    for folder in folders:
        recipe = plan.recipe_of(plan.opened(folder))
        yield from ((labeled(name, recipe), Path(folder).expanduser() / name) for name in METHODS)


def opened(folders: Sequence[str | Path]) -> dict[str, str]:
    """Read the table and backbone of sweeps.

    Raises:
      InputError: `folders` is empty, a folder is not a sweep, or they differ.
    """
    if not folders:
        raise InputError("There is no sweep to read; write --config=configs/table.py:from=FOLDER.")
    facts = {str(folder): plan.opened(folder) for folder in folders}
    first = facts[str(folders[0])]
    same = ("table", "backbone")
    if other := next((name for name, own in facts.items() if any(own[fact] != first[fact] for fact in same)), None):
        raise InputError(
            f"{folders[0]} is a sweep of {first['table']} with {first['backbone']} and {other} one of {facts[other]['table']} "
            f"with {facts[other]['backbone']}; make a table of each."
        )
    return first


def _published(table: str, backbone: str) -> dict:
    entries = json.loads(Path(__file__).with_name("published_results.json").read_text())
    nothing = {"source": "", "columns": [], "rows": {}, "tuned": {}, "notes": []}
    return next((entry for entry in entries if (entry["table"], entry["backbone"]) == (table, backbone)), nothing)


def read_measured(folder: Path) -> Measured | None:
    """Read the results of one method on one task; None if no run is finished.

    Raises:
      InputError: a result is damaged.
    """
    tested = [_read(path) for path in sorted(folder.glob(_TESTED))]
    if not tested:
        return None
    hours = sum(map(_hours, tested + [_read(path) for path in folder.glob("selection/*/result.json")]))
    scores = tuple(100 * result["test"][plan.score_of(result["config"])] for result in tested)
    return Measured(scores, tested[0]["tuned_parameters"]["without_head"], hours)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and give the sweep's command again.") from error


def _hours(result: dict) -> float:
    images = result["steps"] * result["config"]["batch_size"]
    return images / result["images_per_second"] / 3600 if result["images_per_second"] else 0.0


def means(tasks: Sequence[str], values: Mapping[str, float]) -> dict[str, float]:
    """Compute the averages of a row over the tasks of a table, by label; NaN if a task is missing."""

    def mean(names):
        return statistics.fmean(values.get(name, math.nan) for name in names)

    if tuple(tasks) != tuple(TASKS):
        return {"mean": mean(tasks)} if tasks else {}
    groups = dict.fromkeys(task.group for task in TASKS.values())
    by_group = {group: mean([name for name, task in TASKS.items() if task.group == group]) for group in groups}
    of_groups = statistics.fmean(by_group.values())
    return {**by_group, f"mean of {len(TASKS)} tasks": mean(TASKS), f"mean of {len(groups)} groups": of_groups}


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Format header and rows: each method measured, published, and the difference; wide tables are transposed."""
    header = ["method", *table.tasks, *means(table.tasks, {}), "tuned, without head", "hours"]
    rows = [row for method in table.methods for row in _rows_of(table, method)]
    if len(header) > 12:
        header, *rows = map(list, zip(*[header, *rows], strict=True))
        header[0] = "task"
    return header, rows


def _rows_of(table: Table, method: str) -> list[list[str]]:
    entries = table.entries(method).values()
    done = [result for result, _, _ in entries if result]
    costs = [f"{done[0].tuned:,}", f"{sum(result.hours for result in done):.1f}"] if done else [NOTHING, NOTHING]
    rows = [[method, *(_spread(result) if result else _number(mean) for result, mean, _ in entries), *costs]]
    if table.published["rows"].get(method):
        tuned = table.published["tuned"].get(method)
        printed = [_number(published) for _, _, published in entries]
        rows.append([f"{method}, published", *printed, f"{tuned:,}" if tuned else NOTHING, NOTHING])
        differences = [_number(mean - published, "+") for _, mean, published in entries]
        rows.append([f"{method}, difference", *differences, NOTHING, NOTHING])
    return rows


def _spread(result: Measured) -> str:
    """Format a task's mean, standard deviation and number of seeds."""
    seeds = len(result.scores)
    return f"{result.mean:.1f}{f' +- {result.std:.1f}' * (seeds > 1)} ({seeds})"


def _number(value: float, sign: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:{sign}.1f}"


def values(table: Table) -> list[list[object]]:
    """List a row of HEADER for each method and task, then for each average; '' for a missing number."""
    rows: list[list[object]] = []
    for method in table.methods:
        for name, (result, mean, published) in table.entries(method).items():
            std, seeds = (result.std, len(result.scores)) if result else (math.nan, "")
            tuned, hours = (result.tuned, result.hours) if result else ("", math.nan)
            rows.append([method, name, mean, std, seeds, published, mean - published, tuned, hours])
    return [[_rounded(value) if isinstance(value, float) else value for value in row] for row in rows]


def _rounded(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 4)


def notes(table: Table) -> list[str]:
    """List the notes of the table, missing results first."""
    lines = []
    seeds = {pair: len(result.scores) for pair, result in table.measured.items()}
    for method in table.methods:
        missing = [task for task in table.tasks if (method, task) not in table.measured]
        if 0 < len(missing) < len(table.tasks):
            done = len(table.tasks) - len(missing)
            lines.append(f"Partial: of {method}, {done} of {len(table.tasks)} tasks are done; not {', '.join(missing)}.")
    if idle := [name for name in table.methods if not any(method == name for method, _ in table.measured)]:
        lines.append(f"Partial: not run yet: {', '.join(idle)}.")
    if fewer := [f"{method} on {task}" for (method, task), count in seeds.items() if count < max(seeds.values())]:
        lines.append(f"Fewer seeds than the others: {', '.join(fewer)}.")
    published = [f"Published: {table.published['source']}.", "Published means are computed here from their rows."]
    lines += [
        _SCORED.get(table.table, "Top-1 on test after the last epoch, in percent: mean +- standard deviation (seeds)."),
        "Hours: time in training steps at their median speed, selection included.",
        *(published if table.published["source"] else [f"Nothing is published here for {table.table} with {table.backbone}."]),
    ]
    return lines + [f"{note[0].upper()}{note[1:]}." for note in table.published["notes"]]
