"""Segment new images with a tuned run: masks of labels, and pictures of them over the images."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from toast_jax.analysis import drawing
from toast_jax.analysis.segmentation import looks, pictures
from toast_jax.data.images import image_files, pixels
from toast_jax.errors import InputError, fault_of
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)


def write(run: SavedRun, paths: Iterable[str], folder: Path, *, drawn: bool) -> tuple[int, list[str]]:
    """Write `masks/*.png`, palette images of labels, and if `drawn` also `pictures/*.png`.

    A picture shows the image and the panels of `pictures.panels`.

    Returns:
      the number of masks, and the fault of each image that could not be read.
    """
    segmented, palette = looks.compiled(run, with_maps=drawn), pictures.colors(len(run.classes))
    count, faults = 0, []
    for kind in ("masks", "pictures"):
        run_folder.remove_pictures(folder / kind)
    for path in paths:
        try:
            image = pixels.decode_example(image_files.UprightFiles((path,), (0,), (image_files.UNLABELLED,))[0])
        except InputError as error:
            faults.append(fault_of(error))
            continue
        result = segmented(image)
        count += 1
        name = f"{count:05}_{Path(path).stem[:50]}.png"
        (folder / "masks").mkdir(exist_ok=True)
        labels = Image.fromarray(result.mask)
        labels.putpalette(palette.ravel().tolist())
        labels.save(folder / "masks" / name)
        if drawn:
            panels = pictures.panels(image, result, palette)
            (folder / "pictures").mkdir(exist_ok=True)
            drawing.save(drawing.side_by_side([image, *panels.values()]), folder / "pictures" / name)
        shares = np.bincount(result.mask.ravel(), minlength=len(run.classes)) / result.mask.size
        parts = (f"{run.classes[label]} {shares[label]:.0%}" for label in shares.argsort()[::-1][:3] if shares[label])
        log.info("%s: %s", path, ", ".join(parts))
    return count, faults
