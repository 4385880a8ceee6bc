"""Visualize where tuned runs look: `--config=configs/visualize.py:runs=A+B,images=test`."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import comparison, drawing, maps, report, views
from toast_jax.analysis.segmentation import looks, pictures
from toast_jax.config.check import check_fields
from toast_jax.data.images import pixels, selected
from toast_jax.data.images.segmentation import sets
from toast_jax.errors import InputError, with_remedy
from toast_jax.model import families
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

_SIDE = 128  # least width of a picture, in pixels
_ON_THE_PAGE = {"Attention and selection": (*maps.ORDER, maps.GRAD_CAM), "Attention rollout": (maps.ROLLOUT,)}
_LEGEND = {
    maps.FIRST: "First look: attention of the class token in the last block, averaged over heads, before the feedback.",
    maps.SELECTION: "Selection: how much of each token is fed back.",
    maps.LAST: "Last look: attention of the class token in the look that is classified.",
    maps.GRAD_CAM: "Like Grad-CAM: a ConvNeXt has no attention; this is the evidence in its last feature map for the predicted "
    "class.",
    maps.ROLLOUT: "Rollout: attention of the last look followed through all blocks, 0.5 I + 0.5 A for each, with A the mean "
    "over heads (Abnar & Zuidema, 2020).",
}
_COLOURS = "Yellow is high and dark blue is low, scaled for each picture. Below: the predicted class."
_OF_MASKS = (
    "Prediction: the class of every pixel, in colors. First and last look: attention of all patches in the last block, "
    f"averaged over heads. {_LEGEND[maps.SELECTION]} Yellow is high and dark blue is low, scaled for each picture. Below: the "
    "mIoU of the image over the classes in its mask."
)
_DIFFERENCE = (
    "Networks that look twice: where the last look attends more than the first (orange) or less (purple), scaled for each "
    "picture; white is no difference."
)


def run(config: ConfigDict, folder: str) -> None:
    """Write `comparison.html`, and for each run a folder with a picture of every image and `contact_sheet.png`.

    Runs of segmentation have no contact sheet, and their pictures show masks instead of classes.

    Raises:
      InputError: no runs, runs that cannot be compared (see `saved_run.load_compared`), no images, or an image that cannot be
        decoded.
    """
    if not config.runs or not config.images:
        raise InputError("Nothing to look at; write --config=configs/visualize.py:runs=RUN+RUN,images=FOLDER.")
    check_fields(config)
    folder = run_folder.writable(folder)
    runs = comparison.open_runs(config, folder, log, masks=True)
    first = next(iter(runs.values()))
    if families.reads(first.config) == "masks":
        return _segment(config, folder, runs)
    source = views.choose(first, config.images, config.most)
    images, labels = views.all_of_run(first, source, config.batch_size)
    truths = [first.classes[label] if selected.labelled(source) else "" for label in labels]
    names = [Path(source[i]["name"]).name for i in range(len(source))]
    looked = {}
    for name, run in runs.items():
        looked[name] = comparison.look_closely(run, images, config.batch_size)
        log.info("%s: %s", name, _draw(folder / name.replace("/", "_"), name, images, names, truths, looked[name]))
    page = folder / "comparison.html"
    page.write_text(_page(config, images, names, truths, looked))
    predictions = {
        name: [{"image": image, "named": named} for image, named in zip(names, look.named, strict=True)]
        for name, look in looked.items()
    }
    result = {"runs": predictions, "truths": truths, "config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(folder / "visualize.json", result)
    log.info("%d images by %d runs are side by side in %s.", len(images), len(runs), page.resolve())


def _segment(config: ConfigDict, folder: Path, runs: dict[str, SavedRun]) -> None:
    """Write the same files of runs of segmentation."""
    first = next(iter(runs.values()))
    names, images, truths = _with_masks(first, config.images, config.most)
    palette, looked = pictures.colors(len(first.classes)), {}
    for name, run in runs.items():
        segmented, target = looks.compiled(run), folder / name.replace("/", "_")
        target.mkdir(exist_ok=True)
        run_folder.remove_pictures(target)
        looked[name] = [segmented(image) for image in images]
        for i, image in enumerate(images):
            panels = {"image": image, **pictures.panels(image, looked[name][i], palette)}
            picture = drawing.side_by_side([drawing.titled(panel, title, 1) for title, panel in panels.items()])
            drawing.save(picture, target / f"{i + 1:05}_{Path(names[i]).stem[:50]}.png")
        log.info("%s: %d pictures are in %s.", name, len(images), target)
    sources = "; ".join(f"{name} is {place}" for name, place in zip(looked, config.runs, strict=True))
    page = report.page(
        "What the networks segment",
        report.heading("What the networks segment, and where they look", 1),
        report.paragraph(_OF_MASKS),
        pictures.grid(images, names, truths, looked, palette, _SIDE),
        report.paragraph(f"Made by configs/visualize.py; {sources}.", "small"),
    )
    (folder / "comparison.html").write_text(page)
    scores = {
        name: [
            {"image": image, "mean_iou": pictures.agreement(truth, own.mask, len(palette))}
            for image, truth, own in zip(names, truths, by_image, strict=True)
        ]
        for name, by_image in looked.items()
    }
    run_folder.write_json(folder / "visualize.json", {"runs": scores, "config": config.to_dict(), **run_folder.circumstances()})
    log.info("%d images by %d runs are side by side in %s.", len(images), len(runs), (folder / "comparison.html").resolve())


def _with_masks(run: SavedRun, images: str, most: int) -> tuple[list[str], list[np.ndarray], list[np.ndarray | None]]:
    """Return names, images uint8 `[H, W, 3]` and labels `[H, W]`, None without a mask, of a split or of files."""
    if images in selected.SPLITS and run.config.data.splits[images]:
        source = sets.open_split(run.config.data, images)
        places = selected.spread(len(source), most)
        pairs = [source[i] for i in places]
        return [Path(source.name(i)).name for i in places], [image for image, _ in pairs], [labels for _, labels in pairs]
    files, _ = selected.open_images(run.config.data, images)
    examples = [files[i] for i in selected.spread(len(files), most)]
    names = [Path(example["name"]).name for example in examples]
    with with_remedy("download it again, or remove it"):
        return names, [pixels.decode_example(example) for example in examples], [None] * len(examples)


def _draw(folder: Path, run_name: str, images: np.ndarray, names: list[str], truths: list[str], looked) -> str:
    """Draw each image, and a contact sheet of all; return a line to log."""
    folder.mkdir(exist_ok=True)
    run_folder.remove_pictures(folder)
    rows = []
    for i, image in enumerate(images):
        large = drawing.enlarged(image, _SIDE)
        truth = f", true class {truths[i]}" if truths[i] else ""
        title = f"{names[i]} by {run_name}: predicted {looked.named[i]} ({looked.confidence[i]:.0%}){truth}"
        picture = comparison.picture_of(large, title, looked, i)
        drawing.save(picture, folder / f"{i + 1:05}_{Path(names[i]).stem[:50]}.png")
        rows.append(comparison.row_of(large, looked, i, title=looked.named[i] + (f" (true: {truths[i]})" if truths[i] else "")))
    drawing.save(drawing.stacked(rows), folder / "contact_sheet.png")
    if not all(truths):
        return f"{len(images)} pictures are in {folder}."
    correct = sum(named == truth for named, truth in zip(looked.named, truths, strict=True))
    return f"{correct} of {len(images)} images are classified correctly; pictures are in {folder}."


def _page(config, images, names, truths, looked) -> str:
    large = [drawing.enlarged(image, _SIDE) for image in images]
    captions = [truth or name for truth, name in zip(truths, names, strict=True)]
    parts = [report.heading("Where the networks look", 1)]
    for title, candidates in _ON_THE_PAGE.items():
        shown = [name for name in candidates if any(name in look.maps for look in looked.values())]
        if shown:
            text = " ".join([*(_LEGEND[name] for name in shown), _COLOURS])
            parts += [report.heading(title), report.paragraph(text), comparison.grid(large, captions, truths, looked, shown)]
    if table := comparison.differences(large, captions, looked):
        parts += [report.heading("Last look minus first"), report.paragraph(_DIFFERENCE), table]
    runs = "; ".join(f"{name} is {folder}" for name, folder in zip(looked, config.runs, strict=True))
    return report.page("Where the networks look", *parts, report.paragraph(f"Made by configs/visualize.py; {runs}.", "small"))
