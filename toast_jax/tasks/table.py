"""Make a table of one sweep or several: `--config=configs/table.py:from=FOLDER`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax.analysis import report
from toast_jax.config.check import check_fields
from toast_jax.errors import InputError
from toast_jax.tables import agreement, few_shot_table, paper_tables
from toast_jax.workdir import run_folder

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Log the table and write `table.md`, `table.tex`, `table.html` and, for other programs, `table.csv`.

    Of few-shot sweeps, also write `curves.svg`.
    """
    check_fields(config)
    few_shot = paper_tables.opened(config.sweeps)["table"] == "fewshot"
    if config.reference and not few_shot:
        raise InputError("config.reference is for few-shot tables; the others have published numbers to compare with.")
    folder = run_folder.writable(folder)
    (_few_shot if few_shot else _of_paper)(config, folder)


def _of_paper(config: ConfigDict, folder: Path) -> None:
    table = paper_tables.collect(config.sweeps)
    _log_if_empty(config, table.measured)
    values = paper_tables.HEADER, paper_tables.values(table)
    compared, note = _agreement(paper_tables.method_folders(config.sweeps))
    tables = [("", *paper_tables.cells(table)), *compared]
    title = table.table.title() if table.table == "segmentation" else table.table.upper()
    _write(folder, f"{title}, {table.backbone}", tables, paper_tables.notes(table) + note, values)


def _few_shot(config: ConfigDict, folder: Path) -> None:
    table = few_shot_table.collect(config.sweeps, config.reference)
    _log_if_empty(config, table.cells)
    curves = few_shot_table.picture(table)
    (folder / "curves.svg").write_text(curves)
    values = few_shot_table.HEADER, few_shot_table.values(table)
    compared, note = _agreement(few_shot_table.method_folders(config.sweeps))
    tables = [*few_shot_table.cells(table), *compared]
    _write(folder, f"Few-shot, {table.backbone}", tables, few_shot_table.notes(table) + note, values, curves)


def _log_if_empty(config: ConfigDict, results: Mapping) -> None:
    if not results:
        log.warning("No final run of %s is finished, so the table has no numbers of its own.", " or ".join(config.sweeps))


def _agreement(folders) -> tuple[list[Table], list[str]]:
    """Return the table of agreement and its note, each in a list, or empty lists if no run saved its logits."""
    rows = agreement.rows(folders)
    return ([(agreement.TITLE, agreement.HEADER, rows)], [agreement.NOTE]) if rows else ([], [])


def _write(folder: Path, title: str, tables: Sequence[Table], notes: Sequence[str], values, *pictures: str) -> None:
    """Write tables of (title, header, rows) and notes in each format; `values` is header and rows of the CSV."""
    listed = "\n".join(f"- {note}" for note in notes)
    text = "\n\n".join(
        f"{f'## {name}' * bool(name)}\n\n{report.markdown(header, rows)}".strip() for name, header, rows in tables
    )
    (folder / "table.md").write_text(f"# {title}\n\n{text}\n\n{listed}\n")
    comments = "\n".join(f"% {note}" for note in notes)
    (folder / "table.tex").write_text("\n".join(report.latex(header, rows) for _, header, rows in tables) + f"\n{comments}\n")
    (folder / "table.csv").write_text(report.csv(*values))
    parts = [report.heading(title, 1), *pictures]
    parts += [part for name, header, rows in tables for part in (report.heading(name) * bool(name), report.table(header, rows))]
    parts += [report.paragraph(note, "small") for note in notes]
    (folder / "table.html").write_text(report.page(title, *parts))
    log.info("%s\n%s\n\n%s\n", title, "\n\n".join(report.columns(header, rows) for _, header, rows in tables), listed)
    log.info("table.md, .tex, .html and .csv are in %s.", folder)
