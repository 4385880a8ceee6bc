"""Evaluate runs on corrupted images: `--config=configs/corrupt.py:runs=A+B`."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import comparison, drawing, localization, report, views
from toast_jax.config.check import check_fields
from toast_jax.data.images import chosen, corruptions, pixels
from toast_jax.data.images.sources import Source
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

CLEAN, MEAN = "clean", "mean of corruptions"
_SIDE = 128  # least width of a picture on the page, in pixels
_PICTURES = 5  # per row


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Applies a corruption to the views of a source (see `pixels.eval_view`); none if `name` is ""."""

    source: Source
    resize: int
    size: int
    name: str
    severity: int
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        view = pixels.eval_view(pixels.decode(record["image"], record["name"]), resize=self.resize, size=self.size)
        if self.name:
            view = corruptions.corrupt(view, self.name, self.severity, self.seed, index)
        return {**record, "image": view}


def run(config: ConfigDict, folder: str) -> None:
    """Writes `corruptions.json`, `.md` and `.html` to the folder: accuracy by corruption, averaged over severities.

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
    source, data = views.choose(first, config.images, config.most), first.config.data
    if not chosen.labelled(source):
        raise InputError(f"The images {config.images} have no classes, so no accuracy; give a split: train, val or test.")
    corrupted = functools.partial(Corrupted, source, data.resize, data.image_size, seed=config.seed)
    correct = {CLEAN: _correct(config, runs, corrupted("", 0))}
    for name in config.kinds:
        by_severity = [_correct(config, runs, corrupted(name, severity)) for severity in config.severities]
        correct[name] = {run: np.stack([by_run[run] for by_run in by_severity]) for run in runs}
        log.info("%-18s %s", name, ", ".join(f"{run} {100 * values.mean():.1f}" for run, values in correct[name].items()))
    header, rows = ("accuracy, %", *runs), _rows(correct, runs, config)
    notes = [
        f"{len(source)} images; mean over severities {', '.join(map(str, config.severities))}; in brackets the 95 % bootstrap "
        f"interval over images, seed {config.seed}. The corruptions follow Hendrycks & Dietterich but are generated here, so "
        "the numbers are not comparable with those on the images of ImageNet-C.",
    ]
    log.info("\n%s\n", report.columns(header, rows))
    (folder / "corruptions.md").write_text(report.markdown(header, rows) + "\n\n" + "\n".join(notes) + "\n")
    (folder / "corruptions.html").write_text(_page(header, rows, notes, corrupted, config))
    accuracy = {name: {run: values.mean(axis=-1).tolist() for run, values in runs.items()} for name, runs in correct.items()}
    result = {"images": len(source), "accuracy": accuracy, "severities": list(config.severities), "seed": config.seed}
    run_folder.write_json(folder / "corruptions.json", {**result, "config": config.to_dict(), **run_folder.circumstances()})
    log.info("The table is in %s.", (folder / "corruptions.html").resolve())


def _correct(config, runs, source: Corrupted) -> dict[str, np.ndarray]:
    """Returns for each run which images it classifies correctly, bool `[n]`."""
    correct = {name: [] for name in runs}
    for batch in views.loaded(source, batch_size=config.batch_size, resize=source.size, size=source.size):
        real = batch["mask"] > 0
        for name, run in runs.items():
            predicted = np.asarray(_logits(run.model, run.method, run.params, batch["image"])).argmax(axis=-1)
            correct[name].append((predicted == batch["label"])[real])
    return {name: np.concatenate(parts) for name, parts in correct.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model, method, params, images):
    return apply(model, method, params, images)


def _rows(correct, runs, config) -> list[list[str]]:
    """Formats the rows in percent: clean, the mean over corruptions, and each corruption."""
    means = {run: np.mean([correct[name][run].mean(axis=0) for name in config.kinds], axis=0) for run in runs}
    rows = [[CLEAN, *(_with_interval(correct[CLEAN][run], config.seed) for run in runs)]]
    rows.append([MEAN, *(_with_interval(means[run], config.seed) for run in runs)])
    return rows + [
        [name.replace("_", " "), *(f"{100 * correct[name][run].mean():.1f}" for run in runs)] for name in config.kinds
    ]


def _with_interval(values: np.ndarray, seed: int) -> str:
    low, high = localization.interval(values, seed)
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _page(header, rows, notes, corrupted, config) -> str:
    """Renders the table, and the first image as the networks see it at the middle and the highest severity."""
    shown = sorted({sorted(config.severities)[len(config.severities) // 2], max(config.severities)})
    drawn = [
        report.picture(drawing.enlarged(corrupted(name, severity)[0]["image"], _SIDE), name.replace("_", " "))
        for severity in shown
        for name in config.kinds
    ]
    rows_of_pictures = [drawn[i : i + _PICTURES] for i in range(0, len(drawn), _PICTURES)]
    return report.page(
        "Accuracy on corrupted images",
        report.heading("Accuracy on corrupted images", 1),
        report.table(header, rows),
        *map(report.paragraph, notes),
        report.heading(f"The first image, at severity {' and '.join(map(str, shown))}"),
        report.pictures([""] * min(_PICTURES, len(drawn)), rows_of_pictures),
    )
