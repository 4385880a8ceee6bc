"""Run a sweep: `--config=configs/sweep.py:table=...`. Each of its runs is an ordinary run in its own folder."""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax.config.check import check
from toast_jax.data import loader
from toast_jax.data.images import few_shot, sources
from toast_jax.data.images.segmentation import sets
from toast_jax.data.images.segmentation.masks import MaskedSource
from toast_jax.data.images.sources import Source
from toast_jax.devices import programs
from toast_jax.errors import Diverged, InputError, Interrupted, listed, renaming
from toast_jax.model import families
from toast_jax.tables import plan
from toast_jax.tables.plan import Cell, Point, Unit
from toast_jax.train.loop import fit_grid, fit_seeds
from toast_jax.train.setup import load_network
from toast_jax.workdir import interrupt, locks, run_folder
from toast_jax.workdir.progress import log_to_file

log = logging.getLogger(__name__)
_traces = logging.getLogger(f"{__name__}.traces")  # in log files only

_DIVERGED = "diverged.json"  # replaces the result of a diverged run


def run(config: ConfigDict, folder: str) -> None:
    """Train all runs of this shard that are neither finished nor locked by another process.

    Raises:
      InputError: nothing can start; or, at the end, some runs are not done (each is logged with its reason).
      Interrupted: the process was asked to stop; the current run has saved a checkpoint.
    """
    cells = plan.shard(plan.cells(config), config.sweep.shard)
    folder = plan.claim(config, folder)
    log.info("%d of %d pairs of method and task, in %s.", len(cells), len(plan.cells(config)), folder)
    try:
        with interrupt.asked() as interrupted:
            _check(config, [cell for cell in cells if not _is_done(config, cell, folder)], folder)
            undone: dict[str, str] = {}
            for cell in cells:
                undone |= _fill(config, cell, folder, interrupted)
    except KeyboardInterrupt as error:  # a second signal
        raise Interrupted(f"Stopped; finished runs are kept in {folder}.") from error
    if undone:
        raise InputError(
            f"Not done: {listed(list(undone), most=6)}; mend or await what is said above and give the same command again, "
            "which repeats nothing that is done."
        )
    log.info("All is done. The table: python main.py --config=configs/table.py:from=%s", str(folder).replace("+", "++"))


def _is_done(config: ConfigDict, cell: Cell, folder: Path) -> bool:
    """Return whether a cell has all its results; raise InputError if one is of another config."""
    scores = {point: _score(unit) for point, unit in plan.selection(config, cell, folder).items()}
    if None in scores.values():
        return False
    point = plan.best(scores) if scores else plan.points(config, cell)[0]
    return point is not None and plan.final(config, cell, point, folder).results() is not None


def _check(config: ConfigDict, work: list[Cell], folder: Path) -> None:
    """Open the data of every task and the weights of every method, so that faults in them are reported before the first run."""
    failed, num_classes, checked = {}, {}, set()
    with log_to_file(folder / "log.txt", but=log):
        for cell in work:
            for point in plan.points(config, cell):
                unit = plan.final(config, cell, point, folder)
                with renaming(unit.names):
                    check(unit.config)
            if not _is_final(unit):
                raise InputError(
                    f"config.{unit.names['data.splits']}.test is '', but the table reports its score; name a split."
                )
            try:
                if cell.task not in num_classes and cell.task not in failed:
                    with renaming(unit.names):
                        train = _open(unit.config, "train")
                        loader.steps_per_epoch(train, unit.config.batch_size)
                    for one in (*[*plan.selection(config, cell, folder).values()][:1], unit):
                        _open_evaluated(one)
                    num_classes[cell.task] = len(train.classes)
            except InputError as error:
                failed[cell.task] = str(error)
            if cell.method not in checked and cell.task in num_classes:
                with renaming(unit.names):
                    load_network(unit.config, num_classes[cell.task])
                checked.add(cell.method)
    if failed:
        reasons = "\n".join(f"  {task}: {reason}" for task, reason in failed.items())
        raise InputError(f"{len(failed)} tasks cannot be read; mend them or leave them out by task=NAME+NAME:\n{reasons}")


