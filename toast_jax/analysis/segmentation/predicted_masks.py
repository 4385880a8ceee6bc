"""Segment new images with a tuned run: masks of labels, and pictures of them over the images."""

import logging
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from toast_jax.analysis import drawing
from toast_jax.data.images import image_files, pixels
from toast_jax.errors import InputError
from toast_jax.model.segmentation.counting import predict_pixels
from toast_jax.model.segmentation.segmenter import segment
from toast_jax.train.saved_run import SavedRun
from toast_jax.train.segmentation import mask_runs

log = logging.getLogger(__name__)


def write(run: SavedRun, paths: Iterable[str], folder: Path, *, pictures: bool) -> tuple[int, list[str]]:
    """Write `masks/*.png`, palette images of labels, and with `pictures` also `pictures/*.png`.

    A picture shows the image, the mask over it and, for a method that steers and without a sliding window, the selection.

    Returns:
      the number of masks, and a sentence for each image that could not be read.
    """
    view = mask_runs.eval_view(run.config, len(run.classes))
    predict, select = run.compiled(_predicted), run.compiled(_selection)
    palette = colors(len(run.classes))
    count, faults = 0, []
    for path in paths:
        try:
            image = pixels.decode_example(image_files.Files((path,), (0,), (image_files.UNLABELLED,))[0])
        except InputError as error:
            faults.append(str(error))
            continue
        sides = image.shape[:2]
        batch = {name: array[None] for name, array in view(image, np.zeros(sides, np.uint8)).items()}
        mask = np.asarray(predict(run.params, batch))[: sides[0], : sides[1]].astype(np.uint8)
        count += 1
        name = f"{count:05}_{Path(path).stem[:50]}.png"
        _save(folder / "masks" / name, mask, palette)
        if pictures:
            panels = [image, (0.4 * image + 0.6 * palette[mask]).round().astype(np.uint8)]
            if run.model.top_down and batch["image"].shape[1:3] == (1, 1):
                panels.append(drawing.overlay(image, np.asarray(select(run.params, batch["image"][:, 0, 0], batch["size"]))))
            _save(folder / "pictures" / name, drawing.side_by_side(panels))
        shown = np.bincount(mask.ravel(), minlength=len(run.classes)) / mask.size
        parts = (f"{run.classes[label]} {shown[label]:.0%}" for label in shown.argsort()[::-1][:3] if shown[label])
        log.info("%s: %s", path, ", ".join(parts))
    return count, faults


def colors(count: int) -> np.ndarray:
    """Return distinct colors of labels, uint8 `[count, 3]`: those of VOC, whose bits come from the bits of the label."""
    labels = np.arange(count)
    channels = [sum(((labels >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _save(path: Path, values: np.ndarray, palette: np.ndarray | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path)


def _predicted(model, method, params, batch):
    logits = mask_runs.of_windows(model, method, params, batch)
    return predict_pixels(logits[0], batch["rows"][0], batch["columns"][0])


def _selection(model, method, params, image, size):
    def call(model, image, rng=None):
        _, out = model.looks(image, maps=False)
        return jax.numpy.squeeze(model.backbone.on_grid(out["selection"][..., 0]), axis=0)

    return segment(model, method, params, image, size=size, call=call)
