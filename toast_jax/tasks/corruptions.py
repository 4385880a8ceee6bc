"""Corruptions: `--config=configs/corrupt.py:runs=A+B`: how much accuracy is left on images that are worse."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import drawing, localization, report
from toast_jax.config.check import check_fields
from toast_jax.data.images import batches, chosen, corruptions, pixels
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.train import saved_run
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import told_in

log = logging.getLogger(__name__)

CLEAN, MEAN = "clean", "mean of corruptions"
_SIDE = 128  # pixels of a picture on the page, at least
_PICTURES = 5  # in a row


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """A source of views (see `images.eval_view`), corrupted; `name` "" leaves them as they are."""

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
        view = pixels.eval_view(pixels.decode_example(record), resize=self.resize, size=self.size)
        if self.name:
            view = corruptions.corrupt(view, self.name, self.severity, self.seed, index)
        return {**record, "image": view}


def run(config: ConfigDict, folder: str) -> None:
    """Writes `corruptions.json`, `.md` and `.html` to the folder: accuracy per corruption, the mean over severities.

    Raises:
      InputError: no runs, some that cannot be compared (see `saved_run.load_compared`), no images with classes, or a corruption
        or severity that there is not.
    """
    if not config.runs:
        raise InputError("Nothing to evaluate; write --config=configs/corrupt.py:runs=RUN+RUN.")
    check_fields(config)
    folder = run_folder.writable(folder)
    with told_in(folder / "log.txt", but=log):  # each network tells a dozen lines
        runs = saved_run.load_compared(config.runs, config.weights)
    one = next(iter(runs.values()))
    source, _ = chosen.open_images(one.config.data, config.images, one.classes)
    if not chosen.labelled(source):
        raise InputError(f"The images {config.images} have no classes, so no accuracy; give a split: train, val or test.")
    source = Subset(source, chosen.spread(len(source), config.most or len(source)))
    data = one.config.data
    of = functools.partial(Corrupted, source, data.resize, data.image_size, seed=config.seed)
    right = {CLEAN: _right(config, runs, of("", 0))}
    for name in config.kinds:
        each = [_right(config, runs, of(name, severity)) for severity in config.severities]
        right[name] = {run: np.stack([part[run] for part in each]) for run in runs}
        log.info("%-18s %s", name, ", ".join(f"{run} {100 * part.mean():.1f}" for run, part in right[name].items()))
    header, rows = ("accuracy, %", *runs), _rows(right, runs, config)
    notes = [
        f"{len(source)} images; severities averaged: {', '.join(map(str, config.severities))}; in brackets the 95 % bootstrap "
        f"interval over images, seed {config.seed}. Corruptions after Hendrycks & Dietterich, drawn here: numbers are not "
        "comparable with those on the images of ImageNet-C.",
    ]
    log.info("\n%s\n", report.columns(header, rows))
    (folder / "corruptions.md").write_text(report.markdown(header, rows) + "\n\n" + "\n".join(notes) + "\n")
    (folder / "corruptions.html").write_text(_page(header, rows, notes, of, config))
    accuracy = {name: {run: part.mean(axis=-1).tolist() for run, part in by_run.items()} for name, by_run in right.items()}
    told = {"images": len(source), "accuracy": accuracy, "severities": list(config.severities), "seed": config.seed}
    run_folder.write_json(folder / "corruptions.json", {**told, "config": config.to_dict(), **run_folder.circumstances()})
    log.info("The table is in %s.", (folder / "corruptions.html").resolve())


def _right(config, runs, source: Corrupted) -> dict[str, np.ndarray]:
    """Whether each run names each image rightly, bool `[n]`."""
    parts = {name: [] for name in runs}
    for batch in batches.eval_batches(source, batch_size=config.batch_size, resize=source.size, size=source.size):
        real = batch["mask"] > 0
        for name, saved in runs.items():
            named = np.asarray(_logits(saved.model, saved.method, saved.params, batch["image"])).argmax(axis=-1)
            parts[name].append((named == batch["label"])[real])
    return {name: np.concatenate(part) for name, part in parts.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(model, method, params, pixels):
    return apply(model, method, params, pixels)


def _rows(right, runs, config) -> list[list[str]]:
    """Clean, the mean of all, and each corruption; cells are percent."""
    of_image = {run: np.mean([right[name][run].mean(axis=0) for name in config.kinds], axis=0) for run in runs}
    rows = [[CLEAN, *(_with_interval(right[CLEAN][run], config.seed) for run in runs)]]
    rows.append([MEAN, *(_with_interval(of_image[run], config.seed) for run in runs)])
    return rows + [[name.replace("_", " "), *(f"{100 * right[name][run].mean():.1f}" for run in runs)] for name in config.kinds]


def _with_interval(values: np.ndarray, seed: int) -> str:
    low, high = localization.interval(values, seed)
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _page(header, rows, notes, of, config) -> str:
    """The table, and the first image as the networks see it at the middle and the highest severity."""
    shown = sorted({sorted(config.severities)[len(config.severities) // 2], max(config.severities)})
    kinds = [(name, severity) for severity in shown for name in config.kinds]
    drawn = [report.picture(drawing.enlarged(of(*kind)[0]["image"], _SIDE), kind[0].replace("_", " ")) for kind in kinds]
    rows_of_pictures = [drawn[i : i + _PICTURES] for i in range(0, len(drawn), _PICTURES)]
    return report.page(
        "Accuracy on corrupted images",
        report.heading("Accuracy on corrupted images", 1),
        report.table(header, rows),
        *map(report.paragraph, notes),
        report.heading(f"The first image, at severity {' and '.join(map(str, shown))}"),
        report.pictures([""] * min(_PICTURES, len(drawn)), rows_of_pictures),
    )