def _open_evaluated(unit: plan.Unit) -> None:
    """Open the splits that a run is evaluated on; InputError if the data lacks the one that its table reports."""
    config = unit.config
    with renaming(unit.names):
        of_masks = [name for name, place in config.data.splits.items() if place]
        names = of_masks if families.reads(config) == "masks" else sources.split_names(config.data)
        if config.data.splits.test and "test" not in names:
            raise InputError(
                f"The data in {config.data.root} has no test split, only the train and val of --config.data.held_out: put its "
                f"class folders in folders {config.data.splits.train} and {config.data.splits.test}, or give a table a column "
                "split."
            )
        for name in names:
            if name != "train":
                _open(config, name)


def _open(config: ConfigDict, split: str) -> Source | MaskedSource:
    """Open a split of the data of a run; of VTAB-1k images are decoded, of a test split the first one alone."""
    if families.reads(config) == "masks":
        return sets.open_split(config.data, split)
    source = sources.open_split(config.data, split, seed=config.seed)
    return few_shot.draw(source, config.data.shots, config.seed) if split == "train" else source


def _fill(config: ConfigDict, cell: Cell, folder: Path, interrupted: Callable[[], bool]) -> dict[str, str]:
    """Select a point and train the final seeds of one cell; return undone runs with reasons, by name."""
    units = plan.selection(config, cell, folder)
    undone: dict[str, str] = {}
    _train_together(config, [unit for unit in units.values() if _score(unit) is None], interrupted)
    for number, unit in enumerate(units.values(), start=1):
        undone |= _ensure(unit, f"{number}/{len(units)}", interrupted)
    if undone:
        log.info("%s/final waits for %d runs of its selection.", cell, len(undone))
        return {**undone, f"{cell}/final": "waits"}
    for left in (folder / str(cell)).glob("selection/together_*/checkpoints"):  # of a grid whose runs were trained one by one
        shutil.rmtree(left, ignore_errors=True)
    if units:
        scores = {point: score for point, unit in units.items() if (score := _score(unit)) is not None}
        point = _selected(scores, folder / str(cell), plan.score_of(config))
    else:
        point = plan.points(config, cell)[0]
    if point is None:
        log.info("%s: every run of the selection has diverged; give lower rates in sweep.grid.%s.lr.", cell, cell.method)
        return {f"{cell}/selection": "diverged"}
    return _ensure(plan.final(config, cell, point, folder), "final", interrupted)


def _train_together(config: ConfigDict, units: list[Unit], interrupted: Callable[[], bool]) -> None:
    """Train runs of a selection as one program, or as several of `sweep.together` runs each.

    Failures are tolerated: `_ensure` reports every run afterwards and trains the unfinished ones alone.
    """
    # Segmentation is not evaluated for several points at once.
    most = 1 if families.reads(config) == "masks" else config.sweep.together or max(1, len(units))
    for start in range(0, len(units), most):
        if interrupted():
            return
        with contextlib.ExitStack() as stack:
            locked = [unit for unit in units[start : start + most] if _lock(unit, stack)]
            if len(locked) > 1:
                _fit_grid(config, locked)


def _lock(unit: Unit, stack: contextlib.ExitStack) -> bool:
    """Lock an unfinished run until the stack closes; False if another process has the lock or has finished the run."""
    try:
        stack.enter_context(locks.lock(unit.folder / "lock"))
    except locks.Held:
        return False
    return _score(unit) is None  # another process may have finished it before we got the lock


def _fit_grid(config: ConfigDict, units: list[Unit]) -> None:
    folder = run_folder.writable(plan.folder_of_all(units))
    configs, folders = [unit.config for unit in units], [unit.folder for unit in units]
    with log_to_file(folder / "log.txt", but=log):
        try:
            with renaming(units[0].names):
                results = fit_grid(configs, folders, folder, config.sweep.at_once)
        except Interrupted:
            raise
        except Exception as error:  # such as too little memory for the grid
            _traces.info("%s", folder, exc_info=True)
            log.info("%d runs of %s together: %s; now one by one.", len(units), folder.parent, _reason(error))
            results = []
    programs.drop_all()
    if results:  # else, as on a full disk, the same command may go on from them
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for unit, result in zip(units, results, strict=False):
        if isinstance(result, Diverged):
            _give_up(unit, result)
        _drop_checkpoints(unit)  # left by an earlier attempt to train it alone


