"""Attention metrics: `--config=configs/attention.py:runs=A+B,objects=boxes.json`: how much attention is on the object.

Without objects: deletion and insertion.
"""

import dataclasses
import functools
import logging

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import comparison, localization, maps, objects, perturbation, report
from toast_jax.config.check import check_fields
from toast_jax.data.images import batches, chosen
from toast_jax.data.images.sources import Source
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.model.steered import apply
from toast_jax.train import saved_run
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import told_in

log = logging.getLogger(__name__)

_GRID = 14  # cells along a side of the maps that look at nothing, where no map says how many
BASELINES = {"uniform": localization.uniform, "centre prior": localization.centre_prior}


@dataclasses.dataclass(frozen=True)
class Annotated:
    """Images with objects, as the runs see them; where none of an object is left of the crop, the image is left out.

    Attributes:
      source: n images.
      masks: bool `[n, S, S]`.
      cropped: how many were left out.
    """

    source: Source
    masks: np.ndarray
    cropped: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: scores `[n]` of one map of one method, by the name of the score."""

    method: str
    map: str
    scores: dict[str, np.ndarray]


def run(config: ConfigDict, folder: str) -> None:
    """Writes `attention_metrics.json`, `.md` and `.html` to the folder.

    Raises:
      InputError: no runs, some that cannot be compared (see `saved_run.load_compared`), no images, or objects that do not fit.
    """
    if not config.runs or not config.images:
        raise InputError("Nothing to measure; write --config=configs/attention.py:runs=RUN+RUN,objects=BOXES.json.")
    check_fields(config)
    folder = run_folder.writable(folder)
    with told_in(folder / "log.txt", but=log):  # each network tells a dozen lines
        runs = saved_run.load_compared(config.runs, config.weights)
    one = next(iter(runs.values()))
    rows, notes, facts = (_on_objects if config.objects else _without_objects)(config, runs, one)
    numbers = [_numbers(row, config.seed) for row in rows]
    header = ("method", "map", *(f"{name}, %" for name in numbers[0]))
    lines = [[row.method, row.map, *map(_cell, one.values())] for row, one in zip(rows, numbers, strict=True)]
    log.info("\n%s\n", report.columns(header, lines))
    for note in notes:
        log.info("%s", note)
    (folder / "attention_metrics.md").write_text(report.markdown(header, lines) + "\n\n" + "\n".join(notes) + "\n")
    title = "How much attention is on the object" if config.objects else "Does the class hang on where attention is?"
    parts = [report.heading(title, 1), report.table(header, lines), *map(report.paragraph, notes)]
    (folder / "attention_metrics.html").write_text(report.page(title, *parts))
    measured = [{"method": row.method, "map": row.map, **one} for row, one in zip(rows, numbers, strict=True)]
    told = {"rows": measured, **facts, "seed": config.seed, "config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(folder / "attention_metrics.json", told)
    log.info("The table is in %s.", (folder / "attention_metrics.html").resolve())


# With objects.


def _on_objects(config, runs, one) -> tuple[list[Row], list[str], dict]:
    test = _annotated(config, one, config.images)
    val = _threshold_images(config, one)
    found = {name: _looked(saved, test, config.batch_size) for name, saved in runs.items()}
    grid = next((values.shape[1] for by_map in found.values() for values in by_map.values()), _GRID)
    every = [("-", name, np.stack([of(grid)] * len(test.masks))) for name, of in BASELINES.items()]
    every += [(name, one, values) for name, by_map in found.items() for one, values in by_map.items()]
    if val is None:
        picking = {(name, one): values for name, one, values in every}, test.masks
    else:
        on_val = {("-", name): np.stack([of(grid)] * len(val.masks)) for name, of in BASELINES.items()}
        for name, saved in runs.items():
            on_val |= {(name, one): values for one, values in _looked(saved, val, config.batch_size).items()}
        picking = on_val, val.masks
    rows, thresholds = [], {}
    for name, one, values in every:
        best = int(localization.iou_at_thresholds(picking[0][name, one], picking[1]).mean(axis=0).argmax())
        thresholds[f"{name}: {one}"] = float(localization.THRESHOLDS[best])
        rows.append(Row(name, one, _scores(values, test.masks, best, config.shares)))
    count = len(test.masks)
    area, cropped = test.masks.mean(), test.cropped
    notes = [
        f"{count} images, of which objects cover {area:.1%}; mean and 95 % bootstrap interval over images, seed {config.seed}. "
        f"{cropped} more were left out, as the crop cuts their objects off.",
        "The best threshold is picked for each row "
        + (f"on the {len(val.masks)} images of {config.threshold_split}." if val else "on the same images, which flatters it."),
    ]
    facts = {"images": count, "cropped_away": cropped, "area": float(area), "thresholds": thresholds}
    return rows, notes, facts | {"threshold_split": config.threshold_split if val else None}


def _threshold_images(config, one) -> Annotated | None:
    """The images that the threshold is picked on, or None if it has to be those that it is measured on."""
    split = config.threshold_split
    if config.images not in chosen.SPLITS or split in ("", config.images):
        return None
    if split not in chosen.SPLITS or not one.config.data.splits[split]:
        log.info("The data has no split %s to pick a threshold on.", split)
        return None
    try:
        return _annotated(config, one, split)
    except InputError as error:
        raise InputError(
            f"The threshold cannot be picked on {split}; --config.threshold_split= picks it on {config.images}: {error}"
        ) from error


def _annotated(config, one: SavedRun, where: str) -> Annotated:
    data = one.config.data
    source, root = chosen.open_images(data, where, one.classes)
    source, given = objects.open_objects(config.objects, source, root, config.only_annotated)
    indices = chosen.spread(len(source), config.most or len(source))
    seen = [objects.view(given[i], resize=data.resize, size=data.image_size) for i in indices]
    kept = [k for k, mask in enumerate(seen) if mask.any()]
    if not kept:
        raise InputError(
            f"Of none of the {len(seen)} images of {where} is there an object within the crop: check {config.objects}."
        )
    return Annotated(Subset(source, tuple(indices[k] for k in kept)), np.stack([seen[k] for k in kept]), len(seen) - len(kept))


def _looked(saved: SavedRun, images: Annotated, batch_size: int) -> dict[str, np.ndarray]:
    """All maps of a run, `[n, g, g]`."""
    look, data, parts = jax.jit(functools.partial(_close, saved.model, saved.method)), saved.config.data, []
    for batch in batches.eval_batches(images.source, batch_size=batch_size, resize=data.resize, size=data.image_size):
        found, real = jax.device_get(look(saved.params, batch["image"])), batch["mask"] > 0
        parts.append({name: values[real] for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in maps.ALL if name in parts[0]}


def _close(model, method, params, images):
    return maps.look_closely(model, method, params, images)[1]


def _scores(values: np.ndarray, masks: np.ndarray, best: int, shares) -> dict[str, np.ndarray]:
    threshold = localization.THRESHOLDS[best : best + 1]
    return {
        "energy inside": localization.energy_inside(values, masks),
        "pointing game": localization.pointing_game(values, masks),
        "IoU, best threshold": localization.iou_at_thresholds(values, masks, threshold)[:, 0],
        **{f"IoU of the highest {share:.0%}": localization.iou_of_highest(values, masks, share) for share in shares},
    }


# Without.


def _without_objects(config, runs, one) -> tuple[list[Row], list[str], dict]:
    source, _ = chosen.open_images(one.config.data, config.images, one.classes)
    source = Subset(source, chosen.spread(len(source), config.most or len(source)))
    images, _ = comparison.views(source, one, config.batch_size)
    rows = []
    for name, saved in runs.items():
        looked = comparison.look_closely(saved, images, config.batch_size)
        probabilities = functools.partial(jax.jit(functools.partial(_probabilities, saved.model, saved.method)), saved.params)
        grid = next((values.shape[1] for values in looked.maps.values()), _GRID)
        every = {label: np.stack([of(grid)] * len(images)) for label, of in BASELINES.items()} | looked.maps
        for label in (*BASELINES, *(one for one in maps.ALL if one in looked.maps)):
            areas = [
                perturbation.areas(
                    probabilities, image, every[label][i], steps=config.steps, rng=np.random.default_rng((config.seed, i))
                )
                for i, image in enumerate(images)
            ]
            rows.append(Row(name, label, dict(zip(("deletion", "insertion"), np.array(areas).T, strict=True))))
        log.info("%s is done.", name)
    notes = [
        f"{len(images)} images; mean and 95 % bootstrap interval over images, seed {config.seed}. Area under the probability "
        f"of the class that the network names, while {config.steps} equal shares of the cells are made grey, highest first "
        "(deletion, low is good) or are put into a blurred image (insertion, high is good); of a uniform map in random order.",
    ]
    return rows, notes, {"images": len(images), "threshold_split": None}


def _probabilities(model, method, params, images):
    return jax.nn.softmax(apply(model, method, params, images))


# The table.


def _numbers(row: Row, seed: int) -> dict:
    return {
        name: {"mean": float(np.mean(values)), "interval": localization.interval(values, seed)}
        for name, values in row.scores.items()
    }


def _cell(number: dict) -> str:
    low, high = number["interval"]
    return f"{100 * number['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
