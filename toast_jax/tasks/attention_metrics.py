"""Measure how much attention is on the object: `--config=configs/attention.py:runs=A+B,objects=boxes.json`.

Without `objects`, deletion and insertion are measured instead.
"""

import dataclasses
import functools
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import annotations, bootstrap, comparison, localization, maps, perturbation, refocusing, report, views
from toast_jax.analysis.refocusing import Annotated, Measured
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
_OF_BACKBONE = tuple(maps.PAIRS[kind] for kind in ("attention", maps.ROLLOUT))  # their first looks depend on no head
_OF_LAST_LOOK = (maps.LAST, maps.ROLLOUT, maps.GRADIENT, maps.GRAD_CAM)


@dataclasses.dataclass(frozen=True)
class Objects:
    """Images with annotated objects; images whose object the crop cuts off are skipped.

    Attributes:
      source: n images.
      masks: bool `[n, S, S]`, as the runs see them.
      cropped: number of skipped images.
    """

    source: Source
    masks: np.ndarray
    cropped: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: scores `[n]` by name.

    Attributes:
      labels: the first cells, by the name of the column; they are also in the JSON file.
    """

    labels: dict[str, str]
    scores: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with the same columns; `key` is their name in the JSON file."""

    key: str
    title: str
    rows: list[Row]
    notes: list[str]


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
    tables, facts = (_on_objects if config.objects else _without_objects)(config, runs, next(iter(runs.values())))
    sections, result = [], {}
    for table in tables:
        summaries = [bootstrap.summary(row.scores, config.seed) for row in table.rows]
        header = (*table.rows[0].labels, *(f"{name}, %" for name in summaries[0]))
        cells = [
            [*row.labels.values(), *(report.with_interval(score["mean"], *score["interval"]) for score in summary.values())]
            for row, summary in zip(table.rows, summaries, strict=True)
        ]
        sections.append(report.Section(table.title, header, cells, table.notes))
        result[table.key] = [{**row.labels, **summary} for row, summary in zip(table.rows, summaries, strict=True)]
        log.info("\n%s\n\n%s\n", table.title, report.columns(header, cells))
        for note in table.notes:
            log.info("%s", note)
    report.write(folder, "attention_metrics", sections)
    result |= {**facts, "seed": config.seed, "config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(folder / "attention_metrics.json", result)
    log.info("The tables are in %s.", (folder / "attention_metrics.html").resolve())


# With objects.


def _on_objects(config, runs, first: SavedRun) -> tuple[list[Table], dict]:
    objects, for_thresholds = _objects(config, first, config.images), _threshold_images(config, first)
    test = _annotated(config, first, objects)
    val = _annotated(config, first, for_thresholds) if for_thresholds else None
    measured = {}
    for name, run in runs.items():
        measured[name] = refocusing.measure(
            run, test, val, seed=config.seed, batch_size=config.batch_size, shares=config.shares
        )
        log.info("%s is measured.", name)
    grid = next((values.shape[1] for one in measured.values() for values in one.seen.values()), _GRID)
    picked_on = val or test
    of_baselines = refocusing.scored(
        _baselines(grid, len(test.masks)), test.masks, _baselines(grid, len(picked_on.masks)), picked_on, config.shares
    )
    scored = {"-": of_baselines} | {name: (network.scores, network.thresholds) for name, network in measured.items()}
    area = float(test.masks.mean())
    notes = [
        f"{len(test.masks)} images, {area:.1%} of which are covered by objects; mean and 95 % bootstrap interval over images, "
        f"seed {config.seed}. {objects.cropped} more images were skipped, as the crop cuts their objects off.",
        "The best threshold is picked for each row "
        + (f"on the {len(val.masks)} images of {config.threshold_split}." if val else "on the same images, which flatters it."),
    ]
    rows = [
        Row({"method": name, "map": label}, scores) for name, (by_map, _) in scored.items() for label, scores in by_map.items()
    ]
    tables = [
        Table("rows", "How much attention is on the object", rows, notes),
        *_differences(runs, measured),
        *_exchange(measured, config.seed),
    ]
    thresholds = {f"{name}: {label}": at for name, (_, by_map) in scored.items() for label, at in by_map.items()}
    return tables, {
        "images": len(test.masks),
        "cropped_away": objects.cropped,
        "area": area,
        "thresholds": {row: at.region for row, at in thresholds.items()},
        "box_thresholds": {row: at.boxes for row, at in thresholds.items()},
        "threshold_split": config.threshold_split if val else None,
    }


def _baselines(grid: int, count: int) -> dict[str, np.ndarray]:
    """Return the maps `[count, g, g]` that look at no image, of the method "-"."""
    return {label: np.stack([baseline(grid)] * count) for label, baseline in BASELINES.items()}


def _differences(runs: dict[str, SavedRun], measured: dict[str, Measured]) -> list[Table]:
    """Compare looks and networks image by image; no table if there is a single network, which looks once."""
    twice = [name for name, network in measured.items() if maps.FIRST in network.seen]
    reference, *others = measured
    compared = [(name, last, name, first) for name in twice for first, last in maps.PAIRS.values()]
    for name in [name for name in measured if name not in twice]:
        frozen = [other for other in twice if _same_backbone(runs[name], runs[other])][:1]
        compared += [(name, last, other, first) for other in frozen for first, last in _OF_BACKBONE]
    compared += [(name, label, reference, label) for name in others for label in _OF_LAST_LOOK]
    rows = []
    for name, label, other, before in compared:
        scores, subtracted = measured[name].scores, measured[other].scores
        if label in scores and before in subtracted:
            labels = {"method": name, "map": label, "minus": before if name == other else f"{other}: {before}"}
            rows.append(Row(labels, bootstrap.difference(scores[label], subtracted[before])))
    notes = [
        "Differences image by image, in percentage points. The first look of a network that looks twice is that of its frozen "
        "backbone.",
    ]
    return [Table("differences", "What changes", rows, notes)] if rows else []


def _same_backbone(a: SavedRun, b: SavedRun) -> bool:
    return all(a.config.backbone[field] == b.config.backbone[field] for field in ("family", "size", "patch", "weights"))


def _exchange(measured: dict[str, Measured], seed: int) -> list[Table]:
    """Tabulate accuracies on exchanged backgrounds; no table for images of fewer than two classes."""
    scores = {name: network.exchange for name, network in measured.items() if network.exchange}
    if not scores:
        log.info("Backgrounds are not exchanged, as the images do not have two classes or more.")
        return []
    reference, *others = scores
    rows = [Row({"method": name}, exchange) for name, exchange in scores.items()]
    rows += [
        Row({"method": f"{name} minus {reference}"}, bootstrap.difference(scores[name], scores[reference])) for name in others
    ]
    notes = [
        f"Accuracy of the same objects on their own background, on that of another class, and on another one of their class "
        f"(backgrounds drawn with seed {seed}). Drop: the first minus the second. Gap: the third minus the second, which have "
        "the same edges from pasting.",
    ]
    return [Table("exchange", "Does the prediction depend on the background?", rows, notes)]


def _threshold_images(config, first: SavedRun) -> Objects | None:
    """Open the images to pick the thresholds on; None if there are none but those to measure."""
    split = config.threshold_split
    if config.images not in selected.SPLITS or split in ("", config.images):
        return None
    if split not in sources.split_names(first.config.data):
        log.info("The data has no split %s to pick a threshold on.", split)
        return None
    try:
        return _objects(config, first, split)
    except InputError as error:
        raise InputError(
            f"The threshold cannot be picked on {split}; --config.threshold_split= picks it on {config.images}: {error}"
        ) from error


def _objects(config, first: SavedRun, where: str) -> Objects:
    data = first.config.data
    source, root = selected.open_images(data, where, first.classes, seed=first.config.seed, run=first.folder)
    source, object_masks = annotations.open_objects(config.objects, source, root, config.only_annotated)
    indices = selected.spread(len(source), config.most or len(source))
    masks = [annotations.view(object_masks[i], data) for i in indices]
    kept = [k for k, mask in enumerate(masks) if mask.any()]
    if not kept:
        raise InputError(
            f"Of none of the {len(masks)} images of {where} is there an object within the crop: check {config.objects}."
        )
    source = Subset(source, tuple(indices[k] for k in kept))
    return Objects(source, np.stack([masks[k] for k in kept]), len(masks) - len(kept))


def _annotated(config, first: SavedRun, objects: Objects) -> Annotated:
    """Load the images."""
    images, labels = views.all_of_run(first, objects.source, config.batch_size)
    return Annotated(images, objects.masks, labels if selected.labelled(objects.source) else np.full_like(labels, -1))


# Without objects.


def _without_objects(config, runs, first: SavedRun) -> tuple[list[Table], dict]:
    source = views.choose(first, config.images, config.most)
    images, _ = views.all_of_run(first, source, config.batch_size)
    rows = []
    for name, run in runs.items():
        looked = comparison.look_closely(run, images, config.batch_size)
        probabilities = functools.partial(run.compiled(_probabilities), run.params)
        grid = next((values.shape[1] for values in looked.maps.values()), _GRID)
        by_label = _baselines(grid, len(images)) | {label: looked.maps[label] for label in maps.ALL if label in looked.maps}
        for label, values in by_label.items():
            areas = [
                perturbation.areas(
                    probabilities, image, values[i], steps=config.steps, rng=np.random.default_rng((config.seed, i))
                )
                for i, image in enumerate(images)
            ]
            scores = dict(zip(("deletion", "insertion"), np.array(areas).T, strict=True))
            rows.append(Row({"method": name, "map": label}, scores))
        log.info("%s is done.", name)
    notes = [
        f"{len(images)} images; mean and 95 % bootstrap interval over images, seed {config.seed}. Scores are areas under the "
        f"probability of the predicted class while {config.steps} equal shares of the cells, highest first, are grayed out "
        "(deletion, low is good) or restored in a blurred image (insertion, high is good). A uniform map takes the cells in "
        "random order.",
    ]
    title = "Does the prediction depend on where attention is?"
    return [Table("rows", title, rows, notes)], {"images": len(images), "threshold_split": None}


def _probabilities(model, method, params, images):
    return jax.nn.softmax(apply(model, method, params, images))
