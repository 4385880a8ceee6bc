"""What runs that train together leave: each the numbers of its own, in a folder of its own."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax.errors import Diverged, listed
from toast_jax.workdir import metrics

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the runs that train together; most train alone.

    Attributes:
      config: of the run.
      folder: of the run.
      schedule: its learning rate as a function of the step.
    """

    config: ConfigDict
    folder: Path
    schedule: Callable


class Record(contextlib.ExitStack):
    """Writes the numbers of every member and notes which of them have diverged.

    Numbers come as arrays `[members]`, or as scalars where there is one.

    A step whose numbers are not finite ends its member, unless `config.skip_nonfinite` lets so many in a row be left out.

    Args:
      members: the runs.
      start: step the numbers go on from.
      steps_per_epoch: for messages.
      reads: `vision` or `language`, which know what is counted and what follows from scores.

    Attributes:
      diverged: by the number of the member, what happened.
    """

    def __init__(self, members: Sequence[Member], start: int, steps_per_epoch: int, reads):
        super().__init__()
        self._members, self._steps_per_epoch, self._reads = members, steps_per_epoch, reads
        self._skipped = [0] * len(members)  # in a row
        self._writers = [self.enter_context(metrics.Writer(member.folder, start)) for member in members]
        self.diverged: dict[int, Diverged] = {}

    @property
    def all_diverged(self) -> bool:
        return len(self.diverged) == len(self._members)

    def steps(self, fetched: Sequence[tuple[int, dict, np.ndarray]]) -> tuple[int, dict[str, float]]:
        """Writes the numbers of some training steps.

        Args:
          fetched: of each step its number, its numbers, and which images of the training data it had.

        Returns:
          the last step, and its numbers of the member that does best.
        """
        for step, numbers, images in fetched:
            told = [self._step(i, step, one, images) for i, one in enumerate(self._each(numbers))]
        return step, min(told, key=lambda one: np.nan_to_num(one["loss"], nan=np.inf))

    def _step(self, i, step, numbers, images):
        member = self._members[i]
        numbers["lr"] = float(member.schedule(step - 1))
        self._write(i, step, {f"train/{name}": value for name, value in numbers.items()})
        if all(map(np.isfinite, numbers.values())):
            self._skipped[i] = 0
            return numbers
        what = (
            f"The loss is {numbers['loss']} and the gradient norm {numbers['grad_norm']} at step {step} (epoch "
            f"{(step - 1) // self._steps_per_epoch}, learning rate {numbers['lr']:.3g}, examples number "
            f"{listed([str(one) for one in np.ravel(images)], most=64)} of the training data)"
        )
        self._skipped[i] += 1
        if self._skipped[i] > member.config.skip_nonfinite:
            self._note(i, what)
        elif i not in self.diverged:
            log.warning("%s; it is left out, as the %d. of %d in a row.", what, self._skipped[i], member.config.skip_nonfinite)
        return numbers

    def evaluation(self, name: str, step: int, scores: dict) -> list[dict[str, float]]:
        """Writes the scores of a split, and returns them for each member."""
        each = [self._reads.summary({**one, "count": int(one["count"])}) for one in self._each(scores)]
        for i, one in enumerate(each):
            self._write(i, step, {f"{name}/{key}": value for key, value in one.items() if key != "count"})
            if not np.isfinite(one["loss"]):
                self._note(i, f"The loss on {name} is {one['loss']} after step {step}")
        best = max(each, key=lambda one: (one.get("accuracy", 0.0), -np.nan_to_num(one["loss"], nan=np.inf)))
        among = f", the best of {len(each)}" if len(each) > 1 else ""
        log.info("step %d  %s %s%s", step, name, described(best, self._reads.UNIT), among)
        return each

    def _each(self, numbers):
        """One dict of floats for each member; a number that they share comes once."""
        rows = {name: np.broadcast_to(np.asarray(value), len(self._members)) for name, value in numbers.items()}
        return [{name: float(row[i]) for name, row in rows.items()} for i in range(len(self._members))]

    def _write(self, i, step, numbers):
        if i not in self.diverged:
            self._writers[i].write(step, numbers)

    def _note(self, i, what):
        folder = self._members[i].folder / "checkpoints"
        self.diverged.setdefault(
            i,
            Diverged(
                f"{what}; the last good checkpoint, if any, is kept in {folder}; try a lower --config.optimizer.lr in another "
                "--workdir."
            ),
        )


def described(scores: dict[str, float], unit: str) -> str:
    """One line of a dict that `evaluate` returned, whose count is of `unit`."""
    numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items() if name != "count")
    return f"{numbers} ({scores['count']} {unit})"
