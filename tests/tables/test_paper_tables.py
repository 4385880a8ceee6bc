"""Tables: made by hand results in, the paper's table out, whole or partial."""

import csv
import json
import statistics

import pytest

from configs import table as config_of
from toast_jax.analysis import report
from toast_jax.data.images.vtab import tasks
from toast_jax.errors import InputError
from toast_jax.model.methods import METHODS
from toast_jax.tables import paper_tables
from toast_jax.tasks import table as task


def sweep_of(folder, table="fgvc", backbone="vit_b16_in1k"):
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"table": table, "backbone": backbone}))
    return folder


def write(folder, method, name, accuracies, selection=0):
    for seed, accuracy in enumerate(accuracies):
        _write(folder / method / name / "final" / f"seed_{seed}", {"test": {"accuracy": accuracy}})
    for i in range(selection):
        _write(folder / method / name / "selection" / f"lr_{i}_wd_0.0", {"val": {"accuracy": 0.99}})


def _write(folder, scores):
    folder.mkdir(parents=True)
    facts = {"steps": 360, "images_per_second": 2.0, "tuned_parameters": {"all": 14_200_000, "without_head": 14_156_544}}
    (folder / "result.json").write_text(json.dumps({**scores, **facts, "config": {"batch_size": 20}}))  # an hour


def column(cells, name):
    header, rows = cells
    return {row[0]: row[header.index(name)] for row in rows}


def test_fgvc(tmp_path):
    folder = sweep_of(tmp_path / "sweep")
    for name, accuracies in zip(
        paper_tables.FGVC, [(0.84, 0.86), (0.75, 0.75), (0.88, 0.9), (0.97, 0.98), (0.8, 0.85)], strict=True
    ):
        write(folder, "toast", name, accuracies)
    table = paper_tables.collect([folder])
    header, rows = paper_tables.cells(table)
    assert header == ["method", *paper_tables.FGVC, "mean", "tuned, without head", "hours"]
    rows = {row[0]: row[1:] for row in rows}
    assert [name for name in rows if "," not in name] == ["linear", "finetune", "vpt", "lora", "toast", "toast_lite"]
    assert rows["toast"][0] == "85.0 +- 1.4 (2)" and rows["toast, published"][0] == "85.0"
    assert rows["toast"][-3:] == ["85.8", "14,156,544", "10.0"] and rows["toast, published"][-3:] == ["86.2", "14,156,544", "-"]
    assert rows["toast, difference"] == ["+0.0", "-0.2", "+0.3", "+0.1", "-2.0", "-0.4", "-", "-"]
    assert rows["lora"] == ["-"] * 8 and rows["lora, published"][:6] == ["82.5", "71.2", "81.2", "97.5", "76.6", "81.8"]
    assert rows["lora, difference"] == ["-"] * 8
    told = "\n".join(paper_tables.notes(table))
    assert "Partial: of" not in told and "Partial: not run yet: linear, finetune, vpt, lora, toast_lite." in told
    assert "prints a LoRA mean of 79.8; its row averages 81.8" in told and "fix that inserts deep prompts" in told


def test_vtab_has_both_averages_and_counts_the_selection(tmp_path):
    folder = sweep_of(tmp_path / "sweep", "vtab")
    accuracy = {name: (50 + i) / 100 for i, name in enumerate(tasks.TASKS)}
    for name, one in accuracy.items():
        write(folder, "toast", name, [one], selection=1)
    ours = column(paper_tables.cells(paper_tables.collect([folder])), "toast")
    assert list(ours)[19:] == [
        *("natural", "specialized", "structured", "mean of 19 tasks", "mean of 3 groups", "tuned, without head", "hours")
    ]
    assert (ours["natural"], ours["specialized"], ours["structured"]) == ("53.0", "58.5", "64.5")
    assert (ours["mean of 19 tasks"], ours["mean of 3 groups"], ours["cifar100"]) == ("59.0", "58.7", "50.0 (1)")
    assert ours["hours"] == "38.0"
    theirs = column(paper_tables.cells(paper_tables.collect([folder])), "toast, published")
    means = [theirs[name] for name in ("natural", "specialized", "structured", "mean of 3 groups", "mean of 19 tasks")]
    assert means == ["76.4", "84.6", "56.2", "72.4", "69.6"]


