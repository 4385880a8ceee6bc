"""Measure how much attention is on the object: `--config=configs/attention.py:runs=A+B,objects=boxes.json`.

Without `objects`, deletion and insertion are measured instead.
"""

import dataclasses
import functools
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import annotations, comparison, localization, maps, perturbation, report, views
from toast_jax.config.check import check_fields
from toast_jax.data.images import selected, sources
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

_GRID = 14  # cells along a side of the baselines, if no network has a map
BASELINES = {"uniform": localization.uniform, "centre prior": localization.centre_prior}


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Images with annotated objects, as the runs see them; images whose object the crop cuts off are skipped.

    Attributes:
      source: n images.
      masks: bool `[n, S, S]`.
      cropped: number of skipped images.
    """

    source: Source
    masks: np.ndarray
    cropped: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: the scores `[n]` of one map of one method, by the name of the score."""

    method: str
    map: str
    scores: dict[str, np.ndarray]


def run(config: ConfigDict, folder: str) -> None:
    """Write `attention_metrics.json`, `.md` and `.html` to the folder.

    Raises:
      InputError: no runs, runs that cannot be compared (see `saved_run.load_compared`), no images, an image that cannot be
        decoded, or objects that do not fit.
    """
    if not config.runs or not config.images:
        raise InputError("Nothing to measure; write --config=configs/attention.py:runs=RUN+RUN,objects=BOXES.json.")
    check_fields(config)
    folder = run_folder.writable(folder)
    runs = comparison.open_runs(config, folder, log)
    rows, notes, facts = (_on_objects if config.objects else _without_objects)(config, runs, next(iter(runs.values())))
    summaries = [_summary(row, config.seed) for row in rows]
    header = ("method", "map", *(f"{name}, %" for name in summaries[0]))
    cells = [
        [row.method, row.map, *(report.with_interval(score["mean"], *score["interval"]) for score in summary.values())]
        for row, summary in zip(rows, summaries, strict=True)
    ]
    log.info("\n%s\n", report.columns(header, cells))
    for note in notes:
        log.info("%s", note)
    title = "How much attention is on the object" if config.objects else "Does the prediction depend on where attention is?"
    report.write(folder, "attention_metrics", title, header, cells, notes)
    measured = [{"method": row.method, "map": row.map, **summary} for row, summary in zip(rows, summaries, strict=True)]
    result = {"rows": measured, **facts, "seed": config.seed, "config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(folder / "attention_metrics.json", result)
    log.info("The table is in %s.", (folder / "attention_metrics.html").resolve())


# With objects.


def _on_objects(config, runs, first: SavedRun) -> tuple[list[Row], list[str], dict]:
    test = _annotated(config, first, config.images)
    val = _threshold_images(config, first)
    on_test = _all_maps(config, runs, test)
    picked_on, masks = (_all_maps(config, runs, val), val.masks) if val else (on_test, test.masks)
    rows, thresholds = [], {}
    for (name, label), values in on_test.items():
        best = int(localization.iou_at_thresholds(picked_on[name, label], masks).mean(axis=0).argmax())
        thresholds[f"{name}: {label}"] = float(localization.THRESHOLDS[best])
        rows.append(Row(name, label, _scores(values, test.masks, best, config.shares)))
    count, area, cropped = len(test.masks), float(test.masks.mean()), test.cropped
    notes = [
        f"{count} images, {area:.1%} of which are covered by objects; mean and 95 % bootstrap interval over images, seed "
        f"{config.seed}. {cropped} more images were skipped, as the crop cuts their objects off.",
        "The best threshold is picked for each row "
        + (f"on the {len(val.masks)} images of {config.threshold_split}." if val else "on the same images, which flatters it."),
    ]
    facts = {"images": count, "cropped_away": cropped, "area": area, "thresholds": thresholds}
    return rows, notes, facts | {"threshold_split": config.threshold_split if val else None}


def _all_maps(config, runs, images: Annotated) -> dict[tuple[str, str], np.ndarray]:
    """Compute the maps `[n, g, g]` of the baselines and of all runs, by method and name."""
    of_runs = {(name, label): values for name, run in runs.items() for label, values in _maps_of(run, images, config).items()}
    grid = next((values.shape[1] for values in of_runs.values()), _GRID)
    return _baselines(grid, len(images.masks)) | of_runs


def _baselines(grid: int, count: int) -> dict[tuple[str, str], np.ndarray]:
    """Return the maps `[count, g, g]` that look at no image, of the method "-"."""
    return {("-", label): np.stack([baseline(grid)] * count) for label, baseline in BASELINES.items()}


def _threshold_images(config, first: SavedRun) -> Annotated | None:
    """Open the images to pick the threshold on; None if there are none but those to measure."""
    split = config.threshold_split
    if config.images not in selected.SPLITS or split in ("", config.images):
        return None
    if split not in sources.split_names(first.config.data):
        log.info("The data has no split %s to pick a threshold on.", split)
        return None
    try:
        return _annotated(config, first, split)
    except InputError as error:
        raise InputError(
            f"The threshold cannot be picked on {split}; --config.threshold_split= picks it on {config.images}: {error}"
        ) from error


def _annotated(config, first: SavedRun, where: str) -> Annotated:
    data = first.config.data
    source, root = selected.open_images(data, where, first.classes, seed=first.config.seed, run=first.folder)
    source, object_masks = annotations.open_objects(config.objects, source, root, config.only_annotated)
    indices = selected.spread(len(source), config.most or len(source))
    masks = [annotations.view(object_masks[i], resize=data.resize, size=data.image_size) for i in indices]
    kept = [k for k, mask in enumerate(masks) if mask.any()]
    if not kept:
        raise InputError(
            f"Of none of the {len(masks)} images of {where} is there an object within the crop: check {config.objects}."
        )
    source = Subset(source, tuple(indices[k] for k in kept))
    return Annotated(source, np.stack([masks[k] for k in kept]), len(masks) - len(kept))


def _maps_of(run: SavedRun, images: Annotated, config) -> dict[str, np.ndarray]:
    """Compute all maps of a run, `[n, g, g]` by name."""
    look, parts = run.compiled(lambda *args: maps.look_closely(*args)[1]), []
    for batch in views.of_run(run, images.source, config.batch_size):
        by_name, real = jax.device_get(look(run.params, batch["image"])), batch["mask"] > 0
        parts.append({name: values[real] for name, values in by_name.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in maps.ALL if name in parts[0]}


def _scores(values: np.ndarray, masks: np.ndarray, best: int, shares) -> dict[str, np.ndarray]:
    threshold = localization.THRESHOLDS[best : best + 1]
    return {
        "energy inside": localization.energy_inside(values, masks),
        "pointing game": localization.pointing_game(values, masks),
        "IoU, best threshold": localization.iou_at_thresholds(values, masks, threshold)[:, 0],
        **{f"IoU of the highest {share:.0%}": localization.iou_of_highest(values, masks, share) for share in shares},
    }


# Without objects.


def _without_objects(config, runs, first: SavedRun) -> tuple[list[Row], list[str], dict]:
    source = views.choose(first, config.images, config.most)
    images, _ = views.all_of_run(first, source, config.batch_size)
    rows = []
    for name, run in runs.items():
        looked = comparison.look_closely(run, images, config.batch_size)
        probabilities = functools.partial(run.compiled(_probabilities), run.params)
        grid = next((values.shape[1] for values in looked.maps.values()), _GRID)
        by_label = {label: values for (_, label), values in _baselines(grid, len(images)).items()}
        by_label |= {label: looked.maps[label] for label in maps.ALL if label in looked.maps}
        for label, values in by_label.items():
            areas = [
                perturbation.areas(
                    probabilities, image, values[i], steps=config.steps, rng=np.random.default_rng((config.seed, i))
                )
                for i, image in enumerate(images)
            ]
            rows.append(Row(name, label, dict(zip(("deletion", "insertion"), np.array(areas).T, strict=True))))
        log.info("%s is done.", name)
    notes = [
        f"{len(images)} images; mean and 95 % bootstrap interval over images, seed {config.seed}. Scores are areas under the "
        f"probability of the predicted class while {config.steps} equal shares of the cells, highest first, are grayed out "
        "(deletion, low is good) or restored in a blurred image (insertion, high is good). A uniform map takes the cells in "
        "random order.",
    ]
    return rows, notes, {"images": len(images), "threshold_split": None}


def _probabilities(model, method, params, images):
    return jax.nn.softmax(apply(model, method, params, images))


# The table.


def _summary(row: Row, seed: int) -> dict:
    return {
        name: {"mean": float(np.mean(values)), "interval": localization.interval(values, seed)}
        for name, values in row.scores.items()
    }
