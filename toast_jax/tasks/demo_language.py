"""The demo of language: `--config=configs/demo_language.py`. Every row of its table is a run like any other."""

import dataclasses
import json
import logging
import textwrap
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import curves, report
from toast_jax.config.check import check_fields
from toast_jax.data.text import tales
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.tasks import generate
from toast_jax.train import text
from toast_jax.train.evaluation import evaluate, mapped
from toast_jax.train.loop import fit, fit_seeds
from toast_jax.train.setup import load_network, scores_of
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import told_in

log = logging.getLogger(__name__)

HEADER = ("method", "tuned", "perplexity", "answered rightly, %", "tokens/s")
NOT_TUNED = "not_tuned"

# The smallest network that tells stories, and its tokenizer.
FILES = (
    "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories15M.bin",
    "https://github.com/karpathy/llama2.c/raw/master/tokenizer.bin",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What one row of the table has measured.

    Attributes:
      tuned: parameters.
      perplexity: of the answers to the held-out questions, `[seeds]`.
      answers: of each seed, what the network said to each of them.
      tokens_per_second: while training, padding too, `[seeds]`.
    """

    tuned: int
    perplexity: np.ndarray
    answers: tuple[tuple[str, ...], ...]
    tokens_per_second: np.ndarray = dataclasses.field(default_factory=lambda: np.array([]))

    def right(self, wanted: tuple[str, ...]) -> np.ndarray:
        """The share of questions that are answered to the letter, `[seeds]`."""
        return np.array([np.mean([one == other for one, other in zip(said, wanted, strict=True)]) for said in self.answers])


def run(config: ConfigDict, folder: str) -> None:
    """Pre-tunes, tunes, asks, prints the table and writes `report.html`; what is done already is not repeated.

    Raises:
      InputError: there is no language model where the config says.
    """
    started = time.perf_counter()
    check_fields(config)
    _check_weights(config.weights)
    folder = run_folder.writable(folder)
    log.info("%d runs; what each of them tells is in %s.", 1 + len(config.rows) * len(config.seeds), folder / "log.txt")
    held_out = [tales.tale("test", i) for i in range(config.tales.test)]
    wanted = tuple(one.answer for one in held_out)
    rows = {}
    with told_in(folder / "log.txt", but=log):
        files = run_folder.writable(folder / "tales")
        tales.write(files, dict(config.tales))
        fit(_placed(config.pretune, config, folder), folder / "pretune")
        for name in (NOT_TUNED, *config.rows):
            rows[name] = _not_tuned(config, folder) if name == NOT_TUNED else _tuned(name, config, folder)
            log.info("%-20s %s %% of the held-out questions answered rightly", name, report.percent(rows[name].right(wanted)))
    table = [_cells(name, row, wanted) for name, row in rows.items()]
    note = (
        f"{len(wanted)} held-out questions. Perplexity: of the right answers, by token. Answered rightly: to the letter, with "
        f"the likeliest token at each place. Tokens/s: while training, padding too. Seeds: {', '.join(map(str, config.seeds))}."
    )
    log.info("\n%s\n", report.columns(HEADER, table))
    log.info("%s", textwrap.fill(note, 100))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    facts = run_folder.circumstances()
    story = _story(config, rows, held_out, table, note, folder, facts)
    (folder / "report.html").write_text(report.page("TOAST for language in a few minutes", *story), encoding="utf-8")
    run_folder.write_json(folder / "result.json", _result(config, rows, wanted, facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def _check_weights(weights: str):
    if not Path(weights).expanduser().is_dir():
        raise InputError(
            f"There is no folder {weights} with a small language model; put {' and '.join(FILES)} in it (61 MB), or name the "
            "folder of stories15M with --config.weights=FOLDER (make demo-language WEIGHTS=FOLDER)."
        )


def _placed(run: ConfigDict, config: ConfigDict, folder: Path) -> ConfigDict:
    """A run with the files that it reads, which the config names as they stand in the demo's folder."""
    run = run.copy_and_resolve_references()
    run.backbone.weights = run.data.tokenizer = config.weights
    run.data.splits = {name: str(folder / path) if path else "" for name, path in run.data.splits.items()}
    run.top_down = str(folder / run.top_down) if run.top_down else ""
    return run


def _tuned(name: str, config: ConfigDict, folder: Path) -> Row:
    folders = {seed: folder / name / f"seed_{seed}" for seed in config.seeds}
    results = fit_seeds(_placed(config.runs[name], config, folder), folders)
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        perplexity=np.array([one["test"]["perplexity"] for one in results]),
        answers=tuple(_answers(config, folder, one, run=str(one)) for one in folders.values()),
        tokens_per_second=np.array([rate for one in results if (rate := one["tokens_per_second"])]),
    )


