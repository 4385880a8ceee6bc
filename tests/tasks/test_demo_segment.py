"""The demo of segmentation, made small: rows are run, measured, and shown in a table and a page."""

import json

import numpy as np
import pytest

from configs import demo_segment as demo_config
from tests import ROOT
from toast_jax.config.check import check_fields
from toast_jax.data.images import synthetic_scenes
from toast_jax.data.images.segmentation import sets
from toast_jax.errors import InputError
from toast_jax.tasks import demo_segment


def small(rows, seeds):
    config = demo_config.get_config()
    config.rows, config.seeds, config.attention_scenes, config.shown_scenes = rows, seeds, 3, 2
    for run in config.runs.values():
        run.data.splits.update({"train": "train[:16]", "val": "", "test": "test[:8]"})
        run.batch_size, run.steps, run.warmup_steps, run.eval_every, run.checkpoint_every = 8, 2, 1, 2, 2
        run.log_every = 1
    return config


def test_a_row_gets_its_line_of_the_table_and_its_pictures(tmp_path):
    demo_segment.run(small(("toast",), (1, 2)), str(tmp_path))
    (line,) = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert line.startswith("| toast | 110,882 | ")
    assert "<th>toast: selection</th>" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_table_and_page_show_runs_of_the_shipped_network(tmp_path):
    demo_segment.run(small(("linear", "toast"), (1, 2)), str(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert result["linear"]["tuned_parameters"] == 2 * (96 + 1)
    for name, row in result.items():
        tests = [json.loads((tmp_path / f"{name}/seed_{seed}/result.json").read_text())["test"] for seed in (1, 2)]
        assert row["mean_iou"] == [test["mean_iou"] for test in tests]
        assert row["target_iou"] == [test["iou/green digit"] for test in tests]
    first = result["toast"]["inside"]["first look"]
    assert first[0] == pytest.approx(first[1], rel=1e-5) and set(result["linear"]["inside"]) == {"last look"}
    # A linear probe leaves the attention where it was.
    np.testing.assert_allclose(result["linear"]["inside"]["last look"], first, rtol=1e-4)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| linear", "| toast"] and len(lines) == 4
    page = (tmp_path / "report.html").read_text()
    assert "<th>toast: selection</th>" in page and page.count("<img") == 2 * 8 and page.count("<svg") == 2


def test_the_mask_of_a_scene_is_the_cell_of_its_green_digit():
    config = demo_config.get_config().runs.toast
    source = sets.open_split(config.data, "test")
    image, labels = source[5]
    scene = synthetic_scenes.scene("green", "test", 5)
    np.testing.assert_array_equal(image, scene.image)
    assert labels.sum() == 16 * 16 and labels[scene.masks[scene.asked["green"]]].all()
    assert len(source) == 300 and source.sides(5) == labels.shape and source.classes == ("background", "green digit")
    config.data.splits.test = "test"
    with pytest.raises(InputError, match="config.data.splits.test is 'test'; write how many scenes"):
        sets.open_split(config.data, "test")


def test_table_of_the_docs_is_one_that_the_demo_writes():
    text = (ROOT / "docs/segmentation.md").read_text().partition("<!-- demo table -->\n")[2].partition("\n\n")[0]
    header, _, *rows = (line.strip("| ").split(" | ") for line in text.splitlines())
    assert tuple(header) == demo_segment.HEADER and [row[0] for row in rows] == list(demo_config.ROWS)


def test_all_rows_have_the_same_budget():
    config = demo_config.get_config()
    check_fields(config)
    assert (
        len({(run.batch_size, run.steps, str(run.data.to_dict()), run.segmentation.head) for run in config.runs.values()}) == 1
    )
