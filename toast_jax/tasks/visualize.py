"""Visualize: `--config=configs/visualize.py:runs=A+B,images=test`, with runs that have tuned something."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.analysis import comparison, drawing, maps, report
from toast_jax.config.check import check_fields
from toast_jax.data.images import chosen
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.train import saved_run
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import told_in

log = logging.getLogger(__name__)

_SIDE = 128  # pixels of a picture, at least
_ON_THE_PAGE = {"Attention and selection": (*maps.ORDER, maps.GRAD_CAM), "Attention rollout": (maps.ROLLOUT,)}
_LEGEND = {
    maps.FIRST: "First look: what the class token attends to in the last block, mean over heads, before anything is fed back.",
    maps.SELECTION: "Selection: how much of each token is fed back.",
    maps.LAST: "Last look: what the class token attends to in the look that is classified.",
    maps.GRAD_CAM: "Like Grad-CAM: a ConvNeXt has no attention; this is where its last map speaks for the class that it names.",
    maps.ROLLOUT: "Of the last look, through all blocks: 0.5 I + 0.5 A of each, A the mean over heads (Abnar & Zuidema, 2020).",
}
_COLOURS = "Yellow is high, dark blue is low, within each picture. Below: the class that the network names."
_DIFFERENCE = (
    "Where the last look attends more than the first (orange) and where less (purple), for networks that look twice; white is "
    "no difference. The scale is that of each picture."
)


def run(config: ConfigDict, folder: str) -> None:
    """Writes `comparison.html`, and for each run a folder with a picture of every image and `contact_sheet.png`.

    Raises:
      InputError: no runs, some that cannot be compared (see `saved_run.load_compared`), or no images.
    """
    if not config.runs or not config.images:
        raise InputError("Nothing to look at; write --config=configs/visualize.py:runs=RUN+RUN,images=FOLDER.")
    check_fields(config)
    folder = run_folder.writable(folder)
    with told_in(folder / "log.txt", but=log):  # each network tells a dozen lines
        runs = saved_run.load_compared(config.runs, config.weights)
    one = next(iter(runs.values()))
    source, _ = chosen.open_images(one.config.data, config.images, one.classes)
    source = Subset(source, chosen.spread(len(source), config.most))
    images, labels = comparison.views(source, one, config.batch_size)
    truths = [one.classes[label] if chosen.labelled(source) else "" for label in labels]
    names = [Path(source[i]["name"]).name for i in range(len(source))]
    looked = {}
    for name, saved in runs.items():
        looked[name] = comparison.look_closely(saved, images, config.batch_size)
        log.info("%s: %s", name, _draw(folder / name.replace("/", "_"), name, images, names, truths, looked[name]))
    page = folder / "comparison.html"
    page.write_text(_page(config, images, names, truths, looked))
    told = {
        name: [{"image": image, "named": named} for image, named in zip(names, found.named, strict=True)]
        for name, found in looked.items()
    }
    run_folder.write_json(
        folder / "visualize.json", {"runs": told, "truths": truths, "config": config.to_dict(), **run_folder.circumstances()}
    )
    log.info("%d images by %d runs are side by side in %s.", len(images), len(runs), page.resolve())


def _draw(folder: Path, run_name: str, images: np.ndarray, names: list[str], truths: list[str], looked) -> str:
    """A picture of each image, and one of all; returns what to tell."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i, image in enumerate(images):
        large = drawing.enlarged(image, _SIDE)
        truth = f", is {truths[i]}" if truths[i] else ""
        title = f"{names[i]} by {run_name}: named {looked.named[i]} ({looked.confidence[i]:.0%}){truth}"
        Image.fromarray(comparison.picture_of(large, title, looked, i)).save(
            folder / f"{i + 1:05}_{Path(names[i]).stem[:50]}.png"
        )
        rows.append(comparison.row_of(large, looked, i, title=f"named {looked.named[i]}{truth}"))
    Image.fromarray(drawing.stacked(rows)).save(folder / "contact_sheet.png")
    if not all(truths):
        return f"{len(images)} pictures are in {folder}."
    right = sum(named == truth for named, truth in zip(looked.named, truths, strict=True))
    return f"{right} of {len(images)} images named rightly; pictures are in {folder}."


def _page(config, images, names, truths, looked) -> str:
    large = [drawing.enlarged(image, _SIDE) for image in images]
    captions = [truth or name for truth, name in zip(truths, names, strict=True)]
    parts = [report.heading("Where the networks look", 1)]
    for title, wanted in _ON_THE_PAGE.items():
        shown = [one for one in wanted if any(one in found.maps for found in looked.values())]
        if shown:
            text = " ".join([*(_LEGEND[one] for one in shown), _COLOURS])
            parts += [report.heading(title), report.paragraph(text), comparison.grid(large, captions, truths, looked, shown)]
    if table := comparison.differences(large, captions, looked):
        parts += [report.heading("Last look less first"), report.paragraph(_DIFFERENCE), table]
    runs = "; ".join(f"{name} is {folder}" for name, folder in zip(looked, config.runs, strict=True))
    return report.page("Where the networks look", *parts, report.paragraph(f"Made by configs/visualize.py; {runs}.", "small"))
