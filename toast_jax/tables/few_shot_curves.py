"""Accuracy over shots, as an SVG chart with a panel for each task."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from toast_jax.analysis.curves import COLOURS, ticks
from toast_jax.tables.intervals import Interval

_WIDTH, _HEIGHT = 260, 220  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 28, 42
_COLUMNS = 3
_LINES = ("", "6 3", "2 3")  # dashes, once all colours are used


def svg(panels: Mapping[str, Mapping[str, Mapping[int, Interval]]], shots: Sequence[int], names: Sequence[str]) -> str:
    """Draw the panels in rows of three, above a legend.

    Args:
      panels: by title and line, the accuracy at each number of shots, in percent.
      shots: the numbers on the axis, evenly spaced; 0 is labelled "all".
      names: of all lines, in the order of the legend.
    """
    columns = max(1, min(_COLUMNS, len(panels)))
    rows = -(-len(panels) // columns)
    width, height = columns * _WIDTH, rows * _HEIGHT + 20 * len(names) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, lines) in enumerate(panels.items()):
        place = f"translate({i % columns * _WIDTH} {i // columns * _HEIGHT})"
        parts += [f'<g transform="{place}">', *_panel(title, lines, shots, names), "</g>"]
    for i, name in enumerate(names):
        y = rows * _HEIGHT + 20 * i + 10
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + 24}" y1="{y}" y2="{y}" {_stroke(i)}/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(title, lines, shots, names):
    ends = [end for line in lines.values() for interval in line.values() for end in interval]
    marks = [tick for tick in ticks(min(ends), max(ends)) if 0 <= tick <= 100]
    low, high = min(marks[0], *ends), max(marks[-1], *ends)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(shots))
    to_y = lambda y: _HEIGHT - _BOTTOM - (y - low) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)  # noqa: E731
    parts = [f'<text x="{_WIDTH / 2}" y="18" text-anchor="middle" font-weight="bold">{escape(title)}</text>']
    for mark in marks:
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{to_y(mark):.1f}" y2="{to_y(mark):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{to_y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>')
    for i, number in enumerate(shots):
        x = _LEFT + (i + 0.5) * step
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{number or "all"}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">images of each class; accuracy, %</text>')
    for i, name in enumerate(names):
        line = lines.get(name, {})
        shift = 0.5 * step * ((i + 0.5) / len(names) - 0.5)  # intervals stand side by side
        points = [(_LEFT + (k + 0.5) * step + shift, line[number]) for k, number in enumerate(shots) if number in line]
        joined = " ".join(f"{x:.1f},{to_y(interval.mean):.1f}" for x, interval in points)
        parts.append(f'<polyline points="{joined}" fill="none" {_stroke(i)}/>')
        for x, interval in points:
            ends = f'y1="{to_y(interval.low):.1f}" y2="{to_y(interval.high):.1f}"'
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{COLOURS[i % len(COLOURS)]}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{to_y(interval.mean):.1f}" r="2.5" fill="{COLOURS[i % len(COLOURS)]}"/>')
    return parts


def _stroke(i):
    dashes = _LINES[i // len(COLOURS) % len(_LINES)]
    return f'stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"' + f' stroke-dasharray="{dashes}"' * bool(dashes)
