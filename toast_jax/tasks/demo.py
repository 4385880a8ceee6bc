"""Run the demo: `--config=configs/demo.py`. Each row of its table is an ordinary run, repeated with several seeds."""

import dataclasses
import logging
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

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
from toast_jax.train.saved_run import SavedRun
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import log_to_file

log = logging.getLogger(__name__)

_SIDE, _LARGE = 96, 192  # smallest width of a picture in pixels, below and at the top of the page
_FIRST_SHOWN = ("toast", "lora", "finetune")  # rows of the large picture, if the demo has them
_IN_FIGURE = 3  # scenes
HEADER = ("method", "tuned", "test accuracy, %", "exchanged, %", "attention, %", "minus before", "selection, %")
_LOOKS = (maps.FIRST, maps.LAST)


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one row of the table.

    Attributes:
      tuned: number of tuned parameters.
      accuracy: on the test split, `[seeds]`.
      exchanged: accuracy on scenes whose green digit stands on the background of a scene of another class, `[seeds]`.
      inside: by map, the share inside the cell of the green digit, `[seeds, scenes]`; that of attention is the mean over
        the blocks after the first, which have feedback before them.
      in_blocks: the same share by look and block, `[seeds, L, scenes]`.
      images_per_second: of training. Runs that resumed just before their end have no speed and are left out.
      looked: predictions and maps of the first seed's network; of attention the mean over the same blocks.
    """

    tuned: int
    accuracy: np.ndarray
    exchanged: np.ndarray
    inside: dict[str, np.ndarray]
    in_blocks: dict[str, np.ndarray]
    images_per_second: np.ndarray
    looked: comparison.Looked


def run(config: ConfigDict, folder: str) -> None:
    """Tune all rows, log the table and write `report.html` and `figure.png`; finished runs are not repeated."""
    started = time.perf_counter()
    check_fields(config)
    folder = run_folder.writable(folder)
    shown = [synthetic_scenes.scene("green", "test", i) for i in range(config.attention_scenes)]
    measured_on = annotated(shown)
    exchanged, _ = background.exchange(measured_on.images, measured_on.masks, measured_on.labels, seed=0)
    rows = {}
    for name, results, runs in trained(config, folder, log):
        rows[name] = _measured(results, runs, measured_on, exchanged)
        log.info("%-20s %s %% of the test scenes classified correctly", name, report.percent(rows[name].accuracy))
    # Networks that look twice share the first look, which tuning does not change.
    two_looks = next((row for row in rows.values() if maps.FIRST in row.inside), None)
    before = None if two_looks is None else two_looks.inside[maps.FIRST].mean(axis=0)
    table = [_cells(name, row, before) for name, row in rows.items()]
    in_blocks = {"before tuning": two_looks.in_blocks[maps.FIRST]} if two_looks else {}
    in_blocks |= {name: row.in_blocks[maps.LAST] for name, row in rows.items()}
    block_header = ("attention, %", *(f"block {i + 1}" for i in range(next(iter(in_blocks.values())).shape[1])))
    block_table = [[name, *(f"{100 * share:.1f}" for share in shares.mean(axis=(0, 2)))] for name, shares in in_blocks.items()]
    share, compared = "", ""
    if before is not None:
        share = f"{before.mean():.1%} before tuning, "
        compared = "Minus before: the difference, with its 95 % interval over scenes. "
    notes = [
        f"Test accuracy: mean +- standard deviation of seeds {', '.join(map(str, config.seeds))}. Exchanged: accuracy on "
        f"{len(shown)} scenes whose green digit stands on the background of a scene with another one.",
        "Attention: of the class token in the last look, mean over the blocks after the first; the share inside the green "
        f"digit's cell, {share}{measured_on.masks.mean():.1%} if it were uniform. {compared}Selection: the same share of the "
        "mask that selects the feedback.",
    ]
    log.info("\n%s\n\n%s\n", report.columns(HEADER, table), report.columns(block_header, block_table))
    for note in notes:
        log.info("%s", textwrap.fill(note, 100))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    (folder / "blocks.md").write_text(report.markdown(block_header, block_table) + "\n")
    Image.fromarray(_figure(rows, shown[:_IN_FIGURE])).save(folder / "figure.png")
    facts = run_folder.circumstances()
    tables = [
        report.table(HEADER, table),
        *(report.paragraph(note, "small") for note in notes),
        report.heading("Attention on the green digit, by block"),
        report.paragraph("Feedback reaches every block, and changes the attention of those after the first."),
        report.table(block_header, block_table),
    ]
    page = report.page("TOAST in minutes", *_story(config, rows, shown, tables, folder, facts))
    (folder / "report.html").write_text(page)
    run_folder.write_json(folder / "result.json", _result(config, rows, before, facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def trained(config: ConfigDict, folder: Path, log: logging.Logger) -> Iterator[tuple[str, list[dict], list[SavedRun]]]:
    """Train every row of a demo with every seed, unless finished; yield its name, and results and networks by seed.

    Until the iterator ends, only `log` writes to the console; all other messages go to `log.txt`.
    """
    log.info("%d runs; their logs are in %s.", len(config.rows) * len(config.seeds), folder / "log.txt")
    with log_to_file(folder / "log.txt", but=log):
        for name in config.rows:
            folders = {seed: folder / name / f"seed_{seed}" for seed in config.seeds}
            with renaming({}, f"runs.{name}"):
                results = fit_seeds(config.runs[name], folders)
                runs = [saved_run.load(folder) for folder in folders.values()]
            yield name, results, runs


def annotated(scenes: list[synthetic_scenes.Scene]) -> Annotated:
    """Return scenes with the cell of the green digit and its class."""
    return Annotated(
        images=np.stack([scene.image for scene in scenes]),
        masks=np.stack([scene.boxes[scene.asked["green"]] for scene in scenes]),
        labels=np.array([scene.label("green") for scene in scenes]),
    )


def _measured(results, runs, annotated, exchanged) -> Row:
    look = runs[0].compiled(maps.look_in_blocks)
    looks = [jax.device_get(look(run.params, annotated.images)) for run in runs]
    others = [jax.device_get(look(run.params, exchanged)[0]) for run in runs]
    probabilities, shown_maps = looks[0][0], _after_the_first_block(looks[0][1])
    in_blocks = {
        name: np.stack([_share_in_blocks(by_name[name], annotated.masks) for _, by_name in looks])
        for name in _LOOKS
        if name in shown_maps
    }
    inside = {name: shares[:, 1:].mean(axis=1) for name, shares in in_blocks.items()}
    if maps.SELECTION in shown_maps:
        selections = [by_name[maps.SELECTION] for _, by_name in looks]
        inside[maps.SELECTION] = np.stack([localization.energy_inside(selection, annotated.masks) for selection in selections])
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        accuracy=np.array([result["test"]["accuracy"] for result in results]),
        exchanged=np.array([np.mean(values.argmax(axis=-1) == annotated.labels) for values in others]),
        inside=inside,
        in_blocks=in_blocks,
        images_per_second=np.array([rate for result in results if (rate := result["images_per_second"])]),
        looked=comparison.Looked(
            named=tuple(runs[0].classes[label] for label in probabilities.argmax(axis=-1)),
            confidence=probabilities.max(axis=-1),
            maps=shown_maps,
        ),
    )


def _share_in_blocks(attention: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of attention `[B, L, g, g]` inside the masks `[B, S, S]`, `[L, B]`."""
    return np.stack([localization.energy_inside(block, masks) for block in attention.swapaxes(0, 1)])