def test_partial_vtab(tmp_path):
    folder = sweep_of(tmp_path / "sweep", "vtab")
    for name, task_ in tasks.TASKS.items():
        if task_.group == tasks.SPECIALIZED:
            write(folder, "lora", name, [0.5, 0.7] if name == "eurosat" else [0.5])
    table = paper_tables.collect([folder])
    ours = column(paper_tables.cells(table), "lora")
    assert (ours["specialized"], ours["eurosat"]) == ("52.5", "60.0 +- 14.1 (2)")
    assert {ours[name] for name in ("dtd", "natural", "structured", "mean of 19 tasks", "mean of 3 groups")} == {"-"}
    told = paper_tables.notes(table)
    assert told[0].startswith("Partial: of lora, 4 of 19 tasks are done; not cifar100, caltech101")
    assert "Fewer seeds than the others: lora on patch_camelyon, lora on resisc45, lora on diabetic_retinopathy." in told


def test_nothing_is_run_or_published(tmp_path, caplog):
    table = paper_tables.collect([sweep_of(tmp_path / "sweep", "fgvc", "vit_s16")])
    assert (
        paper_tables.cells(table)[1] == []
        and paper_tables.notes(table)[-1] == "Nothing is published here for fgvc with vit_s16."
    )
    task.run(config_of.get_config(f"from={tmp_path}/sweep"), str(tmp_path / "tables"))
    assert caplog.messages[0] == f"No final run of {tmp_path}/sweep is finished, so the table has no numbers of its own."


def test_selection_alone_is_no_result(tmp_path):
    folder = sweep_of(tmp_path / "sweep")
    write(folder, "toast", "cub", [], selection=2)
    assert paper_tables.collect([folder]).measured == {}


def test_files(tmp_path):
    folder = sweep_of(tmp_path / "sweep")
    write(folder, "toast_lite", "cub", [0.8, 0.82])
    task.run(config_of.get_config(f"from={folder}"), str(tmp_path / "tables"))
    text = {kind: (tmp_path / f"tables/table.{kind}").read_text() for kind in ("md", "tex", "html", "csv")}
    assert "| toast_lite | 81.0 +- 1.4 (2) | - | - | - | - | - | 14,156,544 | 2.0 |" in text["md"]
    assert "- Partial: of toast_lite, 1 of 5" in text["md"]
    assert r"toast\_lite & 81.0 $\pm$ 1.4 (2) & - &" in text["tex"] and "% Partial: of toast_lite" in text["tex"]
    assert r"toast\_lite, difference & $-$3.5 & - &" in text["tex"]
    assert "<td>81.0 +- 1.4 (2)</td>" in text["html"] and "Partial: of toast_lite" in text["html"]
    rows = list(csv.DictReader(text["csv"].splitlines()))
    row = next(row for row in rows if (row["method"], row["task"]) == ("toast_lite", "cub"))
    assert [row[name] for name in paper_tables.HEADER[2:]] == ["81.0", "1.4142", "2", "84.5", "-3.5", "14156544", "2.0"]
    assert [row["published"] for row in rows if (row["method"], row["task"]) == ("linear", "mean")] == ["72.76"]


def test_latex_is_escaped():
    lines = report.latex(("a_b", "c"), [("50 % & x", "-1.0"), (r"y~\^2", "-")]).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"a\_b & c \\" and lines[4:6] == [
        r"50 \% \& x & $-$1.0 \\",
        r"y\textasciitilde{}\textbackslash{}\textasciicircum{}2 & - \\",
    ]


