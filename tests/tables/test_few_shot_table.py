"""Few-shot tables: made-up results in; means, deviations, paired intervals, costs and curves out."""

import csv
import json

import numpy as np
import pytest

from configs import sweep as sweep_config
from configs import table as table_config
from toast_jax.config import paper_recipes
from toast_jax.errors import InputError
from toast_jax.tables import costs, few_shot_table, intervals
from toast_jax.tasks import sweep, table
from toast_jax.workdir import run_folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(costs, "per_image", lambda config: (3.0, 1.5 if config.method == "lora" else 1.0))


def write(folder, method, task, shots, correct, seeds=(1, 2)):
    """Write final runs whose answers on the test images are `correct[seed]`, as text of 0 and 1."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "sweep.json").write_text(json.dumps({"table": "fewshot", "backbone": "vit_ti16"}))
    config = paper_recipes.few_shot("vit_ti16")
    config.method, config.data.root, config.data.shots = method, f"{task}/images", shots
    name = f"{task}_{shots}shot" if shots else f"{task}_all"
    for seed, answers in zip(seeds, correct, strict=True):
        run = folder / method / name / "final" / f"seed_{seed}"
        run.mkdir(parents=True)
        answers = np.array([answer == "1" for answer in answers])
        run_folder.write_correct(run, answers)
        facts = {"steps": 360, "images_per_second": 3.2, "tuned_parameters": {"all": 50, "without_head": 40}}  # an hour
        result = {"test": {"accuracy": answers.mean()}, "seed": seed, **facts, "config": config.to_dict()}
        (run / "result.json").write_text(json.dumps(result))


def two_methods(folder, better=True):
    """Linear is right on one of four cars with each seed; LoRA on two and on three of them. Both know one bird of two."""
    for shots in (1, 0):
        write(folder, "linear", "cars", shots, ["1000", "1000"])
        write(folder, "lora", "cars", shots, ["1100", "1110"] if better else ["1000", "1000"])
        write(folder, "linear", "birds", shots, ["10", "10"])
        write(folder, "lora", "birds", shots, ["10", "10"])
    return folder


def test_means_and_deviations_are_over_seeds(tmp_path):
    (_, header, rows), _ = few_shot_table.cells(few_shot_table.collect([two_methods(tmp_path / "sweep")]))
    assert header == ["task", "linear", "lora"]
    assert rows == [
        ["birds, 1 shot", "50.0 +- 0.0 (2)", "50.0 +- 0.0 (2)"],
        ["birds, all", "50.0 +- 0.0 (2)", "50.0 +- 0.0 (2)"],
        ["cars, 1 shot", "25.0 +- 0.0 (2)", "62.5 +- 17.7 (2)"],  # 50 and 75
        ["cars, all", "25.0 +- 0.0 (2)", "62.5 +- 17.7 (2)"],
        ["mean, 1 shot", "37.5 +- 0.0 (2)", "56.2 +- 8.8 (2)"],  # 50 and 62.5
        ["mean, all", "37.5 +- 0.0 (2)", "56.2 +- 8.8 (2)"],
        ["tuned, without head", "40", "40"],
        ["training GFLOP/image", "3.00", "3.00"],
        ["inference GFLOP/image", "1.00", "1.50"],
        ["hours", "8.0", "8.0"],
    ]


def test_differences_are_paired_by_image(tmp_path):
    """LoRA knows whatever linear knows, so the difference is never below 0, and it is 0 on birds in every resample."""
    _, (title, header, rows) = few_shot_table.cells(few_shot_table.collect([two_methods(tmp_path / "sweep")]))
    assert title == "Difference to the reference" and header == ["task", "lora - linear"]
    assert rows[0] == ["birds, 1 shot", "+0.0 [+0.0, +0.0]"]
    assert rows[2] == ["cars, 1 shot", "+37.5 [+0.0, +75.0]"]
    assert rows[4][0] == "mean, 1 shot" and rows[4][1].startswith("+18.8 [+0.0, +")


def test_interval_over_seeds_alone():
    """A quarter of the resamples has the first seed twice, a quarter the second."""
    assert intervals.Resampler().interval([np.array([[2.0], [6.0]])]) == (4.0, 2.0, 6.0)
    assert intervals.Resampler().interval([np.array([[2.0], [6.0]]), np.zeros((1, 1))]) == (2.0, 1.0, 3.0)
    assert intervals.Resampler().interval([np.full((3, 5), 7.0)]) == pytest.approx((7.0, 7.0, 7.0))


def test_interval_over_images_is_that_of_a_mean():
    values = np.random.default_rng(0).random((1, 400)) > 0.3
    mean, low, high = intervals.Resampler().interval([values.astype(float)])
    error = 1.96 * values.std() / np.sqrt(400)
    assert mean == values.mean() and (mean - low, high - mean) == pytest.approx((error, error), rel=0.1)


def test_runs_without_their_answers_are_paired_by_seed(tmp_path):
    folder = two_methods(tmp_path / "sweep")
    for path in folder.glob("lora/*/final/*/test_correct.txt"):
        path.unlink()
    made = few_shot_table.collect([folder])
    assert few_shot_table.cells(made)[1][2][2] == ["cars, 1 shot", "+37.5 [+25.0, +50.0]"]
    assert any("or seeds alone where a run lacks test_correct.txt" in note for note in few_shot_table.notes(made))


def test_several_sweeps_are_rows_and_each_has_its_reference(tmp_path):
    plain, pretuned = two_methods(tmp_path / "plain", better=False), two_methods(tmp_path / "pretuned")
    made = few_shot_table.collect([plain, pretuned])
    names = ["plain/linear", "pretuned/linear", "plain/lora", "pretuned/lora"]
    assert [row.name for row in made.rows] == names
    assert made.references == {"plain/lora": "plain/linear", "pretuned/lora": "pretuned/linear"}
    assert few_shot_table.cells(made)[1][2][3] == ["cars, all", "+0.0 [+0.0, +0.0]", "+37.5 [+0.0, +75.0]"]
    made = few_shot_table.collect([plain, pretuned], "plain/lora")
    assert set(made.references.values()) == {"plain/lora"} and set(made.references) == {*names} - {"plain/lora"}
    with pytest.raises(InputError, match=r"The config argument reference is 'lore'; .* \(the nearest is 'lora'\)"):
        few_shot_table.collect([plain, pretuned], "lore")


def test_partial(tmp_path):
    folder = two_methods(tmp_path / "sweep")
    write(folder, "linear", "cars", 4, ["1000"], seeds=[3])
    write(folder, "lora", "cars", 4, ["1100"], seeds=[1])
    write(folder, "toast", "birds", 1, ["10", "11"])
    made = few_shot_table.collect([folder])
    (_, _, rows), (_, _, differences) = few_shot_table.cells(made)
    assert ["cars, 4 shots", "25.0 (1)", "50.0 (1)", "-"] in rows and ["cars, 4 shots", "-", "-"] in differences  # other seeds
    assert [row[3] for row in rows if row[0].startswith("mean")] == ["-", "-"]
    missing = "birds, all; cars, 1 shot; cars, 4 shots; cars, all"
    assert few_shot_table.notes(made)[0] == f"Partial: toast has no result on {missing}."


def test_a_mean_over_tasks_its_interval_and_its_point_in_the_curves_are_of_the_seeds_that_all_tasks_have(tmp_path):
    """Two seeds of cars are not tested on birds yet; with them, the mean of 37.5 % would stand outside its own interval."""
    folder = tmp_path / "sweep"
    write(folder, "linear", "cars", 0, ["1000" * 25, "1111" * 25, "1111" * 25], seeds=(1, 2, 3))
    write(folder, "linear", "birds", 0, ["10" * 50], seeds=(1,))
    write(folder, "lora", "cars", 0, ["1100" * 25, "1111" * 25, "0000" * 25], seeds=(1, 2, 3))
    write(folder, "lora", "birds", 0, ["11" * 50], seeds=(1,))
    made = few_shot_table.collect([folder])
    (_, _, rows), (_, _, differences) = few_shot_table.cells(made)
    assert rows[2] == ["mean, all", "37.5 (1)", "75.0 (1)"] and differences[2][1].startswith("+37.5 [")
    mean, low, high = made.summaries["linear", "mean", 0][0]
    assert low < mean == 37.5 < high < 50
    line = next(line for line in few_shot_table.values(made) if line[0] == "linear" and line[3] == "mean")
    assert line[5] == 37.5 and line[8] < 37.5 < line[9]


def test_other_test_images_are_refused(tmp_path):
    folder = two_methods(tmp_path / "sweep")
    write(folder, "toast", "cars", 0, ["11100", "11100"])
    with pytest.raises(InputError, match="toast was tested on 5 images of cars and its reference on 4; make a table of"):
        few_shot_table.collect([folder]).summaries  # noqa: B018


def test_files(tmp_path):
    folder = two_methods(tmp_path / "sweep")
    table.run(table_config.get_config(f"from={folder},reference=lora"), str(tmp_path / "table"))
    text = {kind: (tmp_path / f"table/table.{kind}").read_text() for kind in ("md", "tex", "html", "csv")}
    assert "| cars, all | 25.0 +- 0.0 (2) | 62.5 +- 17.7 (2) |" in text["md"] and "| task | linear - lora |" in text["md"]
    assert "- Intervals (in brackets, curves and table.csv): 95 % bootstrap over seeds and test images" in text["md"]
    assert r"cars, all & 25.0 $\pm$ 0.0 (2)" in text["tex"] and text["tex"].count(r"\begin{tabular}") == 2
    rows = list(csv.DictReader(text["csv"].splitlines()))
    row = next(row for row in rows if (row["method"], row["task"], row["shots"]) == ("linear", "cars", "all"))
    assert {name: row[name] for name in ("mean", "difference", "difference_low", "difference_high", "reference")} == {
        "mean": "25.0", "difference": "-37.5", "difference_low": "-75.0", "difference_high": "0.0", "reference": "lora"
    }  # fmt: skip
    assert (row["images_per_run"], row["hours"]) == (str(360 * 32), "2.0")
    curves = (tmp_path / "table/curves.svg").read_text()
    assert curves in text["html"] and curves.count("<polyline") == 3 * 2 and ">all</text>" in curves


def test_table_of_nothing(tmp_path):
    sweep_folder = tmp_path / "sweep"
    sweep_folder.mkdir()
    (sweep_folder / "sweep.json").write_text(json.dumps({"table": "fewshot", "backbone": "vit_ti16"}))
    table.run(table_config.get_config(f"from={sweep_folder}"), str(tmp_path / "table"))


def test_reference_of_another_table(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"table": "fgvc", "backbone": "vit_ti16"}))
    with pytest.raises(InputError, match="config.reference is for few-shot tables"):
        table.run(table_config.get_config(f"from={tmp_path},reference=lora"), str(tmp_path / "table"))


@pytest.mark.slow
def test_sweep_from_its_runs_to_its_table(image_folder, tmp_path, monkeypatch):
    monkeypatch.undo()  # the fixture's costs
    config = sweep_config.get_config("table=fewshot,method=linear+toast,task=images,shots=4+all,backbone=vit_ti8")
    (tmp_path / "images").symlink_to(image_folder)
    config.data.update({"root": str(tmp_path), "format": "folder", "image_size": 16, "resize": 18})
    config.backbone.update({"size": "Mini", "weights": "random"})
    config.epochs, config.warmup_epochs, config.sweep.seeds = 2, 0, (1, 2)
    for recipe in config.sweep.recipes.values():
        recipe.batch_size = 8
    for grid in config.sweep.grid.values():
        grid.lr = (0.1, 0.01)
    sweep.run(config, str(tmp_path / "sweep"))
    results = list((tmp_path / "sweep").glob("*/*/final/*/result.json"))
    assert len(results) == 2 * 2 * 2
    for path in results:
        correct, result = run_folder.read_correct(path.parent), json.loads(path.read_text())
        assert len(correct) == 9 and correct.mean() == pytest.approx(result["test"]["accuracy"]) and "val" not in result
    made = few_shot_table.collect([tmp_path / "sweep"])
    assert made.columns == [("images", 4), ("images", 0)]
    looks_once, steered = (row.gflop for row in made.rows)
    assert looks_once[0] == pytest.approx(looks_once[1], rel=1e-3) and looks_once[1] < steered[1] < steered[0]
    config.sweep.recipes.images_4shot.data.shots = 9
    with pytest.raises(InputError, match="has 8 training images, fewer than config.sweep.recipes.images_4shot.data.shots"):
        sweep.run(config, str(tmp_path / "other"))
    assert not list((tmp_path / "other").glob("*/*/selection"))
