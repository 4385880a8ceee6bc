"""The demo, made small: every row is run for every seed, measured, and told in a table and a page."""

import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest

from configs import demo as demo_config
from toast_jax.analysis import background, maps
from toast_jax.data.images import synthetic_scenes
from toast_jax.tasks import demo
from toast_jax.train.setup import load_network
from toast_jax.weights import initial_parameters


def small_config():
    """Two rows, two seeds, a few scenes."""
    config = demo_config.get_config()
    config.seeds, config.attention_scenes, config.shown_scenes = (1, 2), 8, 2
    config.rows = ("linear", "toast")
    for run in config.runs.values():
        run.data.splits.update({"train": "train[:32]", "val": "val[:16]", "test": "test[:24]"})
        run.batch_size = 16
        run.epochs, run.warmup_epochs, run.eval_every, run.checkpoint_every = 4, 1, 4, 4
    return config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small demo, run twice."""
    config = small_config()
    folder = tmp_path_factory.mktemp("demo")
    told, log = [], logging.getLogger("toast_jax")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage()) if record.name == demo.log.name else None
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        demo.run(config, str(folder))
        first = json.loads((folder / "result.json").read_text())
        demo.run(config, str(folder))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return folder, first, told


def test_table_has_a_row_for_each_method(small):
    folder, result, told = small
    lines = (folder / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| linear", "| toast"]
    accuracy = 100 * np.array(result["rows"]["linear"]["test_accuracy"])
    assert f"| {accuracy.mean():.1f} +- {accuracy.std(ddof=1):.1f} |" in lines[2] and len(accuracy) == 2
    assert result["rows"]["toast"]["tuned_parameters"] == 96 * 96 * 12 + 96 + 6887


def test_seeds_are_runs_of_their_own(small):
    folder, result, _ = small
    runs = [json.loads((folder / f"toast/seed_{seed}/result.json").read_text()) for seed in (1, 2)]
    assert [run["config"]["seed"] for run in runs] == [1, 2]
    assert [run["test"]["accuracy"] for run in runs] == result["rows"]["toast"]["test_accuracy"]


def test_page_shows_all_methods_on_the_same_scenes(small):
    page = (small[0] / "report.html").read_text()
    slides, grid = page.split("<h2>All methods</h2>")
    assert grid.count("<img") == 2 * (2 + 1 + 2)  # scene and first look; last look of linear; selection and last look of toast
    assert slides.count("<img") == 2 * 4 and 'max="2"' in slides  # of toast alone, as neither lora nor finetune is a row here
    for title in ("first look", "linear: last look", "toast: selection", "toast: last look"):
        assert f"<th>{title}</th>" in page
    assert slides.index('class="steps"') < slides.index('<table class="">') < slides.index("<svg")
    assert page.count("<svg") == 2 and not re.search(r'(src|href)="(?!data:)', page)


def test_console_is_short_and_narrow(small):
    folder, _, told = small
    assert any(str(folder / "report.html") in line for line in told)
    lines = [line for text in told if str(folder) not in text for line in text.splitlines()]
    assert len(lines) > 10 and max(map(len, lines)) <= 100


def test_what_runs_tell_goes_to_a_file(small):
    assert "step 8/8" in (small[0] / "log.txt").read_text()


def test_again_repeats_nothing(small):
    folder, first, _ = small
    assert json.loads((folder / "result.json").read_text()) == first
    assert (folder / "log.txt").read_text().count("finished already") == 4


def test_a_run_resumed_just_before_its_end_has_no_speed(small, tmp_path):
    """Speed is measured over windows of steps; a run with less than one left writes null."""
    folder = shutil.copytree(small[0], tmp_path / "demo")
    for row, seeds in (("linear", (1, 2)), ("toast", (2,))):
        for seed in seeds:
            path = folder / f"{row}/seed_{seed}/result.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "images_per_second": None}))
    demo.run(small_config(), str(folder))
    rates = [row["images_per_second"] for row in json.loads((folder / "result.json").read_text())["rows"].values()]
    assert [len(rate) for rate in rates] == [0, 1] and rates[1][0] > 0


@pytest.mark.parametrize("row", ["linear", "toast"])
def test_any_rows_make_a_page(row, small, tmp_path):
    """Of one that looks once nothing is known before tuning; another that looks twice stands in the large picture."""
    name = {"linear": "linear", "toast": "toast_lite"}[row]
    for seed in (1, 2):
        shutil.copytree(small[0] / f"{row}/seed_{seed}", tmp_path / f"{name}/seed_{seed}")
    config = small_config()
    config.rows, config.runs[name] = (name,), config.runs[row]
    demo.run(config, str(tmp_path))
    lines = (tmp_path / "blocks.md").read_text().splitlines()
    before = ["| before tuning"] if row == "toast" else []
    assert [line.split(" | ")[0] for line in lines[2:]] == [*before, f"| {name}"]
    assert (json.loads((tmp_path / "result.json").read_text())["attention_inside_before"] is None) == (row == "linear")
    columns = dict(zip(demo.HEADER, (tmp_path / "table.md").read_text().splitlines()[2].strip("| ").split(" | "), strict=True))
    assert (columns["minus before"] == "-") == (row == "linear")
    assert (tmp_path / "report.html").read_text().count("last look</th>") == 3  # two large pictures, and all


def test_attention_is_compared_with_that_before_tuning_scene_by_scene(small):
    """A linear probe leaves the attention where it was, so its difference is zero in every scene."""
    folder, result, _ = small
    linear, toast = (line.strip("| ").split(" | ") for line in (folder / "table.md").read_text().splitlines()[2:])
    columns = dict(zip(demo.HEADER, linear, strict=True))
    assert re.fullmatch(r"-?0\.0 \[-?0\.0, -?0\.0\]", columns["minus before"]) and columns["selection, %"] == "-"
    before, after = result["attention_inside_before"], np.mean(result["rows"]["toast"]["inside"][maps.LAST])
    assert toast[5].startswith(f"{100 * (after - before):.1f} [")


def test_attention_is_the_mean_of_the_blocks_after_the_first(small):
    folder, result, _ = small
    measured = result["rows"]["toast"]
    assert [len(measured["inside_by_block"][look]) for look in (maps.FIRST, maps.LAST)] == [6, 6]
    for look in (maps.FIRST, maps.LAST):
        assert np.mean(measured["inside"][look]) == pytest.approx(np.mean(measured["inside_by_block"][look][1:]))
    first, last = (np.array(measured["inside_by_block"][look]) for look in (maps.FIRST, maps.LAST))
    assert first[0] == pytest.approx(last[0], rel=1e-4) and np.any(abs(first[1:] - last[1:]) > 1e-3)
    lines = (folder / "blocks.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| before tuning", "| linear", "| toast"]


def test_exchanged_scenes_keep_the_green_digit_alone():
    """A network that names the green digit and nothing else is as accurate on them."""
    scenes = [synthetic_scenes.scene("green", "test", i) for i in range(20)]
    annotated = demo.annotated(scenes)
    exchanged, donors = background.exchange(annotated.images, annotated.masks, annotated.labels, seed=0)
    assert all(scenes[i].label("green") != scenes[k].label("green") for i, k in enumerate(donors))
    for image, scene, mask in zip(exchanged, scenes, annotated.masks, strict=True):
        np.testing.assert_array_equal(image[mask], scene.image[mask])
        assert np.all(mask[scene.masks[scene.asked["green"]]]) and np.any(image != scene.image)


@pytest.mark.slow
def test_attention_before_tuning_is_the_same_for_all_networks_that_look_twice():
    """And it is that of the backbone alone."""
    config = demo_config.get_config()
    images = np.stack([synthetic_scenes.scene("green", "test", i).image for i in range(4)])
    looks = {}
    for name in ("linear", "toast", "toast_lite"):
        network = load_network(config.runs[name], len(synthetic_scenes.CLASSES))
        params = initial_parameters.start(network.model, network.method, seed=3, weights=config.runs[name].backbone.weights)
        looks[name] = jax.jit(lambda p, x, n=network: maps.look(n.model, n.method, p, x))(params, images)[1]
    for name in ("toast", "toast_lite"):
        np.testing.assert_allclose(looks[name][maps.FIRST], looks["linear"][maps.LAST], rtol=1e-5, atol=1e-7)
        assert looks[name][maps.SELECTION].shape == (4, 8, 8)
    assert maps.FIRST not in looks["linear"]


def test_all_rows_have_the_same_budget_and_never_choose_by_the_test_split():
    runs = demo_config.get_config().runs
    facts = {(run.batch_size, run.epochs, str(run.data.to_dict()), run.optimizer.name) for run in runs.values()}
    assert len(facts) == 1
    assert all(run.data.splits.train.startswith("train[") and run.data.splits.val.startswith("val[") for run in runs.values())
