"""Learning curves of runs, as an SVG chart.

    python -m toast_jax.curves train/task_loss curves.svg both=runs/a,runs/b cross-entropy=runs/c

draws one metric of `metrics.jsonl` over the steps: a line per name, the median over its runs at the steps that all have,
averaged in bins.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from toast_jax.errors import InputError
from toast_jax.workdir.metrics import complete_lines

WIDTH, HEIGHT = 640, 360
BINS = 30  # points of a line, each the mean over its steps
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 150, 20, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito


def read(folder: str | Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the steps and values of one metric of a run.

    Raises:
      InputError: the folder has no `metrics.jsonl`, or the file does not have this metric.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"There is no {path}; give the folder of a run.")
    lines = complete_lines(path)
    if not (points := [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]):
        raise InputError(f"{path} has no {metric}; it has {', '.join(sorted({key for line in lines for key in line}))}.")
    steps, values = zip(*points, strict=True)
    return np.array(steps), np.array(values, float)


def median_of_runs(runs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Take the median over runs at the steps that all have, then average steps into at most `BINS` points.

    Raises:
      InputError: no step is common to all.
    """
    by_step = [dict(zip(steps.tolist(), values, strict=True)) for steps, values in runs]
    steps = np.array(sorted(set.intersection(*map(set, by_step))))
    if not len(steps):
        raise InputError("The runs of a line have no step in common that has this metric; give each a name of its own.")
    values = np.median([[run[step] for step in steps.tolist()] for run in by_step], axis=0)
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def of_rows(folder: Path, rows: Sequence[str], seeds: Sequence[int]) -> str:
    """Draw loss and accuracy of the runs in `folder/ROW/seed_SEED`, as HTML: a line per row, the median over seeds."""
    charts = []
    for metric in ("train/loss", "train/accuracy"):
        lines = {row: median_of_runs([read(folder / row / f"seed_{seed}", metric) for seed in seeds]) for row in rows}
        charts.append(svg(lines, metric.replace("/", " ")))
    return f'<div class="charts">{"".join(charts)}</div>'


def svg(lines: dict[str, tuple[np.ndarray, np.ndarray]], label: str, x_label: str = "step") -> str:
    """Draw a chart of `{name: (x, y)}`; `label` and `x_label` are the titles of the axes y and x."""
    every_x, every_y = (np.concatenate([line[axis] for line in lines.values()]) for axis in (0, 1))
    x_ticks, y_ticks = ticks(0, every_x.max()), ticks(min(0, every_y.min()), every_y.max())
    to_x = lambda x: _LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - _LEFT - _RIGHT)  # noqa: E731
    to_y = lambda y: HEIGHT - _BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - _TOP - _BOTTOM)  # noqa: E731
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for y in y_ticks:
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<text x="{to_x(x):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(label)}</text>')
    for i, (name, (steps, values)) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in zip(steps, values, strict=True))
        place = _TOP + 10 + 20 * i
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{WIDTH - _RIGHT + 12}" y="{place - 8}" width="16" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - _RIGHT + 34}" y="{place}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def ticks(low: float, high: float) -> np.ndarray:
    """Return about five round numbers that enclose a range."""
    raw = max(high - low, 1e-9) / 5
    power = 10 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = np.floor(low / step)
    return np.arange(first, max(np.ceil(high / step), first + 1) + 1) * step


def main(args: list[str]) -> None:
    """Run the command above: read its arguments and write the chart."""
    if len(args) < 3 or not all("=" in arg for arg in args[2:]):
        raise InputError("Write: python -m toast_jax.curves METRIC FILE.svg NAME=RUN,RUN ...")
    metric, path, *named = args
    lines = {}
    for name, _, folders in (arg.partition("=") for arg in named):
        lines[name] = median_of_runs([read(folder, metric) for folder in folders.split(",")])
    Path(path).write_text(svg(lines, metric))
