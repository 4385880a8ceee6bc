"""Confusion matrix of a tuned run: its counts, a summary, and a CSV file."""

import csv
from pathlib import Path

import numpy as np

from toast_jax.analysis import views
from toast_jax.data.images.sources import Source
from toast_jax.model.steered import apply
from toast_jax.train.saved_run import SavedRun


def matrix(run: SavedRun, source: Source) -> np.ndarray:
    """Count predictions over a labelled source: `[C, C]`, true class by predicted class."""
    logits = run.compiled(apply)
    counts = np.zeros((len(run.classes),) * 2, np.int64)
    for batch in views.of_run(run, source, run.config.batch_size):
        predicted = np.asarray(logits(run.params, batch["image"])).argmax(axis=-1)
        real = batch["mask"] > 0
        np.add.at(counts, (batch["label"][real], predicted[real]), 1)
    return counts


def summary(counts: np.ndarray, classes: tuple[str, ...], most: int = 5) -> str:
    """List the `most` confused pairs, and as many classes with the lowest recall."""
    totals = counts.sum(axis=1)
    wrong = counts - np.diag(np.diag(counts))
    pairs = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda pair: -wrong[pair])[:most]
    if not pairs:
        return "No image is taken for another class."
    lines = ["Confused most often:"]
    lines += [f"  {classes[i]} taken for {classes[j]}: {wrong[i, j]} of {totals[i]}" for i, j in pairs]
    share = np.diag(counts) / np.maximum(totals, 1)
    worst = [i for i in np.argsort(share, kind="stable") if totals[i] and share[i] < 1][:most]
    lines.append("Recognised least:")
    lines += [f"  {classes[i]}: {counts[i, i]} of {totals[i]} ({share[i]:.0%})" for i in worst]
    return "\n".join(lines)


def write(path: Path, counts: np.ndarray, classes: tuple[str, ...]) -> None:
    """Write the counts as CSV: a row per true class, a column per predicted class."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(["true class", *classes])
        csv.writer(file).writerows([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
