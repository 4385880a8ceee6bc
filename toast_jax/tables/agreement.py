"""How the predictions of methods agree, and what averaging two of them gains, from the saved logits of runs."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from toast_jax.errors import InputError
from toast_jax.workdir import run_folder

TITLE = "Agreement"
HEADER = ["methods", "tasks", "same class, %", "average of both, %", "gain, points"]
NOTE = (
    "Agreement: share of test images that two runs give the same class; accuracy of the average of their probabilities, and "
    "what it gains over the better of the two. Means over seeds, then tasks; two seeds of one method are a control."
)


def rows(folders: Iterable[tuple[str, Path]]) -> list[list[str]]:
    """Compare every two methods on the tasks and seeds for which both saved logits.

    Args:
      folders: labels, and folders of methods in sweeps, which hold `TASK/final/seed_N/`; a label may have several.

    Returns:
      rows of HEADER; empty if no run saved logits.

    Raises:
      InputError: a file is damaged, or two runs were tested on other images.
    """
    saved: dict[str, dict[str, dict[str, Path]]] = {}
    for label, folder in folders:
        for path in sorted(folder.glob(f"*/final/seed_*/{run_folder.PREDICTIONS}")):
            saved.setdefault(label, {}).setdefault(path.parts[-4], {})[path.parts[-2]] = path.parent
    table = []
    for first, second in itertools.combinations_with_replacement(saved, 2):
        of_tasks = []
        for task in sorted(saved[first].keys() & saved[second].keys()):
            if measured := [_compared(*pair) for pair in _pairs(saved[first][task], saved[second][task], first == second)]:
                same, one, other, both = np.mean(measured, axis=0)
                of_tasks.append((same, both, both - max(one, other)))
        if of_tasks:
            same, both, gain = (statistics.fmean(column) for column in zip(*of_tasks, strict=True))
            name = f"{first} + {second}" if first != second else f"{first}, two seeds"
            table.append([name, str(len(of_tasks)), f"{same:.1f}", f"{both:.1f}", f"{gain:+.1f}"])
    return table


def _pairs(first: Mapping[str, Path], second: Mapping[str, Path], same_method: bool) -> Iterator[tuple[Path, Path]]:
    if same_method:
        yield from itertools.pairwise(first.values())
    else:
        yield from ((first[seed], second[seed]) for seed in first if seed in second)


def _compared(first: Path, second: Path) -> list[float]:
    """Return, in percent, the agreement of two runs, their accuracies, and that of the average of their probabilities."""
    one, other = map(run_folder.read_predictions, (first, second))
    if one["logits"].shape != other["logits"].shape or (one["label"] != other["label"]).any():
        raise InputError(f"{first} and {second} were tested on other images; make a table of each.")
    average = _probabilities(one["logits"]) + _probabilities(other["logits"])
    classes = [logits.argmax(axis=-1) for logits in (one["logits"], other["logits"], average)]
    same, *correct = classes[0] == classes[1], *(predicted == one["label"] for predicted in classes)
    return [100 * float(values.mean()) for values in (same, *correct)]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
