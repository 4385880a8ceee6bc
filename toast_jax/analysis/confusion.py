"""Which classes a tuned network takes for which others."""

import csv
import functools
from pathlib import Path

import jax
import numpy as np

from toast_jax.data.images import batches
from toast_jax.data.images.sources import Source
from toast_jax.model.steered import apply
from toast_jax.train.saved_run import SavedRun


def matrix(run: SavedRun, source: Source) -> np.ndarray:
    """Counts `[C, C]` over a labelled source: row i, column j holds the images of class i that are named j."""
    logits = jax.jit(functools.partial(apply, run.model, run.method))
    data, counts = run.config.data, np.zeros((len(run.classes),) * 2, np.int64)
    for batch in batches.eval_batches(source, batch_size=run.config.batch_size, resize=data.resize, size=data.image_size):
        named = np.asarray(logits(run.params, batch["image"])).argmax(axis=-1)
        real = batch["mask"] > 0
        np.add.at(counts, (batch["label"][real], named[real]), 1)
    return counts


def summary(counts: np.ndarray, classes: tuple[str, ...], most: int = 5) -> str:
    """A few lines: the pairs that are confused most often, and the classes that are recognised least."""
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
    """Saves the counts as CSV, a row for each true class and a column for each named one."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerow(["true class", *classes])
        csv.writer(file).writerows([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
