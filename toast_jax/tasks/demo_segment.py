"""Run the demo of segmentation: `--config=configs/demo_segment.py`. Each row of its table is an ordinary run."""

import dataclasses
import logging
import textwrap
import time

import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import curves, localization, maps, report
from toast_jax.analysis.segmentation import looks, pictures
from toast_jax.analysis.segmentation.looks import Segmented
from toast_jax.config.check import check_fields
from toast_jax.data.images.segmentation.scenes import TARGET, MaskedScenes
from toast_jax.tasks import demo
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

_SIDE = 128  # smallest width of a picture in pixels
HEADER = ("method", "tuned", "mIoU, %", f"IoU of the {TARGET}, %", "attention, %", "selection, %")


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one row of the table, by seed.

    Attributes:
      tuned: number of tuned parameters.
      mean_iou, target_iou: on the test split, `[seeds]`.
      inside: by map, the share inside the green digit's cell, mean over scenes, `[seeds]`.
      segmented: predictions and maps of the first seed's network, by scene.
    """

    tuned: int
    mean_iou: np.ndarray
    target_iou: np.ndarray
    inside: dict[str, np.ndarray]
    segmented: list[Segmented]


def run(config: ConfigDict, folder: str) -> None:
    """Tune all rows, log the table and write `table.md`, `report.html` and `result.json`; finished runs are not repeated."""
    started = time.perf_counter()
    check_fields(config)
    folder = run_folder.writable(folder)
    scenes = MaskedScenes("test", config.attention_scenes)
    images, labels = map(np.stack, zip(*(scenes[i] for i in range(len(scenes))), strict=True))
    rows = {}
    for name, results, runs in demo.trained(config, folder, log):
        rows[name] = _measured(results, runs, images, labels)
        log.info("%-12s mIoU %s %%", name, report.percent(rows[name].mean_iou))
    table = [_cells(name, row) for name, row in rows.items()]
    first = next((row.inside[maps.FIRST].mean() for row in rows.values() if maps.FIRST in row.inside), None)
    before = "" if first is None else f", {first:.1%} in the first look of TOAST and"
    notes = [
        f"IoU on the test split after the last step: mean +- standard deviation of seeds {', '.join(map(str, config.seeds))}. "
        f"Attention: of all patches, in the last block of the last look; the share inside the green digit's cell{before} "
        f"{labels.mean():.1%} if it were uniform, on {len(images)} test scenes. Selection: the same share of the mask that "
        "selects the feedback.",
    ]
    log.info("\n%s\n\n%s\n", report.columns(HEADER, table), "\n".join(textwrap.fill(note, 100) for note in notes))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    facts = run_folder.circumstances()
    shown = range(min(config.shown_scenes, len(images)))
    looked = {name: [row.segmented[i] for i in shown] for name, row in rows.items()}
    palette, captions = pictures.colors(len(scenes.classes)), [f"test scene {i + 1}" for i in shown]
    page = report.page(
        "TOAST segments in minutes",
        report.heading("TOAST: look, select, look again, and segment", 1),
        report.paragraph(
            "A small network was trained to name the one digit of a scene, and its color, among scrambled ones. Here it is "
            "tuned, in several ways, to mark the cell of the green one of four digits; a scrambled object may be green, too. "
            "All methods get the same few scenes and the same number of steps, and a linear layer on the tokens as their head."
        ),
        report.table(HEADER, table),
        *(report.paragraph(note, "small") for note in notes),
        report.heading("The first test scenes"),
        report.paragraph(
            "First look and last look: attention of all patches in the last block before tuning, and in the look that is "
            "segmented. Selection: which tokens are fed back. Yellow is high and dark blue is low, scaled for each picture."
        ),
        pictures.grid([images[i] for i in shown], captions, [labels[i] for i in shown], looked, palette, _SIDE),
        report.heading("Learning curves"),
        curves.of_rows(folder, config.rows, config.seeds),
        report.made_by("configs/demo_segment.py", facts),
    )
    (folder / "report.html").write_text(page)
    run_folder.write_json(folder / "result.json", _result(config, rows, facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def _measured(results, runs, images, labels) -> Row:
    by_seed = []
    for run in runs:
        segmented = looks.compiled(run)
        by_seed.append([segmented(image) for image in images])
    names = by_seed[0][0].maps
    stacked = {name: [np.stack([own.maps[name] for own in scenes]) for scenes in by_seed] for name in names}
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        mean_iou=np.array([result["test"]["mean_iou"] for result in results]),
        target_iou=np.array([result["test"][f"iou/{TARGET}"] for result in results]),
        inside={
            name: np.array([localization.energy_inside(values, labels > 0).mean() for values in by_run])
            for name, by_run in stacked.items()
        },
        segmented=by_seed[0],
    )


def _cells(name: str, row: Row) -> list[str]:
    inside = [report.percent(row.inside[shown]) if shown in row.inside else "-" for shown in (maps.LAST, maps.SELECTION)]
    return [name, f"{row.tuned:,}", report.percent(row.mean_iou), report.percent(row.target_iou), *inside]


def _result(config, rows, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "mean_iou": row.mean_iou.tolist(),
            "target_iou": row.target_iou.tolist(),
            "inside": {label: shares.tolist() for label, shares in row.inside.items()},
        }
        for name, row in rows.items()
    }
    return {"rows": measured, "seeds": list(config.seeds), "config": config.to_dict(), **facts}
