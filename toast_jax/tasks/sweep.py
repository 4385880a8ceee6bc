"""Sweep: `--config=configs/sweep.py:table=...`. Every run of it is a run like any other, in a folder of its own."""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.config.check import check
from toast_jax.data.images import sources
from toast_jax.errors import Diverged, InputError, Interrupted, listed
from toast_jax.tables import plan
from toast_jax.tables.plan import Cell, Point, Unit
from toast_jax.train.loop import fit_grid, fit_seeds
from toast_jax.train.setup import load_network
from toast_jax.workdir import interrupt, locks, run_folder
from toast_jax.workdir.progress import told_in

log = logging.getLogger(__name__)
_traces = logging.getLogger(f"{__name__}.traces")  # not on the console

_DIVERGED = "diverged.json"  # in the place of a result that there will never be


def run(config: ConfigDict, folder: str) -> None:
    """Makes all runs of this process's share, but for those that are done or that another process is at.

    Raises:
      InputError: nothing can start; or, at the end, some run is not done (each is told with its reason).
      Interrupted: the process was asked to end; the run it was at is saved as far as it came.
    """
    if jax.process_count() > 1:
        raise InputError("A sweep splits its runs, not one run, over hosts: leave out --distributed, see docs/sweeps.md.")
    share = plan.shard(plan.cells(config), config.sweep.shard)
    folder = plan.claim(config, folder)
    log.info("%d of %d pairs of method and task, in %s.", len(share), len(plan.cells(config)), folder)
    try:
        with interrupt.asked() as interrupted:
            _check(config, [cell for cell in share if not _is_done(config, cell, folder)], folder)
            left = {}
            for cell in share:
                left |= _fill(config, cell, folder, interrupted)
    except KeyboardInterrupt as error:  # a second one
        raise Interrupted(f"Stopped; finished runs are kept in {folder}.") from error
    if left:
        raise InputError(
            f"Not done: {listed(list(left), most=6)}; mend or await what is said above and give the same command again, "
            "which repeats nothing that is done."
        )
    log.info("All is done. The table: python main.py --config=configs/table.py:from=%s", folder)


def _is_done(config: ConfigDict, cell: Cell, folder: Path) -> bool:
    """Whether all results of a cell are there; InputError if one of them is of another config."""
    scores = {point: _score(unit) for point, unit in plan.selection(config, cell, folder).items()}
    if None in scores.values():
        return False
    point = plan.best(scores) if scores else plan.points(config, cell)[0]
    return point is not None and plan.final(config, cell, point, folder).results() is not None


def _check(config: ConfigDict, work: list[Cell], folder: Path) -> None:
    """Opens the training images of every task and the weights of every method, so that what is missing is named at once."""
    failed, num_classes, checked = {}, {}, set()
    with told_in(folder / "log.txt", but=log):
        for cell in work:
            runs = [plan.final(config, cell, point, folder).config for point in plan.points(config, cell)]
            for run in runs:
                check(run)
            try:
                if cell.task not in num_classes and cell.task not in failed:
                    num_classes[cell.task] = len(sources.open_split(run.data, "train").classes)
            except InputError as error:
                failed[cell.task] = str(error)
            if cell.method not in checked and cell.task in num_classes:
                load_network(run, num_classes[cell.task])
                checked.add(cell.method)
    if failed:
        reasons = "\n".join(f"  {task}: {reason}" for task, reason in failed.items())
        raise InputError(f"{len(failed)} tasks cannot be read; mend them or leave them out by task=NAME+NAME:\n{reasons}")


def _fill(config: ConfigDict, cell: Cell, folder: Path, interrupted: Callable[[], bool]) -> dict[str, str]:
    """Selects and runs the seeds of one cell; returns what is left undone, by name, with the reason."""
    units, left = plan.selection(config, cell, folder), {}
    _train_together(config, [unit for unit in units.values() if _score(unit) is None], interrupted)
    for number, unit in enumerate(units.values(), start=1):
        left |= _ensure(unit, f"{number}/{len(units)}", interrupted)
    if left:
        log.info("%s/final waits for %d runs of its selection.", cell, len(left))
        return {**left, f"{cell}/final": "waits"}
    if units:
        point = _selected({point: _score(unit) for point, unit in units.items()}, folder / str(cell))
    else:
        point = plan.points(config, cell)[0]
    if point is None:
        log.info("%s: every run of the selection has diverged; give lower rates in sweep.grid.%s.lr.", cell, cell.method)
        return {f"{cell}/selection": "diverged"}
    return _ensure(plan.final(config, cell, point, folder), "final", interrupted)


def _train_together(config: ConfigDict, units: list[Unit], interrupted: Callable[[], bool]) -> None:
    """Makes runs of a selection as one program, or several of `plan.together` runs each.

    Nothing is told here and nothing has to succeed: `_ensure` tells of every run, and makes those that are not done, alone.
    """
    most = config.sweep.together or max(1, len(units))
    for start in range(0, len(units), most):
        if interrupted():
            return
        with contextlib.ExitStack() as held:
            ours = [unit for unit in units[start : start + most] if _is_ours(unit, held)]
            if len(ours) > 1:
                _made_together(config, ours)


