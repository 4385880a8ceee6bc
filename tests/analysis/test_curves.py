"""Curves: what is read from a run, and that a picture shows it where it belongs."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from toast_jax.analysis import curves
from toast_jax.errors import InputError


def save_run(folder, values):
    folder.mkdir()
    lines = [{"step": step, "train/loss": value} for step, value in enumerate(values, start=1)]
    lines.insert(1, {"step": 1, "val/accuracy": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def polylines(path):
    root = ElementTree.parse(path).getroot()
    found = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [np.array([[float(v) for v in point.split(",")] for point in line.get("points").split()]) for line in found]


def test_picture_has_a_line_for_each_name_and_they_go_where_the_numbers_go(tmp_path):
    falling, rising = save_run(tmp_path / "a", np.linspace(4, 1, 90)), save_run(tmp_path / "b", np.linspace(1, 4, 90))
    curves.main(["train/loss", str(tmp_path / "x.svg"), f"falling={falling}", f"rising & more={rising}"])
    first, second = polylines(tmp_path / "x.svg")
    assert len(first) == curves.BINS
    assert np.all(np.diff(first[:, 1]) > 0) and np.all(np.diff(second[:, 1]) < 0)  # y points down
    assert np.all(np.diff(first[:, 0]) > 0) and first.min() > 0 and first[:, 0].max() < curves.WIDTH
    np.testing.assert_allclose(first[:, 1] + second[:, 1], first[0, 1] + second[0, 1], atol=0.3)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "x.svg").read_text())
    assert {"falling", "rising &amp; more", "step", "train/loss", "0", "4"} <= set(texts)


def test_runs_of_one_name_become_their_median(tmp_path):
    runs = [save_run(tmp_path / str(i), [i, i + 1.0, i + 2.0]) for i in (1, 3)]
    steps, values = curves.median_of_runs([curves.read(run, "train/loss") for run in runs])
    np.testing.assert_allclose(steps, [1, 2, 3])
    np.testing.assert_allclose(values, [2, 3, 4])


def test_runs_of_other_lengths_and_with_skipped_steps_are_compared_at_the_steps_that_all_have(tmp_path):
    """The second run has skipped its step 2, and was killed while it wrote step 5."""
    long, short = (
        save_run(tmp_path / "long", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        save_run(tmp_path / "short", [1.0, None, 5.0, 8.0]),
    )
    with (short / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/l')
    for runs in ((long, short), (short, long)):
        steps, values = curves.median_of_runs([curves.read(run, "train/loss") for run in runs])
        np.testing.assert_array_equal(steps, [1, 3, 4])
        np.testing.assert_array_equal(values, [1, 4, 6])
    with pytest.raises(InputError, match="have no step in common"):
        curves.median_of_runs([(np.array([1]), np.array([2.0])), (np.array([2]), np.array([2.0]))])


def test_a_line_that_does_not_move_is_drawn(tmp_path):
    run = save_run(tmp_path / "a", [0.0, 0.0])
    curves.main(["train/loss", str(tmp_path / "x.svg"), f"flat={run}"])
    assert np.isfinite(polylines(tmp_path / "x.svg")[0]).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train/loss"], "Write: python -m toast_jax.curves METRIC"),
        (["train/loss", "x.svg", "runs/a"], "Write: python -m toast_jax.curves"),
        (["train/loss", "x.svg", "a={tmp}/nowhere"], "There is no .*/nowhere/metrics.jsonl; give the folder of a run"),
        (["train/lost", "x.svg", "a={tmp}/run"], "has no train/lost; it has step, train/loss, val/accuracy"),
    ],
)
def test_mistakes_are_told(args, message, tmp_path):
    save_run(tmp_path / "run", [1.0])
    with pytest.raises(InputError, match=message):
        curves.main([arg.format(tmp=tmp_path) for arg in args])