def test_several_sweeps(tmp_path):
    one, two = sweep_of(tmp_path / "one"), sweep_of(tmp_path / "two")
    write(one, "toast", "cub", [0.8])
    write(two, "lora", "cub", [0.7])
    assert set(paper_tables.collect([one, two]).measured) == {("toast", "cub"), ("lora", "cub")}
    write(two, "toast", "cub", [0.9])
    with pytest.raises(InputError, match=f"Both {one} and {two} hold toast on cub; leave one of them out"):
        paper_tables.collect([one, two])
    other = sweep_of(tmp_path / "other", "vtab")
    with pytest.raises(InputError, match=f"{one} is a sweep of fgvc with vit_b16_in1k and {other} one of vtab with"):
        paper_tables.collect([one, other])


def test_what_is_no_sweep(tmp_path):
    with pytest.raises(
        InputError, match=f"{tmp_path} is no sweep, as {tmp_path}/sweep.json cannot be read .*; give the --workdir of"
    ):
        paper_tables.collect([tmp_path])
    with pytest.raises(InputError, match="There is no sweep to read; write --config=configs/table.py:from=FOLDER"):
        paper_tables.collect(config_of.get_config().sweeps)


def test_runs_without_tuning_per_task_are_columns_of_the_same_table(tmp_path):
    folders = [sweep_of(tmp_path / name, "vtab") for name in ("tuned", "fixed")]
    (folders[1] / "sweep.json").write_text(json.dumps({"table": "vtab", "backbone": "vit_b16_in1k", "recipe": "fixed"}))
    for folder, accuracy in zip(folders, (0.7, 0.6), strict=True):
        write(folder, "toast", "dtd", [accuracy])
        write(folder, "lora", "dtd", [accuracy])
    header, rows = paper_tables.cells(paper_tables.collect(folders))
    methods = ["lora", "lora (fixed recipe)", "toast", "toast, published", "toast, difference", "toast (fixed recipe)"]
    assert header == ["task", *methods]
    assert next(row for row in rows if row[0] == "dtd")[1:4] == ["70.0 (1)", "60.0 (1)", "70.0 (1)"]
    with pytest.raises(InputError, match="leave one of them out"):
        paper_tables.collect([folders[1], folders[1]])


def test_published_numbers_of_another_recipe_have_rows_of_their_own(tmp_path):
    folders = [sweep_of(tmp_path / name, "vtab") for name in ("toast", "paper")]
    for folder in folders:
        facts = {"table": "vtab", "backbone": "vit_b16_in21k", "recipe": folder.name}
        (folder / "sweep.json").write_text(json.dumps(facts))
        write(folder, "ssf", "dtd", [0.7])
    header, rows = paper_tables.cells(paper_tables.collect(folders))
    own = [name for name in header if name.startswith("ssf")]
    paper = "ssf (paper recipe)"
    assert own == ["ssf", paper, f"{paper}, published", f"{paper}, difference"]
    dtd = dict(zip(header, next(row for row in rows if row[0] == "dtd"), strict=True))
    assert [dtd[name] for name in own] == ["70.0 (1)", "70.0 (1)", "75.1", "-5.1"]


def test_damaged_result(tmp_path):
    folder = sweep_of(tmp_path / "sweep")
    write(folder, "toast", "cub", [0.8])
    path = folder / "toast/cub/final/seed_0/result.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match=f"{path} is damaged .*; remove it and give the sweep's command again"):
        paper_tables.collect([folder])


def test_published_numbers():
    for entry in json.loads((paper_tables.Path(paper_tables.__file__).parent / "published_results.json").read_text()):
        assert tuple(entry["columns"]) == (tuple(tasks.TASKS) if entry["table"] == "vtab" else tuple(paper_tables.FGVC))
        labels = {paper_tables.labeled(method, recipe) for method in METHODS for recipe in paper_tables.RECIPES}
        assert {*entry["rows"], *entry["tuned"]} <= labels and all(
            len(row) == len(entry["columns"]) for row in entry["rows"].values()
        )
    toast = paper_tables._published("fgvc", "vit_b16_in1k")["rows"]["toast"]
    assert statistics.fmean(toast) == pytest.approx(86.16)