def _is_ours(unit: Unit, held: contextlib.ExitStack) -> bool:
    """Takes the lock of a run that is not done, for as long as `held` is open; False if another process is at it."""
    try:
        held.enter_context(locks.lock(unit.folder / "lock"))
    except locks.Held:
        return False
    return _score(unit) is None  # another process may have done it meanwhile


def _made_together(config: ConfigDict, units: list[Unit]) -> None:
    folder = run_folder.writable(plan.folder_of_all(units))
    configs, folders = [unit.config for unit in units], [unit.folder for unit in units]
    with told_in(folder / "log.txt", but=log):
        try:
            results = fit_grid(configs, folders, folder, config.sweep.at_once)
        except Interrupted:
            raise
        except Exception as error:  # such as too little memory for all of them
            _traces.info("%s", folder, exc_info=True)
            log.info("%d runs of %s together: %s; now one by one.", len(units), folder.parent, _reason(error))
            results = []
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for unit, result in zip(units, results, strict=False):
        if isinstance(result, Diverged):
            _given_up(unit, result)
        _drop_checkpoints(unit)  # of a time when it was alone


def _ensure(unit: Unit, place: str, interrupted: Callable[[], bool]) -> dict[str, str]:
    """Sees to it that the runs of a unit are done; returns those that are not, with the reason, which is also told."""
    if _told(unit, place):
        return {}
    if interrupted():
        raise Interrupted(f"Stopped before {unit.name}; what is finished is kept.")
    try:
        with locks.lock(unit.folder / "lock"):
            if _told(unit, place):  # another process has done it meanwhile
                return {}
            with told_in(unit.folder / "log.txt", but=log):
                left = _made(unit)
    except locks.Held as holder:
        left = {unit.name: str(holder)}
    for name, reason in left.items():
        log.info("%s  %s is not done: %s.", place, name, reason)
    if not left:
        _told(unit, place)
    return left


def _made(unit: Unit) -> dict[str, str]:
    """Makes the runs of a unit. What crashes is tried once more, each seed on its own; returns those that crash again.

    An error that the same config would bring again is final, but one seed that diverges does not keep others from their run.
    """
    try:
        fit_seeds(unit.config, unit.folders)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the other runs of the sweep are to go on
        _traces.info("%s", unit.name, exc_info=True)
        if isinstance(error, InputError) and not (isinstance(error, Diverged) and len(unit.folders) > 1):
            return _given_up(unit, error)
        log.info("%s: %s; once more.", unit.name, _reason(error))
    else:
        _drop_checkpoints(unit)
        return {}
    left = {}
    for seed, folder in unit.folders.items():
        try:
            fit_seeds(unit.config, {seed: folder})
        except Interrupted:
            raise
        except Exception as error:
            _traces.info("%s", folder, exc_info=True)
            one = f"{unit.name}/{folder.name}" if len(unit.folders) > 1 else unit.name
            left[one] = _reason(error)
    if not left:
        _drop_checkpoints(unit)
    return left


def _given_up(unit: Unit, error: InputError) -> dict[str, str]:
    """Of a run of the selection that has diverged a note is kept, which is as good as a result: the point is not taken."""
    if isinstance(error, Diverged) and not _is_final(unit):
        run_folder.write_json(unit.folder / _DIVERGED, {"error": str(error)})
        _drop_checkpoints(unit)
        return {}
    return {unit.name: _reason(error)}


def _drop_checkpoints(unit: Unit) -> None:
    """Nobody goes on from a run of the selection, and a grid of them fills a disk."""
    if not _is_final(unit):
        shutil.rmtree(unit.folder / "checkpoints", ignore_errors=True)


def _is_final(unit: Unit) -> bool:
    return bool(unit.config.data.splits.test)


def _score(unit: Unit) -> float | None:
    """What a run of the selection scored on val after its last epoch, NaN if it has diverged; None if it is not done."""
    if results := unit.results():
        return results[0]["val"]["accuracy"]
    return float("nan") if run_folder.recorded(unit.folder, unit.config, _DIVERGED) else None


def _selected(scores: dict[Point, float], folder: Path) -> Point | None:
    """The best point; it is saved with the scores of all as `selected.json`."""
    point = plan.best(scores)
    grid = [
        {"lr": one.lr, "weight_decay": one.weight_decay, "val_accuracy": None if np.isnan(score) else score}
        for one, score in scores.items()
    ]
    chosen = point and {"lr": point.lr, "weight_decay": point.weight_decay}
    run_folder.write_json(folder / "selected.json", {"selected": chosen, "grid": grid})
    return point


def _told(unit: Unit, place: str) -> bool:
    """Tells the outcome of a unit in one line; False if there is none yet."""
    if not _is_final(unit):
        score = _score(unit)
        if score is not None:
            log.info("%s  %s: %s", place, unit.name, "diverged" if np.isnan(score) else f"val accuracy {score:.4f}")
        return score is not None
    results = unit.results()
    if results is not None:
        test = [one["test"]["accuracy"] for one in results]
        log.info("%s  %s: test accuracy %s, mean %.4f", place, unit.name, ", ".join(f"{x:.4f}" for x in test), np.mean(test))
    return results is not None


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:300].rstrip(".")
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
