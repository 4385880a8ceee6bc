"""Write the metrics of runs to `metrics.jsonl` and for TensorBoard, and note which runs have diverged."""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.errors import Diverged, listed
from toast_jax.workdir import event_file
from toast_jax.workdir.run_folder import replace_file

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """A run, which trains alone or together with others.

    Attributes:
      config: of the run.
      folder: of the run.
      rates: the learning rate of every step, `[steps]`, on the host.
    """

    config: ConfigDict
    folder: Path
    rates: np.ndarray


class Record(contextlib.ExitStack):
    """Writes the metrics of every member and notes which members have diverged.

    Metrics are arrays `[members]`, or scalars if all members share them. A member has diverged at its first non-finite step,
    unless `config.skip_nonfinite` allows some in a row.

    Args:
      members: the runs.
      start: the step before the first one to be written.
      steps_per_epoch: for messages.
      reads: the module for their data, see `train.setup.domain`, with its unit and its summary of scores.
      skipped: how many steps up to `start` were not finite: the last in a row, and all; `[2, members]`, or `[2]` for one.

    Attributes:
      diverged: by the index of the member, how it diverged.
    """

    def __init__(self, members: Sequence[Member], start: int, steps_per_epoch: int, reads, skipped: np.ndarray):
        super().__init__()
        self._members, self._steps_per_epoch, self._reads = members, steps_per_epoch, reads
        self._in_a_row, self._skipped = (np.broadcast_to(number, len(members)).tolist() for number in skipped)
        self._writers = [self.enter_context(Writer(member.folder, start)) for member in members]
        self.diverged: dict[int, Diverged] = {}

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged) == len(self._members)

    def steps(self, fetched: Sequence[tuple[int, dict, np.ndarray]]) -> tuple[int, dict[str, float]]:
        """Write the metrics of consecutive training steps. All values are on the host.

        Args:
          fetched: for each step its number, its metrics, and the indices of its training examples.

        Returns:
          the last step, and the metrics of the member with the lowest loss at that step.
        """
        for step, metrics, examples in fetched:
            rows = [self._step(i, step, row, examples) for i, row in enumerate(self._by_member(metrics))]
        self._flush()
        return step, min(rows, key=lambda row: np.nan_to_num(row["loss"], nan=np.inf))

    def _step(self, i, step, metrics, examples):
        member = self._members[i]
        metrics["lr"] = float(member.rates[step - 1 - self._skipped[i]])  # the schedule waits in a skipped step
        self._write(i, step, {f"train/{name}": value for name, value in metrics.items()})
        if all(map(np.isfinite, metrics.values())):
            self._in_a_row[i] = 0
            return metrics
        what = (
            f"The loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']} at step {step} (epoch "
            f"{(step - 1) // self._steps_per_epoch}, learning rate {metrics['lr']:.3g}, examples number "
            f"{listed([str(index) for index in np.ravel(examples)], most=64)} of the training data)"
        )
        self._in_a_row[i] += 1
        self._skipped[i] += 1
        if self._in_a_row[i] > member.config.skip_nonfinite:
            self._note(i, what)
        elif i not in self.diverged:
            log.warning(
                "%s; the step is skipped, %d of at most %d in a row.", what, self._in_a_row[i], member.config.skip_nonfinite
            )
        return metrics

    def evaluation(self, name: str, step: int, scores: dict) -> list[dict[str, float]]:
        """Write the scores of a split, and return them for each member."""
        rows = [self._reads.summary({**row, "count": int(row["count"])}) for row in self._by_member(scores)]
        for i, row in enumerate(rows):
            self._write(i, step, {f"{name}/{key}": value for key, value in row.items() if key != "count"})
            if not np.isfinite(row["loss"]):
                self._note(i, f"The loss on {name} is {row['loss']} after step {step}")
        self._flush()
        best = max(rows, key=lambda row: (row.get("accuracy", 0.0), -np.nan_to_num(row["loss"], nan=np.inf)))
        among = f", the best of {len(rows)}" if len(rows) > 1 else ""
        log.info("step %d  %s %s%s", step, name, described(best, self._reads.UNIT), among)
        return rows

    def _by_member(self, metrics):
        """Return one dict of floats for each member."""
        rows = {name: np.broadcast_to(np.asarray(value), len(self._members)) for name, value in metrics.items()}
        return [{name: float(row[i]) for name, row in rows.items()} for i in range(len(self._members))]

    def _write(self, i, step, metrics):
        if i not in self.diverged:
            self._writers[i].write(step, metrics)

    def _flush(self):
        for writer in self._writers:
            writer.flush()

    def _note(self, i, what):
        folder = self._members[i].folder / "checkpoints"
        self.diverged.setdefault(
            i,
            Diverged(
                f"{what}; the last good checkpoint, if any, is kept in {folder}; try a lower --config.optimizer.lr in another "
                "--workdir."
            ),
        )


class Writer:
    """Appends metrics to `WORKDIR/metrics.jsonl`, one line a call, and to `WORKDIR/tensorboard`.

    Only the first process writes. Write errors are logged once and do not stop training; later writes may succeed.

    Args:
      workdir: the run's folder.
      start_step: lines of later steps, from a run that was killed after its last checkpoint, are dropped first.

    Raises:
      InputError: nothing can be written from the start.
    """

    def __init__(self, workdir: str | Path, start_step: int):
        self._files: tuple[BinaryIO, ...] = ()
        self._has_failed = False
        if jax.process_index():
            return
        path = Path(workdir) / "metrics.jsonl"
        lines = [line for line in complete_lines(path) if line["step"] <= start_step]
        replace_file(path, "".join(json.dumps(line) + "\n" for line in lines))
        # A run that was killed between its last checkpoint and its result is evaluated again.
        self._written = {(start_step, frozenset(line)) for line in lines if line["step"] == start_step}
        self._files = (path.open("ab"), event_file.create(path.with_name("tensorboard"), start_step + 1))
        self.flush()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step to the buffers; a number that is not finite is null in JSON."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": step, **finite}
        if not self._files or (step, frozenset(line)) in self._written:
            return
        records = json.dumps(line).encode() + b"\n", event_file.scalars(step, metrics)
        for file, record in zip(self._files, records, strict=True):
            with self._logged_errors():
                file.write(record)

    def flush(self) -> None:
        """Pass the buffers to the operating system, without waiting for the disk."""
        for file in self._files:
            with self._logged_errors():
                file.flush()

    def close(self) -> None:
        for file in self._files:
            with self._logged_errors():
                file.close()

    @contextlib.contextmanager
    def _logged_errors(self):
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                log.warning("Metrics cannot be written (%s); the run continues without them.", error.strerror)
            self._has_failed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def complete_lines(path: Path) -> list[dict]:
    """Return the metrics in a file, without lines that were cut off when the run was killed, or that are no metrics."""
    lines: list[dict] = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            line = json.loads(text)
            if line["step"] >= 0:
                lines.append(line)
    return lines


def described(scores: dict[str, float], unit: str) -> str:
    """Format scores that `evaluate` returned, with their count in `unit`, as a line of text."""
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in _main(scores))
    return f"{numbers} ({scores['count']} {unit})"


def _main(scores):
    """Return the scores to log, without those of single classes (`iou/CLASS`)."""
    return [(name, value) for name, value in scores.items() if name != "count" and "/" not in name]
