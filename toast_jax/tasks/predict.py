"""Predict: `--config=configs/predict.py:run=FOLDER,images=FOLDER`, with a run that has tuned something."""

import csv
import functools
import logging
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.analysis import drawing, maps
from toast_jax.config.check import check_fields
from toast_jax.data.images import batches, files
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.train import saved_run
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

SHOWN = 20  # lines on the console


def run(config: ConfigDict, folder: str) -> None:
    """Writes `predictions.csv` (image, class, probability) and, if asked for, `attention/*.png` to the folder.

    A picture shows the image as the network sees it and the maps of `maps.look`: where the class token looks and, for networks
    that look twice, where it looked first and which tokens were fed back.

    Raises:
      InputError: no such run, one that is no classifier, or no images.
    """
    if not config.run or not config.images:
        raise InputError("Nothing to predict; write --config=configs/predict.py:run=RUN,images=FOLDER.")
    check_fields(config)
    folder = run_folder.writable(folder)
    source = files.unlabelled(config.images)
    saved = saved_run.load_tuned(config.run, config.weights)
    look = jax.jit(functools.partial(maps.look if config.attention else _named, saved.model, saved.method))
    data = saved.config.data
    loader = batches.eval_batches(source, batch_size=config.batch_size, resize=data.resize, size=data.image_size)
    rows = []
    for batch in loader:
        probabilities, found = jax.device_get(look(saved.params, batch["image"]))
        for i in np.flatnonzero(batch["mask"]):
            best = int(probabilities[i].argmax())
            name = source.paths[batch["index"][i]]
            rows.append((name, saved.classes[best], f"{probabilities[i, best]:.4f}"))
            if found:
                _draw(
                    folder / "attention",
                    len(rows),
                    name,
                    batch["image"][i],
                    [found[one][i] for one in maps.ORDER if one in found],
                )
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "class", "probability"), *rows])
    for name, label, probability in rows[:SHOWN]:
        log.info("%s  %s  %s", probability, label, name)
    if len(rows) > SHOWN:
        log.info("... and %d more", len(rows) - SHOWN)
    if config.attention and not found:
        log.warning("No pictures: a ConvNeXt tuned by %s has neither attention nor a selection to draw.", saved.config.method)
    log.info("%d predictions are in %s.", len(rows), folder / "predictions.csv")


def _named(model, method, params, pixels):
    return jax.nn.softmax(apply(model, method, params, pixels)), {}


def _draw(folder: Path, number: int, name: str, image: np.ndarray, found: list[np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    picture = drawing.side_by_side([image, *(drawing.overlay(image, one) for one in found)])
    Image.fromarray(picture).save(folder / f"{number:05}_{Path(name).stem[:50]}.png")