def _ensure(unit: Unit, place: str, interrupted: Callable[[], bool]) -> dict[str, str]:
    """Train the runs of a unit unless they are finished; log and return the undone ones with reasons."""
    if _log_outcome(unit, place):
        return {}
    if interrupted():
        raise Interrupted(f"Stopped before {unit.name}; what is finished is kept.")
    try:
        with locks.lock(unit.folder / "lock"):
            if _log_outcome(unit, place):  # another process has finished it before we got the lock
                return {}
            with log_to_file(unit.folder / "log.txt", but=log):
                undone = _fit(unit)
            programs.drop_all()
    except locks.Held as holder:
        undone = {unit.name: str(holder)}
    for name, reason in undone.items():
        log.info("%s  %s is not done: %s.", place, name, reason)
    if not undone:
        _log_outcome(unit, place)
    return undone


def _fit(unit: Unit) -> dict[str, str]:
    """Train the runs of a unit. After a crash, retry each seed alone once; return the seeds that crash again.

    An InputError is final, as the same config would raise it again, except that a diverged seed does not stop the others.
    """
    try:
        with renaming(unit.names):
            fit_seeds(unit.config, unit.folders)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the other runs of the sweep continue
        _traces.info("%s", unit.name, exc_info=True)
        if isinstance(error, InputError) and not (isinstance(error, Diverged) and len(unit.folders) > 1):
            return _give_up(unit, error)
        log.info("%s: %s; retrying.", unit.name, _reason(error))
    else:
        _drop_checkpoints(unit)
        return {}
    undone = {}
    for seed, folder in unit.folders.items():
        try:
            with renaming(unit.names):
                fit_seeds(unit.config, {seed: folder})
        except Interrupted:
            raise
        except Exception as error:
            _traces.info("%s", folder, exc_info=True)
            name = f"{unit.name}/{folder.name}" if len(unit.folders) > 1 else unit.name
            undone[name] = _reason(error)
    if not undone:
        _drop_checkpoints(unit)
    return undone


def _give_up(unit: Unit, error: InputError) -> dict[str, str]:
    """Return a failed unit with its reason; a diverged run of the selection is instead recorded as finished."""
    if isinstance(error, Diverged) and not _is_final(unit):
        run_folder.write_json(unit.folder / _DIVERGED, {"error": str(error)})
        _drop_checkpoints(unit)
        return {}
    return {unit.name: _reason(error)}


def _drop_checkpoints(unit: Unit) -> None:
    """Delete the checkpoints of a selection run: nothing resumes from them, and a grid of them fills a disk."""
    if not _is_final(unit):
        shutil.rmtree(unit.folder / "checkpoints", ignore_errors=True)


def _is_final(unit: Unit) -> bool:
    return bool(unit.config.data.splits.test)


def _score(unit: Unit) -> float | None:
    """Return a selection run's final score on val: NaN if diverged, None if unfinished."""
    if results := unit.results():
        return results[0]["val"][plan.score_of(unit.config)]
    return float("nan") if run_folder.recorded(unit.folder, unit.config, _DIVERGED) else None


def _selected(scores: dict[Point, float], folder: Path, name: str) -> Point | None:
    """Select the best point and write it with all scores to `selected.json`."""
    point = plan.best(scores)
    finite = {tried: None if np.isnan(score) else score for tried, score in scores.items()}
    grid = [dataclasses.asdict(tried) | {f"val_{name}": finite[tried]} for tried in scores]
    run_folder.write_json(folder / "selected.json", {"selected": point and dataclasses.asdict(point), "grid": grid})
    return point


def _log_outcome(unit: Unit, place: str) -> bool:
    """Log the outcome of a unit in one line; False if it is unfinished."""
    outcome, name = "", plan.score_of(unit.config)
    if _is_final(unit):
        if test := [result["test"][name] for result in unit.results() or ()]:
            outcome = f"test {name} {', '.join(f'{score:.4f}' for score in test)}, mean {np.mean(test):.4f}"
    elif (score := _score(unit)) is not None:
        outcome = "diverged" if np.isnan(score) else f"val {name} {score:.4f}"
    if outcome:
        log.info("%s  %s: %s", place, unit.name, outcome)
    return bool(outcome)


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:300].rstrip(".")
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"
