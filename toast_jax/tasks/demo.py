"""Run the demo: `--config=configs/demo.py`. Each row of its table is an ordinary run, repeated with several seeds."""

import dataclasses
import logging
import textwrap
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.analysis import background, bootstrap, comparison, curves, drawing, localization, maps, report
from toast_jax.analysis.refocusing import Annotated
from toast_jax.config.check import check_fields
from toast_jax.data.images import synthetic_scenes
from toast_jax.errors import renaming
from toast_jax.train import saved_run
from toast_jax.train.loop import fit_seeds
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import log_to_file

log = logging.getLogger(__name__)

_SIDE, _LARGE = 96, 192  # smallest width of a picture in pixels, below and at the top of the page
_FIRST_SHOWN = ("toast", "lora", "finetune")  # rows of the large picture, if the demo has them
_IN_FIGURE = 3  # scenes
HEADER = ("method", "tuned", "test accuracy, %", "exchanged, %", "attention, %", "minus before", "selection, %")


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one row of the table.

    Attributes:
      tuned: number of tuned parameters.
      accuracy: on the test split, `[seeds]`.
      exchanged: accuracy on scenes whose green digit stands on the background of a scene of another class, `[seeds]`.
      inside: by map, the share inside the target's box, `[seeds, scenes]`.
      images_per_second: of training. Runs that resumed just before their end have no speed and are left out.
      looked: predictions and maps of the first seed's network.
    """

    tuned: int
    accuracy: np.ndarray
    exchanged: np.ndarray
    inside: dict[str, np.ndarray]
    images_per_second: np.ndarray
    looked: comparison.Looked


def run(config: ConfigDict, folder: str) -> None:
    """Tune all rows, log the table and write `report.html` and `figure.png`; finished runs are not repeated."""
    started = time.perf_counter()
    check_fields(config)
    folder = run_folder.writable(folder)
    shown = [synthetic_scenes.scene("test", i) for i in range(config.attention_scenes)]
    measured_on = annotated(shown)
    log.info("%d runs; their logs are in %s.", len(config.rows) * len(config.seeds), folder / "log.txt")
    rows = {}
    with log_to_file(folder / "log.txt", but=log):
        for name in config.rows:
            folders = {seed: folder / name / f"seed_{seed}" for seed in config.seeds}
            with renaming({}, f"runs.{name}"):
                rows[name] = _measured(fit_seeds(config.runs[name], folders), folders.values(), measured_on)
            log.info("%-20s %s %% of the test scenes classified correctly", name, report.percent(rows[name].accuracy))
    # Networks that look twice share the first look, which tuning does not change.
    before = next(row.inside[maps.FIRST] for row in rows.values() if maps.FIRST in row.inside).mean(axis=0)
    table = [_cells(name, row, before) for name, row in rows.items()]
    notes = [
        f"Test accuracy: mean +- standard deviation of seeds {', '.join(map(str, config.seeds))}. Exchanged: accuracy on "
        f"{len(shown)} scenes whose green digit stands on the background of a scene with another one.",
        f"Attention: the class token's, in the last look; the share inside the green digit's box, {before.mean():.1%} before "
        f"tuning, {measured_on.masks.mean():.1%} if it were uniform. Minus before: the difference, with its 95 % interval over "
        "scenes. Selection: the same share of the mask that selects the feedback.",
    ]
    log.info("\n%s\n", report.columns(HEADER, table))
    for note in notes:
        log.info("%s", textwrap.fill(note, 100))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    Image.fromarray(_figure(rows, shown[:_IN_FIGURE])).save(folder / "figure.png")
    facts = run_folder.circumstances()
    page = report.page("TOAST in minutes", *_story(config, rows, shown, table, notes, folder, facts))
    (folder / "report.html").write_text(page)
    run_folder.write_json(folder / "result.json", _result(config, rows, float(before.mean()), facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def annotated(scenes: list[synthetic_scenes.Scene]) -> Annotated:
    """Return scenes with the box around the green digit and its class."""
    return Annotated(
        images=np.stack([scene.image for scene in scenes]),
        masks=np.stack([localization.box_of(scene.masks["target"]) for scene in scenes]),
        labels=np.array([scene.labels["target"] for scene in scenes]),
    )


def _measured(results, folders, annotated) -> Row:
    runs = [saved_run.load(folder) for folder in folders]
    exchanged, _ = background.exchange(annotated.images, annotated.masks, annotated.labels, seed=0)
    look = runs[0].compiled(maps.look)
    looks = [jax.device_get(look(run.params, annotated.images)) for run in runs]
    others = [jax.device_get(look(run.params, exchanged)[0]) for run in runs]
    probabilities, first_maps = looks[0]
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        accuracy=np.array([result["test"]["accuracy"] for result in results]),
        exchanged=np.array([np.mean(values.argmax(axis=-1) == annotated.labels) for values in others]),
        inside={
            name: np.stack([localization.energy_inside(by_name[name], annotated.masks) for _, by_name in looks])
            for name in first_maps
        },
        images_per_second=np.array([rate for result in results if (rate := result["images_per_second"])]),
        looked=comparison.Looked(
            named=tuple(runs[0].classes[label] for label in probabilities.argmax(axis=-1)),
            confidence=probabilities.max(axis=-1),
            maps=first_maps,
        ),
    )


def _cells(name: str, row: Row, before: np.ndarray) -> list[str]:
    gained = row.inside[maps.LAST].mean(axis=0) - before
    gain = report.with_interval(gained.mean(), *bootstrap.interval(gained, seed=0))
    inside = [
        report.percent(row.inside[name].mean(axis=1)) if name in row.inside else "-" for name in (maps.LAST, maps.SELECTION)
    ]
    return [name, f"{row.tuned:,}", report.percent(row.accuracy), report.percent(row.exchanged), inside[0], gain, inside[1]]


def _large(rows: dict[str, Row]) -> dict[str, comparison.Looked]:
    """Return the networks of the large picture."""
    return {name: rows[name].looked for name in _FIRST_SHOWN if name in rows}


def _figure(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> np.ndarray:
    """Draw a row for each scene: the image, first look, selection and second look of `toast`, last looks of others."""
    looked = _large(rows)
    own = {"first look": ("toast", maps.FIRST), "TOAST: selection": ("toast", maps.SELECTION)}
    own |= {f"{name}: {'second' if name == 'toast' else 'only'} look": (name, maps.LAST) for name in looked}
    lines = []
    for i, scene in enumerate(shown):
        image = drawing.enlarged(scene.image, _LARGE)
        panels = {"scene": image}
        panels |= {title: drawing.overlay(image, looked[name].maps[shown_map][i]) for title, (name, shown_map) in own.items()}
        lines.append(drawing.side_by_side([panel if i else drawing.titled(panel, title, 1) for title, panel in panels.items()]))
    return drawing.stacked(lines)


def _story(config, rows, shown, table, notes, folder, facts) -> list[str]:
    shown = shown[: config.shown_scenes]
    return [
        report.heading("TOAST: look, select, look again", 1),
        report.paragraph(
            "A small network was trained to classify the brightest digit of a scene. Here it is tuned, in several ways, to "
            "classify the green digit, which is always dimmer. All methods get the same few scenes and the same number of "
            "steps, and are tested on the same digits, none of which is in the training set."
        ),
        report.steps(_large_pictures(rows, shown), "Test scene"),
        report.paragraph(
            "First look: attention of the class token before tuning. Selection: which tokens TOAST feeds back. Last look: "
            "attention of the tuned network. Yellow is high and dark blue is low, scaled for each picture. Below: the tuned "
            "network's prediction, and whether it is right. The scenes are the first of the test split, not hand-picked."
        ),
        report.table(HEADER, table),
        *(report.paragraph(note, "small") for note in notes),
        report.heading("Learning curves"),
        curves.of_rows(folder, config.rows, config.seeds),
        report.heading("All methods"),
        _picture_grid(rows, shown),
        report.made_by("configs/demo.py", facts),
    ]


def _large_pictures(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> list[str]:
    looked = _large(rows)
    return [_pictures({name: look.only(i) for name, look in looked.items()}, [scene], _LARGE) for i, scene in enumerate(shown)]


def _picture_grid(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> str:
    return _pictures({name: row.looked for name, row in rows.items()}, shown, _SIDE)


def _pictures(looked: dict[str, comparison.Looked], shown: list[synthetic_scenes.Scene], side: int) -> str:
    truths = [str(scene.labels["target"]) for scene in shown]
    images, captions = [drawing.enlarged(scene.image, side) for scene in shown], [f"green digit: {truth}" for truth in truths]
    return comparison.grid(images, captions, truths, looked, maps.ORDER)


def _result(config, rows, before, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "test_accuracy": row.accuracy.tolist(),
            "exchanged_accuracy": row.exchanged.tolist(),
            "inside": {label: shares.mean(axis=1).tolist() for label, shares in row.inside.items()},
            "images_per_second": row.images_per_second.tolist(),
        }
        for name, row in rows.items()
    }
    result = {"rows": measured, "attention_inside_before": before, "seeds": list(config.seeds)}
    return {**result, "config": config.to_dict(), **facts}
