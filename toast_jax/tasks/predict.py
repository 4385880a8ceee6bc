"""Classify images with a tuned run: `--config=configs/predict.py:run=FOLDER,images=FOLDER`."""

import csv
import logging
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.analysis import drawing, maps, views
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.images import image_files
from toast_jax.errors import InputError, listed, renaming
from toast_jax.model.steered import apply
from toast_jax.train import saved_run
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

SHOWN = 20  # lines on the console


def run(config: ConfigDict, folder: str) -> None:
    """Write `predictions.csv` (image, class, probability) and, with `config.attention`, `attention/*.png` to the folder.

    Rows are written batch by batch. A picture shows the image as the network sees it, beside the maps of `maps.look`.

    Raises:
      InputError: no such run, a run that is not a classifier, or no images. At the end: some images could not be decoded; all
        others have been predicted.
    """
    if not config.run or not config.images:
        raise InputError("Nothing to predict; write --config=configs/predict.py:run=RUN,images=FOLDER.")
    check_fields(config)
    folder = run_folder.writable(folder)
    source = image_files.unlabelled(config.images)
    with renaming(OF_SAVED):
        saved = saved_run.load_tuned(config.run, config.weights, config.top_down, config.module)
    look = saved.compiled(maps.look if config.attention else _classified)
    count, by_name = 0, {}
    faults: dict[int, str] = {}
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerow(("image", "class", "probability"))
        for batch in views.of_run(saved, source, config.batch_size, faults=faults):
            probabilities, by_name = jax.device_get(look(saved.params, batch["image"]))
            for i in np.flatnonzero((batch["mask"] > 0) & ~np.isin(batch["index"], list(faults))):
                best, path = int(probabilities[i].argmax()), source.paths[batch["index"][i]]
                row = (path, saved.classes[best], f"{probabilities[i, best]:.4f}")
                csv.writer(file).writerow(row)
                count += 1
                if count <= SHOWN:
                    log.info("%s  %s  %s", *reversed(row))
                if by_name:
                    drawn = [by_name[name][i] for name in maps.ORDER if name in by_name]
                    _draw(folder / "attention", count, path, batch["image"][i], drawn)
            file.flush()
    if count > SHOWN:
        log.info("... and %d more", count - SHOWN)
    if config.attention and not by_name:
        log.warning("No pictures: a ConvNeXt tuned by %s has neither attention nor a selection to draw.", saved.config.method)
    log.info("%d predictions are in %s.", count, folder / "predictions.csv")
    if faults:
        listing = listed([faults[i] for i in sorted(faults)], most=3)
        raise InputError(
            f"{len(faults)} of {len(source)} images were left out: {listing}; download them again, or remove them. "
            f"The predictions of the others are in {folder / 'predictions.csv'}."
        )


def _classified(model, method, params, images):
    """Return the probabilities of `maps.look`, without its maps."""
    return jax.nn.softmax(apply(model, method, params, images)), {}


def _draw(folder: Path, number: int, name: str, image: np.ndarray, by_map: list[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    picture = drawing.side_by_side([image, *(drawing.overlay(image, values) for values in by_map)])
    Image.fromarray(picture).save(folder / f"{number:05}_{Path(name).stem[:50]}.png")
