"""Run the demo: `--config=configs/demo.py`. Each row of its table is an ordinary run, repeated with several seeds."""

import dataclasses
import logging
import textwrap
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.analysis import comparison, curves, drawing, localization, maps, report
from toast_jax.config.check import check_fields
from toast_jax.data.images import synthetic_scenes
from toast_jax.errors import renaming
from toast_jax.train import saved_run
from toast_jax.train.loop import fit_seeds
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import log_to_file

log = logging.getLogger(__name__)

_SIDE = 96  # width of a picture in pixels, twice that of a scene
HEADER = ("method", "tuned", "test accuracy, %", "attention inside, %", "selection inside, %", "images/s")


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one row of the table.

    Attributes:
      tuned: number of tuned parameters.
      accuracy: on the test split, `[seeds]`.
      inside: by map, the share inside the target's box, averaged over scenes, `[seeds]`.
      images_per_second: of training. Runs that resumed just before their end have no speed and are left out.
      looked: predictions and maps of the first seed's network.
    """

    tuned: int
    accuracy: np.ndarray
    inside: dict[str, np.ndarray]
    images_per_second: np.ndarray
    looked: comparison.Looked


def run(config: ConfigDict, folder: str) -> None:
    """Tune all rows, log the table and write `report.html` and `figure.png`; finished runs are not repeated."""
    started = time.perf_counter()
    check_fields(config)
    folder = run_folder.writable(folder)
    shown = [synthetic_scenes.scene("test", i) for i in range(config.attention_scenes)]
    boxes = np.stack([localization.box_of(scene.masks["target"]) for scene in shown])
    log.info("%d runs; their logs are in %s.", len(config.rows) * len(config.seeds), folder / "log.txt")
    rows = {}
    with log_to_file(folder / "log.txt", but=log):
        for name in config.rows:
            folders = {seed: folder / name / f"seed_{seed}" for seed in config.seeds}
            with renaming({}, f"runs.{name}"):
                rows[name] = _measured(fit_seeds(config.runs[name], folders), folders.values(), shown, boxes)
            log.info("%-20s %s %% of the test scenes classified correctly", name, report.percent(rows[name].accuracy))
    # Networks that look twice share the first look, which tuning does not change.
    before = float(next(row.inside[maps.FIRST] for row in rows.values() if maps.FIRST in row.inside).mean())
    table = [_cells(name, row) for name, row in rows.items()]
    notes = [
        f"Accuracy: mean +- standard deviation of seeds {', '.join(map(str, config.seeds))}.",
        f"Attention: the class token's, in the last look; the share inside the green digit's box, {before:.1%} before "
        f"tuning, {boxes.mean():.1%} if it were uniform. Selection: the same share of the mask that selects the feedback.",
    ]
    log.info("\n%s\n", report.columns(HEADER, table))
    for note in notes:
        log.info("%s", textwrap.fill(note, 100))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    Image.fromarray(_figure(rows, shown[: config.shown_scenes])).save(folder / "figure.png")
    facts = run_folder.circumstances()
    page = report.page("TOAST in three minutes", *_story(config, rows, shown, table, notes, folder, facts))
    (folder / "report.html").write_text(page)
    run_folder.write_json(folder / "result.json", _result(config, rows, before, facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def _measured(results, folders, shown, boxes) -> Row:
    runs = [saved_run.load(folder) for folder in folders]
    images = np.stack([scene.image for scene in shown])
    look = runs[0].compiled(maps.look)
    looks = [jax.device_get(look(run.params, images)) for run in runs]
    probabilities, first_maps = looks[0]
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        accuracy=np.array([result["test"]["accuracy"] for result in results]),
        inside={
            name: np.array([localization.energy_inside(by_name[name], boxes).mean() for _, by_name in looks])
            for name in first_maps
        },
        images_per_second=np.array([rate for result in results if (rate := result["images_per_second"])]),
        looked=comparison.Looked(
            named=tuple(runs[0].classes[label] for label in probabilities.argmax(axis=-1)),
            confidence=probabilities.max(axis=-1),
            maps=first_maps,
        ),
    )


def _cells(name: str, row: Row) -> list[str]:
    speed = f"{np.median(row.images_per_second):,.0f}" if row.images_per_second.size else "-"
    inside = [report.percent(row.inside[name]) if name in row.inside else "-" for name in (maps.LAST, maps.SELECTION)]
    return [name, f"{row.tuned:,}", report.percent(row.accuracy), *inside, speed]


def _figure(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> np.ndarray:
    """Draw scenes from left to right; below each, the first look, the selection and the last look of `toast`."""
    columns, by_name = [], rows["toast"].looked.maps
    for i, scene in enumerate(shown):
        image = drawing.enlarged(scene.image, _SIDE)
        columns.append(drawing.stacked([image, *(drawing.overlay(image, by_name[name][i]) for name in maps.ORDER)]))
    return drawing.side_by_side(columns)


def _story(config, rows, shown, table, notes, folder, facts) -> list[str]:
    return [
        report.heading("TOAST: look, select, look again", 1),
        report.paragraph(
            "A small network was trained to classify the brightest digit of a scene. Here it is tuned, in seven ways, to "
            "classify the green digit, which is always dimmer. All methods get the same scenes and the same number of steps, "
            "and are tested on the same digits, none of which is in the training set."
        ),
        report.table(HEADER, table),
        *(report.paragraph(note, "small") for note in notes),
        report.heading("Where the networks look"),
        report.paragraph(
            f"The first {config.shown_scenes} test scenes, not hand-picked. First look: attention of the class token before "
            "tuning. Selection: which tokens TOAST feeds back. Last look: attention of the tuned network. Yellow is high and "
            "dark blue is low, scaled for each picture. Below: the tuned network's prediction, and whether it is right."
        ),
        _picture_grid(rows, shown[: config.shown_scenes]),
        report.heading("Learning curves"),
        curves.of_rows(folder, config.rows, config.seeds),
        report.made_by("configs/demo.py", facts),
    ]


def _picture_grid(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> str:
    truths = [str(scene.labels["target"]) for scene in shown]
    images, captions = [drawing.enlarged(scene.image, _SIDE) for scene in shown], [f"green digit: {truth}" for truth in truths]
    return comparison.grid(images, captions, truths, {name: row.looked for name, row in rows.items()}, maps.ORDER)


def _result(config, rows, before, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "test_accuracy": row.accuracy.tolist(),
            "inside": {label: shares.tolist() for label, shares in row.inside.items()},
            "images_per_second": row.images_per_second.tolist(),
        }
        for name, row in rows.items()
    }
    result = {"rows": measured, "attention_inside_before": before, "seeds": list(config.seeds)}
    return {**result, "config": config.to_dict(), **facts}
