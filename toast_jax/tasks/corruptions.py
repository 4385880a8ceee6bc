"""Evaluate runs on corrupted images: `--config=configs/corrupt.py:runs=A+B`."""

import functools
import itertools
import logging
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import bootstrap, comparison, drawing, report, views
from toast_jax.config.check import check_fields
from toast_jax.data.images import corruptions, selected
from toast_jax.data.images.sources import Source
from toast_jax.devices import precision
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

CLEAN, MEAN = "clean", "mean of corruptions"
_SIDE = 128  # least width of a picture on the page, in pixels
_PICTURES = 5  # per row


def run(config: ConfigDict, folder: str) -> None:
    """Write `corruptions.json`, `.md` and `.html` to the folder: accuracy by corruption, averaged over severities.

    Raises:
      InputError: no runs, runs that cannot be compared (see `saved_run.load_compared`), no labeled images, an image that cannot
        be decoded, or an unknown corruption or severity.
    """
    if not config.runs:
        raise InputError("Nothing to evaluate; write --config=configs/corrupt.py:runs=RUN+RUN.")
    check_fields(config)
    folder = run_folder.writable(folder)
    runs = comparison.open_runs(config, folder, log)
    first = next(iter(runs.values()))
    source = views.choose(first, config.images, config.most)
    if not selected.labelled(source):
        raise InputError(f"The images {config.images} have no classes, so no accuracy; give a split: train, val or test.")
    correct = {CLEAN: _correct(config, runs, source)}
    for name in config.kinds:
        by_severity = [_correct(config, runs, source, corruption(name, s, config.seed)) for s in config.severities]
        correct[name] = {run: np.stack([by_run[run] for by_run in by_severity]) for run in runs}
        log.info("%-18s %s", name, ", ".join(f"{run} {100 * values.mean():.1f}" for run, values in correct[name].items()))
    header, rows = ("accuracy, %", *runs), _rows(correct, runs, config)
    notes = [
        f"{len(source)} images; mean over severities {', '.join(map(str, config.severities))}; in brackets the 95 % bootstrap "
        f"interval over images, seed {config.seed}. The corruptions follow Hendrycks & Dietterich but are generated here, so "
        "the numbers are not comparable with those on the images of ImageNet-C.",
    ]
    log.info("\n%s\n", report.columns(header, rows))
    pictures = _pictures(source, first, config)
    table = report.Section("Accuracy on corrupted images", header, rows, notes)
    report.write(folder, "corruptions", [table], *pictures)
    accuracy = {
        name: {run: values.mean(axis=-1).tolist() for run, values in by_run.items()} for name, by_run in correct.items()
    }
    result = {"images": len(source), "accuracy": accuracy, "severities": list(config.severities), "seed": config.seed}
    run_folder.write_json(folder / "corruptions.json", {**result, "config": config.to_dict(), **run_folder.circumstances()})
    log.info("The table is in %s.", (folder / "corruptions.html").resolve())


def corruption(name: str, severity: int, seed: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return a function that corrupts a view, given its index (see `corruptions.corrupt`)."""
    return lambda view, index: corruptions.corrupt(view, name, severity, seed, index)


def _correct(config, runs, source: Source, change: Callable | None = None) -> dict[str, np.ndarray]:
    """Return for each run which images it classifies correctly, bool `[n]`."""
    correct: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    for batch in views.of_run(next(iter(runs.values())), source, config.batch_size, change=change):
        real = batch["mask"] > 0
        for name, run in runs.items():
            with precision.of_products(run.config):
                predicted = np.asarray(_logits(run.model, run.method, run.params, batch["image"])).argmax(axis=-1)
            correct[name].append((predicted == batch["label"])[real])
    return {name: np.concatenate(parts) for name, parts in correct.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model, method, params, images):
    return apply(model, method, params, images)


def _rows(correct, runs, config) -> list[list[str]]:
    """Format the rows in percent: clean, the mean over corruptions, and each corruption."""
    means = {run: np.mean([correct[name][run].mean(axis=0) for name in config.kinds], axis=0) for run in runs}
    rows = [[CLEAN, *(_with_interval(correct[CLEAN][run], config.seed) for run in runs)]]
    rows.append([MEAN, *(_with_interval(means[run], config.seed) for run in runs)])
    return rows + [
        [name.replace("_", " "), *(f"{100 * correct[name][run].mean():.1f}" for run in runs)] for name in config.kinds
    ]


def _with_interval(values: np.ndarray, seed: int) -> str:
    return report.with_interval(values.mean(), *bootstrap.interval(values, seed))


def _pictures(source, run, config) -> tuple[str, str]:
    """Render views of the first image at the middle and the highest severity, with a heading."""
    shown = sorted({sorted(config.severities)[len(config.severities) // 2], max(config.severities)})
    drawn = []
    for severity, name in itertools.product(shown, config.kinds):
        changed = views.Views(source, run.config.data, corruption(name, severity, config.seed))
        drawn.append(report.picture(drawing.enlarged(changed[0]["image"], _SIDE), name.replace("_", " ")))
    rows = [drawn[i : i + _PICTURES] for i in range(0, len(drawn), _PICTURES)]
    title = report.heading(f"The first image, at severity {' and '.join(map(str, shown))}")
    return title, report.pictures([""] * min(_PICTURES, len(drawn)), rows)
