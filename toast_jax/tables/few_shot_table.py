"""The few-shot table: accuracy by method, task and shots, with paired intervals, and the cost of each method."""

import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from toast_jax.errors import InputError, choose
from toast_jax.model.methods import METHODS
from toast_jax.tables import costs, few_shot_curves
from toast_jax.tables.intervals import Interval, Resampler
from toast_jax.tables.paper_tables import NOTHING, Measured, opened, read_measured
from toast_jax.train.saved_run import short_names, with_defaults
from toast_jax.workdir import run_folder

MEAN = "mean"
HEADER = (
    *("row", "sweep", "method", "task", "shots", "mean", "std", "seeds", "low", "high"),
    *("reference", "difference", "difference_low", "difference_high", "tuned_parameters"),
    *("training_gflop_per_image", "inference_gflop_per_image", "images_per_run", "hours"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One method of one sweep.

    Attributes:
      name: of the method, after that of the sweep if there are several, as in pretuned/lora.
      sweep, method: its parts.
      gflop: for one image, of training and of inference; see `costs.per_image`.
    """

    name: str
    sweep: str
    method: str
    gflop: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Tested runs of one row on one task with one number of shots.

    Attributes:
      measured: accuracy by seed, in percent, and costs.
      correct: by seed, for each test image whether it is classified correctly, `[n]`; without these files, the accuracy `[1]`.
      images: number of training images that one run processes, over all epochs.
    """

    measured: Measured
    correct: dict[int, np.ndarray]
    images: int


@dataclasses.dataclass(frozen=True)
class Table:
    """Measured results of one few-shot table.

    Attributes:
      backbone: of the sweeps.
      rows: by method, then by sweep.
      cells: by name of the row, task and shots, 0 being all; those without a result are absent.
      references: for each compared row, the row that it is compared with, both by name.
    """

    backbone: str
    rows: tuple[Row, ...]
    cells: dict[tuple[str, str, int], Cell]
    references: dict[str, str]

    @property
    def columns(self) -> list[tuple[str, int]]:
        """Lists task and shots of every result, then the mean over tasks for each number of shots with several tasks."""
        pairs = sorted({(task, shots) for _, task, shots in self.cells}, key=lambda pair: (pair[0], _order(pair[1])))
        counts = {shots: len(self.tasks(shots)) for _, shots in sorted(pairs, key=lambda pair: _order(pair[1]))}
        return pairs + [(MEAN, shots) for shots, count in counts.items() if count > 1]

    def tasks(self, shots: int) -> list[str]:
        """List the tasks with a result for this number of shots."""
        return sorted({task for _, task, other in self.cells if other == shots})

    def parts(self, row: str, task: str, shots: int) -> list[Cell]:
        """List the results behind an entry: of one task, or of every task of a mean; empty while one of them is missing."""
        cells = [self.cells.get((row, name, shots)) for name in (self.tasks(shots) if task == MEAN else [task])]
        return [cell for cell in cells if cell] if None not in cells else []

    @functools.cached_property
    def summaries(self) -> dict[tuple[str, str, int], tuple[Interval, Interval | None]]:
        """Accuracy and its difference to the reference, with 95 % intervals; in percent, by row, task and shots.

        Raises:
          InputError: two rows were tested on different images.
        """
        resampler, summaries = Resampler(), {}
        for row, (task, shots) in itertools.product(self.rows, self.columns):
            parts = self.parts(row.name, task, shots)
            other = self.parts(self.references[row.name], task, shots) if row.name in self.references else []
            if seeds := _shared_seeds(parts):
                accuracy = resampler.interval([_stacked(cell, seeds) for cell in parts])
                both = _shared_seeds([*parts, *other]) if other else []
                pairs = [_difference(*pair, both, row.name, task) for pair in zip(parts, other, strict=True)] if both else []
                summaries[row.name, task, shots] = accuracy, resampler.interval(pairs) if pairs else None
        return summaries


def collect(folders: Sequence[str | Path], reference: str = "") -> Table:
    """Read the results of sweeps, finished or not.

    Args:
      folders: of the sweeps.
      reference: a row or a method to compare the others with: a method with the runs of the same sweep. "" for the first.

    Raises:
      InputError: a folder is not a sweep; the sweeps differ in table or backbone; a result is damaged; no such reference; rows
        were tested on different images.
    """
    facts = opened(folders)
    rows, cells = [], {}
    for name, folder in method_folders(folders):
        (label, _, method), config = name.rpartition("/"), None
        for path in sorted(folder.glob("*/")):
            if cell := read_measured(path):
                runs = {run: json.loads((run / "result.json").read_text()) for run in _tested(path)}
                result = next(iter(runs.values()))
                config = result["config"]
                correct = {run["seed"]: _correct(place, run["test"]["accuracy"]) for place, run in runs.items()}
                task, shots = path.name.rpartition("_")[0], config["data"]["shots"]  # TASK_4shot or TASK_all
                cells[name, task, shots] = Cell(cell, correct, result["steps"] * config["batch_size"])
        if config:
            rows.append(Row(name, label, method, costs.per_image(with_defaults(config))))
    return Table(facts["backbone"], tuple(rows), cells, _references(rows, reference))


def method_folders(folders: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    """Yield the name of the row and the folder of every method in sweeps, whether it has runs there or not."""
    # Sweeps have names only if there are several.
    labels = short_names([str(folder) for folder in folders]) if len(folders) > 1 else [""]
    for method, (label, folder) in itertools.product(METHODS, zip(labels, folders, strict=True)):
        yield "/".join(filter(None, (label, method))), Path(folder).expanduser() / method


def _tested(path):
    return sorted(result.parent for result in path.glob("final/seed_*/result.json"))


def _correct(folder, accuracy):
    correct = run_folder.read_correct(folder)
    return np.array([accuracy]) if correct is None else correct.astype(float)


def _references(rows, reference):
    names = {row.name: row for row in rows}
    if rows and not reference:
        reference = rows[0].method
    if rows and reference not in names:
        choose("The config argument reference", reference, dict.fromkeys([*names, *(row.method for row in rows)]))
    same_sweep = {row.sweep: row.name for row in rows if row.method == reference}
    references = {row.name: reference if reference in names else same_sweep.get(row.sweep, "") for row in rows}
    return {name: other for name, other in references.items() if other and other != name}


def _stacked(cell, seeds):
    """Return percents `[seeds, n]`; `[seeds, 1]` if a run lacks its answers by image."""
    values = [cell.correct[seed] for seed in seeds]
    if len({len(value) for value in values}) > 1:
        values = [np.array([value.mean()]) for value in values]
    return 100 * np.stack(values)


def _shared_seeds(parts):
    """List the seeds that all of some results have, so that a mean over tasks, and its interval, can be taken for each seed."""
    return [seed for seed in parts[0].correct if all(seed in cell.correct for cell in parts)] if parts else []


def _difference(cell, other, seeds, name, task):
    """Return the paired differences `[seeds, n]` of two results, in percent."""
    first, second = _stacked(cell, seeds), _stacked(other, seeds)
    if 1 in (first.shape[1], second.shape[1]):
        first, second = (values.mean(axis=1, keepdims=True) for values in (first, second))
    if first.shape != second.shape:
        raise InputError(
            f"{name} was tested on {first.shape[1]} images of {task} and its reference on {second.shape[1]}; make a table of "
            "sweeps with the same test images."
        )
    return first - second


def _order(shots):
    return shots or float("inf")


def _named(task, shots):
    return f"{task}, {'all' if not shots else f'{shots} shots' if shots > 1 else '1 shot'}"


def cells(table: Table) -> list[tuple[str, list[str], list[list[str]]]]:
    """Format the tables, each with title, header and rows: accuracy and costs; differences to the reference."""
    summary, names = table.summaries, [row.name for row in table.rows]
    accuracy = [[_named(*column), *(_spread(table.parts(name, *column)) for name in names)] for column in table.columns]
    tuned = {name: cell.measured.tuned for (name, _, _), cell in table.cells.items()}
    accuracy += [
        ["tuned, without head", *(f"{tuned[name]:,}" for name in names)],
        ["training GFLOP/image", *(f"{row.gflop[0]:.2f}" for row in table.rows)],
        ["inference GFLOP/image", *(f"{row.gflop[1]:.2f}" for row in table.rows)],
        ["hours", *(f"{_hours(table, name):.1f}" for name in names)],
    ]
    compared = [name for name in names if name in table.references]
    differences = []
    for column in table.columns:
        intervals = [summary.get((name, *column), (None, None))[1] for name in compared]
        differences.append([_named(*column), *map(_signed, intervals)])
    versus = [f"{name} - {table.references[name]}" for name in compared]
    tables = [("", ["task", *names], accuracy)]
    return [*tables, ("Difference to the reference", ["task", *versus], differences)] if compared else tables


def _signed(interval):
    return f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]" if interval else NOTHING


def _hours(table, name):
    return sum(cell.measured.hours for (row, _, _), cell in table.cells.items() if row == name)


def _by_seed(parts: Sequence[Cell]) -> list[float]:
    """Return, for each seed that all tasks have, the mean accuracy over tasks."""
    return [statistics.fmean(100 * float(cell.correct[seed].mean()) for cell in parts) for seed in _shared_seeds(parts)]


def _spread(parts):
    values = _by_seed(parts)
    if not values:
        return NOTHING
    return f"{statistics.fmean(values):.1f}{f' +- {statistics.stdev(values):.1f}' if len(values) > 1 else ''} ({len(values)})"


def values(table: Table) -> list[list[object]]:
    """List a row of HEADER for each row, task and number of shots; '' for a missing number."""
    lines: list[list[object]] = []
    for (name, task, shots), (accuracy, difference) in table.summaries.items():
        row = next(row for row in table.rows if row.name == name)
        parts = table.parts(name, task, shots)
        seeds = _by_seed(parts)
        std = statistics.stdev(seeds) if len(seeds) > 1 else ""
        reference = table.references.get(name, "") if difference else ""
        images, hours = sum(cell.images for cell in parts), sum(cell.measured.hours for cell in parts)
        lines.append(
            [name, row.sweep, row.method, task, shots or "all", statistics.fmean(seeds), std, len(seeds)]
            + [accuracy.low, accuracy.high, reference, *(difference or ("", "", ""))]
            + [parts[0].measured.tuned, *row.gflop, images, hours]
        )
    return [[round(value, 4) if isinstance(value, float) else value for value in line] for line in lines]


def notes(table: Table) -> list[str]:
    """List the notes of the table, missing results first."""
    lines = []
    for row in table.rows:
        if missing := [_named(*c) for c in table.columns if c[0] != MEAN and (row.name, *c) not in table.cells]:
            lines.append(f"Partial: {row.name} has no result on {'; '.join(missing)}.")
    by_image = all(len(correct) > 1 for cell in table.cells.values() for correct in cell.correct.values())
    resampled = f"seeds and test images{'' if by_image else ', or seeds alone where a run lacks test_correct.txt'}"
    return [
        *lines,
        "Top-1 on test after the last epoch, in percent: mean +- standard deviation over seeds (number of seeds). A mean over "
        "tasks is taken for each seed first.",
        f"Intervals (in brackets, curves and table.csv): 95 % bootstrap over {resampled}, paired by both; tasks are fixed.",
        "GFLOP: matrix products for one image, two operations per multiply-add, without the head and without cached features.",
        "Hours: time in training steps at their median speed, selection included.",
    ]


def picture(table: Table) -> str:
    """Draw accuracy over shots as SVG, a panel for each task and for the mean, a line for each row."""
    panels: dict[str, dict[str, dict[int, Interval]]] = {}
    for (name, task, shots), (accuracy, _) in table.summaries.items():
        panels.setdefault(task, {}).setdefault(name, {})[shots] = accuracy
    shots = sorted({shots for _, shots in table.columns}, key=_order)
    in_order = {task: panels[task] for task, _ in table.columns if task in panels}
    return few_shot_curves.svg(in_order, shots, [row.name for row in table.rows])
