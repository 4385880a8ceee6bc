"""Classify images with a tuned run: `--config=configs/predict.py:run=RUN,images=FOLDER`."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import drawing, maps, views
from toast_jax.analysis.segmentation import predicted_masks
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.images import selected
from toast_jax.errors import InputError, listed, renaming
from toast_jax.model import families
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply
from toast_jax.train import saved_run
from toast_jax.workdir import predictions, run_folder

log = logging.getLogger(__name__)

SHOWN = 20  # predictions on the console
SHOWN_FAULTS = 3  # images that the error at the end names


def run(config: ConfigDict, folder: str) -> None:
    """Write `predictions.csv` (image, class, probability) and, with `config.attention`, `attention/*.png` to the folder.

    Rows are written batch by batch. A picture shows the image as the network sees it, beside the maps of `maps.look`.
    `config.probabilities` and `config.npz` are those of `predictions.writer`. A run of segmentation writes masks instead.

    Raises:
      InputError: no such run, a run of language, no images, or probabilities of a run of segmentation. At the end: some images
        could not be decoded; all others have been predicted.
    """
    if not config.run or not config.images:
        raise InputError("Nothing to predict; write --config=configs/predict.py:run=RUN,images=FOLDER.")
    check_fields(config)
    paths = selected.each_path(config.images)
    first = next(paths, None)
    if first is None:
        raise InputError(f"There are no images in {config.images}: give a folder, a table, or paths, one per line.")
    with renaming(OF_SAVED):
        saved = saved_run.load_tuned(config.run, config.weights, config.top_down, config.module, masks=True)
    segments = families.reads(saved.config) == "masks"
    if segments and (asked := [f"--config.{name}=False" for name in ("probabilities", "npz") if config[name]]):
        raise InputError(
            f"The run in {config.run} segments images, for which masks alone are written; set {' and '.join(asked)}."
        )
    folder = run_folder.writable(folder)
    if segments:
        _segment(saved, itertools.chain([first], paths), folder, config.attention)
        return
    run_folder.remove_pictures(folder / "attention")
    look = saved.compiled(maps.look if config.attention else classified)
    count, left_out, pictures, rate = 0, 0, 0, Rate()
    faults: list[str] = []
    with predictions.writer(folder, saved.classes, probabilities=config.probabilities, arrays=config.npz) as write:
        for batch, result in classify(saved, look, views.stream(saved, itertools.chain([first], paths), config.batch_size)):
            probabilities, by_name = jax.device_get(result)
            rate.count(len(batch.paths))
            rows = list(batch.paths)
            for i, path in batch.paths.items():
                count += 1
                if count <= SHOWN:
                    best = int(probabilities[i].argmax())
                    log.info("%.4f  %s  %s", probabilities[i, best], saved.classes[best], path)
                if drawn := [by_name[name][i] for name in maps.ORDER if name in by_name]:
                    pictures += 1
                    _draw(folder / "attention", count, path, batch.image[i], drawn)
            write(list(batch.paths.values()), probabilities[rows])
            left_out += len(batch.faults)
            faults += batch.faults[: SHOWN_FAULTS - len(faults)]
    if count > SHOWN:
        log.info("... and %d more", count - SHOWN)
    if config.attention and count and not pictures:
        log.warning("No pictures: a ConvNeXt tuned by %s has neither attention nor a selection to draw.", saved.config.method)
    log.info("%d predictions are in %s%s.", count, folder / predictions.TABLE, rate)
    if left_out:
        listing = ", ".join(faults) + (f" and {left_out - len(faults)} more" if left_out > len(faults) else "")
        others = f" The predictions of the others are in {folder / predictions.TABLE}." if count else ""
        raise InputError(
            f"{left_out} of {count + left_out} images were left out: {listing}; download them again, or remove them.{others}"
        )


def _segment(saved: saved_run.SavedRun, paths: Iterable[str], folder: Path, pictures: bool) -> None:
    """Write masks instead of a table; see `predicted_masks.write`."""
    count, faults = predicted_masks.write(saved, paths, folder, drawn=pictures)
    log.info("%d masks are in %s.", count, folder / "masks")
    if faults:
        listing = listed(faults, most=SHOWN_FAULTS)
        raise InputError(
            f"{len(faults)} of {count + len(faults)} images were left out: {listing}; download them again, or remove them."
        )


class Rate:
    """Measures images per second after the first batch, which includes compilation; `str` gives the end of a sentence."""

    def __init__(self):
        self._started, self._images, self._seconds = 0.0, 0, 0.0

    def count(self, images: int) -> None:
        now = time.perf_counter()
        if self._started:
            self._images, self._seconds = self._images + images, now - self._started
        else:
            self._started = now

    def __str__(self) -> str:
        return f", {self._images / self._seconds:,.1f} images/s after the first batch" if self._seconds else ""


def classify(saved: saved_run.SavedRun, look: Callable, batches: Iterable[views.Streamed]) -> Iterator[tuple]:
    """Yield each batch with its result while the device computes the next one."""
    waiting = None
    for batch in batches:
        dispatched = batch, look(saved.params, batch.image)
        if waiting:
            yield waiting
        waiting = dispatched
    if waiting:
        yield waiting


def classified(model: Steered, method: Method, params: dict, images: jax.Array) -> tuple[jax.Array, dict]:
    """Return the probabilities of `maps.look`, without its maps."""
    return jax.nn.softmax(apply(model, method, params, images)), {}


def _draw(folder: Path, number: int, name: str, image: np.ndarray, by_map: list[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    picture = drawing.side_by_side([image, *(drawing.overlay(image, values) for values in by_map)])
    drawing.save(picture, folder / f"{number:05}_{Path(name).stem[:50]}.png")