def _not_tuned(config: ConfigDict, folder: Path) -> Row:
    """The language model as it is."""
    run, here = _placed(config.not_tuned, config, folder), run_folder.writable(folder / NOT_TUNED)
    if not (saved := run_folder.recorded(here, run)):
        network = load_network(run, 0)
        step = mapped(scores_of(run, network), parallel)
        tuned, frozen = parallel.place(network.tuned), parallel.spread(network.frozen)
        source = text.open_sources(run, verified=True)[1]["test"]
        saved = {"test": text.summary(evaluate(step, tuned, frozen, text.eval_batches(run, source)))}
        run_folder.write_json(here / "config.json", run.to_dict())
        run_folder.write_json(here / "result.json", saved)
    return Row(0, np.array([saved["test"]["perplexity"]]), (_answers(config, folder, here, network=run),))


def _answers(config: ConfigDict, folder: Path, of_run: Path, **speaker) -> tuple[str, ...]:
    """What a network says to the held-out questions, kept in `answers.jsonl`; `speaker` are fields of `configs/generate.py`."""
    asked = folder / "tales" / tales.QUESTIONS
    file = of_run / "answers.jsonl"
    try:
        answers = _lines(file)
    except (OSError, ValueError):  # not there, or not whole
        answers = []
    if [one["question"] for one in answers] != [one["question"] for one in _lines(asked)]:
        generate.run(ConfigDict({**config.speaker, **speaker, "file": str(asked)}), of_run)
        answers = _lines(file)
    return tuple(one["answer"].strip() for one in answers)


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _cells(name: str, row: Row, wanted: tuple[str, ...]) -> list[str]:
    speed = f"{np.median(row.tokens_per_second):,.0f}" if row.tokens_per_second.size else "-"
    return [name, f"{row.tuned:,}", f"{np.median(row.perplexity):.2f}", report.percent(row.right(wanted)), speed]


def _story(config, rows, held_out, table, note, folder, facts) -> list[str]:
    charts = [curves.of_rows(folder, config.rows, config.seeds, metric) for metric in ("train/loss", "train/accuracy")]
    asked = [
        [f"{one.text} {one.question}", *(_verdict(row.answers[0][i], one.answer) for row in rows.values())]
        for i, one in enumerate(held_out[: config.shown])
    ]
    return [
        report.heading("TOAST: read, select, read again", 1),
        report.paragraph(
            "A small language model was trained to tell stories for small children. Here it is tuned, in several ways, to "
            "answer a question about what it has read. The same tales, the same number of steps; no answer of a held-out tale "
            "stands anywhere in the tales to learn from."
        ),
        report.table(HEADER, table),
        report.paragraph(note, "small"),
        report.heading("What it answers"),
        report.paragraph(f"The first {len(asked)} held-out tales, not chosen, and the answers of the first seed's networks."),
        report.texts(["tale and question", *(name.replace("_", " ") for name in rows)], asked),
        report.heading("Learning curves"),
        f'<div class="charts">{"".join(charts)}</div>',
        report.made_by("configs/demo_language.py", facts),
    ]


def _verdict(answer: str, wanted: str) -> str:
    return f"{'✓' if answer == wanted else '✗'} {answer}"


def _result(config, rows, wanted, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "test_perplexity": row.perplexity.tolist(),
            "answered_rightly": row.right(wanted).tolist(),
            "tokens_per_second": row.tokens_per_second.tolist(),
        }
        for name, row in rows.items()
    }
    return {"rows": measured, "seeds": list(config.seeds), "config": config.to_dict(), **facts}
