"""Make a table of one sweep or several: `--config=configs/table.py:from=FOLDER`."""

import logging

from ml_collections import ConfigDict

from toast_jax.analysis import report
from toast_jax.config.check import check_fields
from toast_jax.tables import paper_tables
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Log the table and write `table.md`, `table.tex`, `table.html` and, for other programs, `table.csv`."""
    check_fields(config)
    table = paper_tables.collect(config.sweeps)
    folder = run_folder.writable(folder)
    header, rows = paper_tables.cells(table)
    notes = paper_tables.notes(table)
    title = f"{table.table.upper()}, {table.backbone}"
    listed = "\n".join(f"- {note}" for note in notes)
    (folder / "table.md").write_text(f"# {title}\n\n{report.markdown(header, rows)}\n\n{listed}\n")
    comments = "\n".join(f"% {note}" for note in notes)
    (folder / "table.tex").write_text(f"{report.latex(header, rows)}\n{comments}\n")
    (folder / "table.csv").write_text(report.csv(paper_tables.HEADER, paper_tables.values(table)))
    parts = [report.heading(title, 1), report.table(header, rows), *(report.paragraph(note, "small") for note in notes)]
    (folder / "table.html").write_text(report.page(title, *parts))
    log.info("%s\n%s\n\n%s\n", title, report.columns(header, rows), listed)
    log.info("table.md, .tex, .html and .csv are in %s.", folder)
