"""Tables as text, Markdown, LaTeX, CSV and HTML, and self-contained HTML pages with embedded pictures."""

import base64
import csv as csv_module
import dataclasses
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

_STYLE = Path(__file__).with_name("report.css").read_text()


def page(title: str, *parts: str) -> str:
    """Render a whole page from parts of HTML."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>\n{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'


def paragraph(text: str, kind: str = "") -> str:
    """Render a paragraph; `kind` is its CSS class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """Render a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Render a table of numbers: the first column left-aligned, the others right-aligned; of sentences if kind is "texts"."""
    return _table(kind, header, [[escape(cell) for cell in row] for row in rows])


def pictures(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a grid of cells made by `picture`."""
    return _table("pictures", header, rows)


def _table(kind, header, rows):
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def steps(parts: Sequence[str], what: str) -> str:
    """Show one part at a time, with a slider; a click on a part shows the next one.

    Args:
      parts: of HTML. A browser without scripts shows all of them.
      what: names a part, such as "scene".
    """
    slider = f'<input type="range" min="1" max="{len(parts)}" value="1">'
    label = f"<label>{escape(what)} <output>1</output> of {len(parts)} {slider}</label>"
    return f'<div class="steps">{label}{"".join(f"<div>{part}</div>" for part in parts)}<script>{_STEPS}</script></div>'


# Runs inside its `steps`, the parent of the script.
_STEPS = """{
const box = document.currentScript.parentElement, slider = box.querySelector("input");
const parts = box.querySelectorAll(":scope > div");
const show = () => {
  parts.forEach((part, k) => { part.hidden = k + 1 != slider.value; });
  box.querySelector("output").value = slider.value;
};
slider.oninput = show;
parts.forEach(part => { part.onclick = () => { slider.value = slider.value % parts.length + 1; show(); }; });
show();
}"""


def shaded(parts: Iterable[tuple[str, float, str]]) -> str:
    """Render text with a shade behind each part.

    Args:
      parts: text, shade between 0 and 1, and a note that appears when the pointer is over it. Spaces and newlines are kept;
        control characters and empty text get a visible sign.
    """
    spans = (
        f'<span style="background: rgb(255 140 0 / {shade:.3f})" title="{escape(note)}">{escape(shown)}</span>'
        for shown, shade, note in ((text.translate(_VISIBLE) or "·", shade, note) for text, shade, note in parts)
    )
    return f'<div class="shaded">{"".join(spans)}</div>'


# Unicode has a picture of every control character.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {127: "\u2421", ord("\t"): "\u21e5\t", ord("\n"): "\u21b5\n"}


def picture(pixels: np.ndarray, caption: str = "", alt: str = "") -> str:
    """Embed a picture, uint8 `[H, W, 3]`, with a caption below it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    height, width, _ = pixels.shape
    image = f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt or caption)}">'
    return f"{image}{escape(caption)}"


def made_by(config: str, facts: dict) -> str:
    """Render a page's last line: the config file, and device and versions from `run_folder.circumstances()`."""
    device, versions = facts["device"], facts["versions"]
    listing = ", ".join(f"{name} {versions[name]}" for name in ("toast_jax", "jax", "flax", "python"))
    return paragraph(f"Made by {config} on {device['count']} x {device['kind']}; {listing}", "small")


def percent(shares: np.ndarray) -> str:
    """Format the mean over runs in percent; several runs add their standard deviation."""
    values = 100 * shares
    return f"{values.mean():.1f} +- {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values.mean():.1f}"


def with_interval(share: float, low: float, high: float) -> str:
    """Format a share and its interval in percent."""
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclasses.dataclass(frozen=True)
class Section:
    """A table with a title above it and notes below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write(folder: Path, name: str, sections: Sequence[Section], *parts: str) -> None:
    """Write sections as `NAME.md` and `NAME.html`; the first title is the page's, and the page ends with `parts`, HTML."""
    texts, rendered = [], []
    for k, section in enumerate(sections):
        above = f"## {section.title}\n\n" if k else ""
        texts.append(above + markdown(section.header, section.rows) + "\n\n" + "\n".join(section.notes) + "\n")
        rendered += [heading(section.title, 2 if k else 1), table(section.header, section.rows)]
        rendered += map(paragraph, section.notes)
    (folder / f"{name}.md").write_text("\n".join(texts), encoding="utf-8")
    (folder / f"{name}.html").write_text(page(sections[0].title, *rendered, *parts), encoding="utf-8")


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render the same table as plain text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in [header, *rows]]
    return "\n".join(map("  ".join, lines))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render the same table as Markdown."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render the same table as LaTeX that needs no packages."""
    lines = [" & ".join(map(_latex_text, line)) + r" \\" for line in [header, *rows]]
    body = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\hline", lines[0], r"\hline", *lines[1:], r"\hline"]
    return "\n".join([*body, r"\end{tabular}"])


_LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}


def _latex_text(text: str) -> str:
    escaped = re.sub(r"[&%$#_{}\\^~]", lambda mark: _LATEX.get(mark[0], rf"\{mark[0]}"), text).replace("+-", r"$\pm$")
    return re.sub(r"^([+-])(?=\d)", r"$\1$", escaped)  # a minus, not a hyphen


def csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Render values as CSV, for other programs."""
    file = io.StringIO()
    csv_module.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()
