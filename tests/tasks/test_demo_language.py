"""The demo of language, made small: every row is tuned, asked, and told in a table and a page."""

import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import demo_language as demo_config
from tests.data.text.test_tokenizer import llama2c_file
from toast_jax.data.text import synthetic_tales
from toast_jax.errors import InputError
from toast_jax.model.backbones.llama import network as llama
from toast_jax.tasks import demo_language as demo
from toast_jax.train.evaluation import Evaluation
from toast_jax.workdir import run_folder

STORIES = os.environ.get("TOAST_STORIES15M", "")
D, HIDDEN, V = 8, 12, 259  # the letters of its tokenizer are bytes
SIZE = llama.Size(D, 2, 2, 2, hidden=HIDDEN, vocabulary=V, context=192, tied=True)


def teller(folder):
    """A file of llama2.c with random numbers."""
    header = [D, HIDDEN, SIZE.depth, 2, 2, V, SIZE.context]
    size = V * D + SIZE.depth * (2 * D + 4 * D * D + 3 * D * HIDDEN) + D + SIZE.context * D // 2
    numbers = np.random.default_rng(0).normal(0, 0.3, size).astype(np.float32)
    (folder / "teller.bin").write_bytes(np.array(header, np.int32).tobytes() + numbers.tobytes())
    llama2c_file(folder / "tok259.bin", [])
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One row, a few tales, run twice."""
    config = demo_config.get_config()
    config.rows, config.shown = ("toast",), 2
    config.tales.update({"text": 32, "train": 16, "val": 1, "test": 3})
    config.speaker.batch_size = 2
    for one in (config.pretune, config.not_tuned, *config.runs.values()):
        one.data.length, one.batch_size, one.optimizer.lr, one.warmup_epochs = 160, 8, 1.0, 0.0
    config.weights = teller(tmp_path_factory.mktemp("weights"))
    folder, told, log = tmp_path_factory.mktemp("demo"), [], logging.getLogger("toast_jax")
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage()) if record.name == demo.log.name else None
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(llama.SIZES, "stories15m", SIZE)
        try:
            demo.run(config, str(folder))
            files = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.json*")}
            first = json.loads((folder / "result.json").read_text())
            demo.run(config, str(folder))
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
    return folder, first, told, files


def test_table_has_a_row_for_what_is_not_tuned_and_for_each_method(small):
    folder, result, _, _ = small
    lines = [line.strip("| ").split(" | ") for line in (folder / "table.md").read_text().splitlines()]
    assert [line[0] for line in lines] == ["method", "---", "not_tuned", "toast"]
    row = result["rows"]["toast"]
    assert lines[3][1:4] == [str(2 * SIZE.depth * D * D + D), f"{row['test_perplexity'][0]:.2f}", "0.0"]
    assert lines[2][1] == "0" and lines[2][4] == "-" and lines[2][2] != lines[3][2]
    run = json.loads((folder / "toast/seed_42/result.json").read_text())
    assert row["test_perplexity"] == [run["test"]["perplexity"]] and run["config"]["top_down"]
    assert result["device"] and result["versions"]["jax"] and result["config"]["seeds"] == [42]


def test_answers_are_those_of_the_networks(small):
    folder, _, _, _ = small
    for name in ("not_tuned", "toast/seed_42"):
        lines = [json.loads(line) for line in (folder / name / "answers.jsonl").read_text().splitlines()]
        assert [line["question"] for line in lines] == [" ".join(synthetic_tales.tale("test", i)[:2]) for i in range(3)]
    assert '"answer"' in (folder / "toast/seed_42/answers.jsonl").read_text()


def test_answers_that_are_damaged_or_of_other_settings_are_made_again(tmp_path, monkeypatch):
    config = demo_config.get_config()
    synthetic_tales.write(run_folder.writable(tmp_path / "tales"), {"text": 1, "train": 1, "val": 1, "test": 2})
    of_run, calls = run_folder.writable(tmp_path / "toast/seed_1"), []

    def answer(asked, folder):
        calls.append(asked.most)
        lines = [json.loads(line) for line in Path(asked.file).read_text().splitlines()]
        (Path(folder) / "answers.jsonl").write_text("".join(json.dumps({**line, "answer": " so"}) + "\n" for line in lines))

    monkeypatch.setattr(demo.generate, "run", answer)
    for damage, expected in ((None, 1), (None, 1), ("", 2), ('{"question": 1}', 3), ("[1]\n", 4), ("{", 5), (None, 5)):
        if damage is not None:
            (of_run / "answers.jsonl").write_text(damage)
        assert demo._answers(config, tmp_path, of_run, run=str(of_run)) == ("so", "so") and len(calls) == expected
    config.speaker.most = 20
    demo._answers(config, tmp_path, of_run, run=str(of_run))
    assert calls[-1] == 20
    monkeypatch.setattr(demo.toast_jax, "__version__", "next")
    demo._answers(config, tmp_path, of_run, run=str(of_run))
    assert len(calls) == 7


def test_page_shows_answers_side_by_side_and_curves(small):
    page = (small[0] / "report.html").read_text()
    assert "<th>not tuned</th><th>toast</th>" in page and page.count("<svg") == 2
    assert all(synthetic_tales.tale("test", i).question in page for i in range(2)) and page.count("✗") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_again_repeats_nothing(small):
    folder, first, told, files = small
    assert json.loads((folder / "result.json").read_text()) == first
    assert {path: path.stat().st_mtime_ns for path in files if "tales" not in str(path)}.items() <= files.items()
    assert (folder / "log.txt").read_text().count("finished already") == 2 and any("report.html" in line for line in told)


def test_answers_are_right_to_the_letter_alone():
    row = demo.Row(0, np.ones(2), (("a b.", "c"), ("a b", "c")))
    assert row.right(("a b.", "c")).tolist() == [1.0, 0.5]


def test_what_is_not_tuned_is_measured_at_its_precision(tmp_path, monkeypatch):
    seen = []

    def evaluated(*_):
        seen.append(jax.config.jax_default_matmul_precision)
        return Evaluation({"loss": 0.0, "count": 1}, None)

    monkeypatch.setattr(demo, "load_network", lambda *_: SimpleNamespace(tuned={}, frozen={}))
    monkeypatch.setattr(demo, "evaluate", evaluated)
    monkeypatch.setattr(demo, "_answers", lambda *_, **__: ())
    for name in ("scores_of", "mapped"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    monkeypatch.setattr(demo.text_runs, "open_sources", lambda *_, **__: (None, {"test": None}))
    monkeypatch.setattr(demo.text_runs, "eval_batches", lambda *_: None)
    config = demo_config.get_config()
    config.not_tuned.precision = "highest"
    assert demo._not_tuned(config, tmp_path).perplexity == [1.0]
    assert seen == ["highest"] and jax.config.jax_default_matmul_precision is None


def test_missing_weights_are_told_with_where_to_get_them(tmp_path):
    config = demo_config.get_config()
    config.weights = str(tmp_path / "none")
    with pytest.raises(InputError, match=r"no folder .*none with a small language model; put https://\S+15M.bin and https:"):
        demo.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_all_rows_have_the_same_budget_and_learn_from_the_train_split():
    runs = demo_config.get_config().runs.values()
    facts = {(one.batch_size, one.epochs, one.warmup_epochs, str(one.data.to_dict()), one.optimizer.name) for one in runs}
    assert len(facts) == 1
    assert all(
        one.data.splits.to_dict() == {"train": "tales/train.jsonl", "val": "", "test": "tales/test.jsonl"} for one in runs
    )


@pytest.mark.slow
@pytest.mark.skipif(not STORIES, reason="set TOAST_STORIES15M to a folder of Hugging Face with karpathy's stories15M")
def test_whole(tmp_path):
    """As `make demo-language` runs it: what it is for does happen."""
    config = demo_config.get_config()
    config.weights = STORIES
    demo.run(config, str(tmp_path))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert list(rows) == ["not_tuned", *demo_config.ROWS]
    assert rows["not_tuned"]["answered_rightly"][0] < 0.1
    assert all(rows[name]["answered_rightly"][0] > 0.5 for name in ("finetune", "lora", "toast", "toast_not_pretuned"))
    assert (
        rows["toast"]["test_perplexity"] < rows["toast_frozen_back"]["test_perplexity"] < rows["not_tuned"]["test_perplexity"]
    )