def _after_the_first_block(by_name: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Average the share of attention on each patch over the blocks after the first; other maps stay as they are."""
    shares = {name: values / values.sum(axis=(2, 3), keepdims=True) for name, values in by_name.items() if name in _LOOKS}
    return {name: shares[name][:, 1:].mean(axis=1) if name in shares else values for name, values in by_name.items()}


def _cells(name: str, row: Row, before: np.ndarray | None) -> list[str]:
    gain = "-"
    if before is not None:
        gained = row.inside[maps.LAST].mean(axis=0) - before
        gain = report.with_interval(gained.mean(), *bootstrap.interval(gained, seed=0))
    inside = [
        report.percent(row.inside[name].mean(axis=1)) if name in row.inside else "-" for name in (maps.LAST, maps.SELECTION)
    ]
    return [name, f"{row.tuned:,}", report.percent(row.accuracy), report.percent(row.exchanged), inside[0], gain, inside[1]]


def _large(rows: dict[str, Row]) -> dict[str, comparison.Looked]:
    """Return the networks of the large picture."""
    return {name: rows[name].looked for name in [name for name in _FIRST_SHOWN if name in rows] or rows}


def _figure(rows: dict[str, Row], shown: list[synthetic_scenes.Scene]) -> np.ndarray:
    """Draw a row for each scene: the image, first look and selection of the first that looks twice, last looks of all."""
    looked = _large(rows)
    twice = [name for name, look in looked.items() if maps.FIRST in look.maps]
    own = {"first look": (twice[0], maps.FIRST), "TOAST: selection": (twice[0], maps.SELECTION)} if twice else {}
    own |= {f"{name}: {'second' if name in twice else 'only'} look": (name, maps.LAST) for name in looked}
    lines = []
    for i, scene in enumerate(shown):
        image = drawing.enlarged(scene.image, _LARGE)
        panels = {"scene": image}
        panels |= {title: drawing.overlay(image, looked[name].maps[shown_map][i]) for title, (name, shown_map) in own.items()}
        lines.append(drawing.side_by_side([panel if i else drawing.titled(panel, title, 1) for title, panel in panels.items()]))
    return drawing.stacked(lines)


def _story(config, rows, shown, tables, folder, facts) -> list[str]:
    shown = shown[: config.shown_scenes]
    return [
        report.heading("TOAST: look, select, look again", 1),
        report.paragraph(
            "A small network was trained to name the one digit of a scene, and its color, among scrambled ones. Here it is "
            "tuned, in several ways, to name the green one of four digits. All methods get the same few scenes and the same "
            "number of steps, and are tested on the same digits, none of which is in the training set."
        ),
        report.steps(_large_pictures(rows, shown), "Test scene"),
        report.paragraph(
            "First look: attention of the class token before tuning, mean of the blocks after the first. Selection: which "
            "tokens TOAST feeds back. Last look: attention of the tuned network. Yellow is high and dark blue is low, scaled "
            "for each picture. Below: the tuned network's prediction, and whether it is right. The scenes are the first of the "
            "test split, not hand-picked."
        ),
        *tables,
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
    truths = [synthetic_scenes.CLASSES[scene.label("green")] for scene in shown]
    images, captions = [drawing.enlarged(scene.image, side) for scene in shown], [f"asked: {truth}" for truth in truths]
    return comparison.grid(images, captions, truths, looked, maps.ORDER)


def _result(config, rows, before, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "test_accuracy": row.accuracy.tolist(),
            "exchanged_accuracy": row.exchanged.tolist(),
            "inside": {label: shares.mean(axis=1).tolist() for label, shares in row.inside.items()},
            "inside_by_block": {label: shares.mean(axis=(0, 2)).tolist() for label, shares in row.in_blocks.items()},
            "images_per_second": row.images_per_second.tolist(),
        }
        for name, row in rows.items()
    }
    before = None if before is None else float(before.mean())
    result = {"rows": measured, "attention_inside_before": before, "seeds": list(config.seeds)}
    return {**result, "config": config.to_dict(), **facts}
