"""Run the language demo: `--config=configs/demo_language.py`. Each row of its table is an ordinary run."""

import dataclasses
import json
import logging
import textwrap
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import toast_jax
from toast_jax.analysis import curves, report
from toast_jax.config.check import check_fields
from toast_jax.data.text import synthetic_tales
from toast_jax.devices import parallel, precision
from toast_jax.errors import InputError, renaming
from toast_jax.tasks.language import generate
from toast_jax.train import text_runs
from toast_jax.train.evaluation import evaluate, mapped
from toast_jax.train.loop import fit, fit_seeds
from toast_jax.train.setup import load_network, scores_of
from toast_jax.workdir import run_folder
from toast_jax.workdir.progress import log_to_file

log = logging.getLogger(__name__)

HEADER = ("method", "tuned", "perplexity", "answered rightly, %", "tokens/s")
NOT_TUNED = "not_tuned"
# Fields of the runs that the demo sets from its own.
_PLACED = {"backbone.weights": "weights", "data.tokenizer": "weights"}

# A small model of children's stories, and its tokenizer.
FILES = (
    "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories15M.bin",
    "https://github.com/karpathy/llama2.c/raw/master/tokenizer.bin",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurements of one row of the table.

    Attributes:
      tuned: number of tuned parameters.
      perplexity: of the correct answers to the held-out questions, `[seeds]`.
      answers: the network's answer to each question, by seed.
      tokens_per_second: of training, padding included. Runs that resumed just before their end have no speed and are left out.
    """

    tuned: int
    perplexity: np.ndarray
    answers: tuple[tuple[str, ...], ...]
    tokens_per_second: np.ndarray = dataclasses.field(default_factory=lambda: np.array([]))

    def right(self, expected: tuple[str, ...]) -> np.ndarray:
        """Return the share of questions whose answer matches exactly, `[seeds]`."""
        return np.array([np.mean([a == b for a, b in zip(answers, expected, strict=True)]) for answers in self.answers])


def run(config: ConfigDict, folder: str) -> None:
    """Pre-tunes, tunes and questions every row, logs the table and writes `report.html`; finished runs are not repeated.

    Raises:
      InputError: the folder of the language model does not exist.
    """
    started = time.perf_counter()
    check_fields(config)
    _check_weights(config.weights)
    folder = run_folder.writable(folder)
    log.info("%d runs; their logs are in %s.", 1 + len(config.rows) * len(config.seeds), folder / "log.txt")
    held_out = [synthetic_tales.tale("test", i) for i in range(config.tales.test)]
    expected = tuple(tale.answer for tale in held_out)
    rows = {}
    with log_to_file(folder / "log.txt", but=log):
        files = run_folder.writable(folder / "tales")
        synthetic_tales.write(files, dict(config.tales))
        with renaming(_PLACED, "pretune"):
            fit(_placed(config.pretune, config, folder), folder / "pretune")
        for name in (NOT_TUNED, *config.rows):
            rows[name] = _not_tuned(config, folder) if name == NOT_TUNED else _tuned(name, config, folder)
            log.info(
                "%-20s %s %% of the held-out questions answered correctly", name, report.percent(rows[name].right(expected))
            )
    table = [_cells(name, row, expected) for name, row in rows.items()]
    note = (
        f"{len(expected)} held-out questions. Perplexity: per token of the correct answers. Answered rightly: exact match of "
        f"greedy decoding. Tokens/s: training, padding included. Seeds: {', '.join(map(str, config.seeds))}."
    )
    log.info("\n%s\n", report.columns(HEADER, table))
    log.info("%s", textwrap.fill(note, 100))
    (folder / "table.md").write_text(report.markdown(HEADER, table) + "\n")
    facts = run_folder.circumstances()
    story = _story(config, rows, held_out, table, note, folder, facts)
    (folder / "report.html").write_text(report.page("TOAST for language in a few minutes", *story), encoding="utf-8")
    run_folder.write_json(folder / "result.json", _result(config, rows, expected, facts))
    log.info("The report is %s (%.0f seconds).", (folder / "report.html").resolve(), time.perf_counter() - started)


def _check_weights(weights: str):
    if not Path(weights).expanduser().is_dir():
        raise InputError(
            f"There is no folder {weights} with a small language model; put {' and '.join(FILES)} in it (61 MB), or name the "
            "folder of stories15M with --config.weights=FOLDER (make demo-language WEIGHTS=FOLDER)."
        )


def _placed(run: ConfigDict, config: ConfigDict, folder: Path) -> ConfigDict:
    """Resolve the files that a run reads; the config names those of the demo relative to its folder."""
    run = run.copy_and_resolve_references()
    run.backbone.weights = run.data.tokenizer = config.weights
    run.data.splits = {name: str(folder / path) if path else "" for name, path in run.data.splits.items()}
    run.top_down = str(folder / run.top_down) if run.top_down else ""
    return run


def _tuned(name: str, config: ConfigDict, folder: Path) -> Row:
    folders = {seed: folder / name / f"seed_{seed}" for seed in config.seeds}
    with renaming(_PLACED, f"runs.{name}"):
        results = fit_seeds(_placed(config.runs[name], config, folder), folders)
    return Row(
        tuned=results[0]["tuned_parameters"]["all"],
        perplexity=np.array([result["test"]["perplexity"] for result in results]),
        answers=tuple(_answers(config, folder, path, run=str(path)) for path in folders.values()),
        tokens_per_second=np.array([rate for result in results if (rate := result["tokens_per_second"])]),
    )


def _not_tuned(config: ConfigDict, folder: Path) -> Row:
    """Measure the language model without tuning."""
    run, here = _placed(config.not_tuned, config, folder), run_folder.writable(folder / NOT_TUNED)
    with renaming(_PLACED, "not_tuned"):
        if not (saved := run_folder.recorded(here, run)):
            network = load_network(run, 0)
            step = mapped(scores_of(run, network), parallel)
            tuned, frozen = parallel.place(network.tuned), parallel.place(network.frozen)
            source = text_runs.open_sources(run, verified=True)[1]["test"]
            with precision.of_products(run):
                means = evaluate(step, tuned, frozen, text_runs.eval_batches(run, source)).means
            saved = {"test": text_runs.summary(means)}
            run_folder.write_json(here / "config.json", run.to_dict())
            run_folder.write_json(here / "result.json", saved)
    return Row(0, np.array([saved["test"]["perplexity"]]), (_answers(config, folder, here, network=run),))


def _answers(config: ConfigDict, folder: Path, of_run: Path, **speaker) -> tuple[str, ...]:
    """Answer the held-out questions; `speaker` holds fields of `configs/generate.py`.

    The answers are cached in `answers.jsonl`, beside the settings of the version that wrote them.
    """
    asked = folder / "tales" / synthetic_tales.QUESTIONS
    file, settings = of_run / "answers.jsonl", of_run / "answers_settings.json"
    current = json.loads(json.dumps({**ConfigDict(config.speaker).to_dict(), "version": toast_jax.__version__}))
    try:
        answers = _lines(file)
        is_current = json.loads(settings.read_text()) == current and [
            (line["question"], type(line["answer"])) for line in answers
        ] == [(line["question"], str) for line in _lines(asked)]
    except (OSError, ValueError, KeyError, TypeError):  # missing, incomplete or damaged
        is_current = False
    if not is_current:
        section = NOT_TUNED if "network" in speaker else f"runs.{of_run.parent.name}"
        with renaming(_of_speaker(section), "speaker"):
            generate.run(ConfigDict({**config.speaker, **speaker, "file": str(asked)}), str(of_run))
        run_folder.write_json(settings, current)
        answers = _lines(file)
    return tuple(line["answer"].strip() for line in answers)


def _of_speaker(section: str) -> dict[str, str]:
    """Return the demo's names of the fields of the task generate, `section` being the run that answers."""
    placed = dict.fromkeys(("weights", "tokenizer", *(f"network.{name}" for name in _PLACED)), "weights")
    return placed | {"network": section, "backbone": f"{section}.backbone", "data": f"{section}.data"}


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _cells(name: str, row: Row, expected: tuple[str, ...]) -> list[str]:
    speed = f"{np.median(row.tokens_per_second):,.0f}" if row.tokens_per_second.size else "-"
    return [name, f"{row.tuned:,}", f"{np.median(row.perplexity):.2f}", report.percent(row.right(expected)), speed]


def _story(config, rows, held_out, table, note, folder, facts) -> list[str]:
    asked = [
        [f"{tale.text} {tale.question}", *(_verdict(row.answers[0][i], tale.answer) for row in rows.values())]
        for i, tale in enumerate(held_out[: config.shown])
    ]
    return [
        report.heading("TOAST: read, select, read again", 1),
        report.paragraph(
            "A small language model was trained on stories for small children. Here it is tuned, in several ways, to answer a "
            "question about a tale. All methods get the same tales and the same number of steps; no answer to a held-out tale "
            "occurs anywhere in the training tales."
        ),
        report.table(HEADER, table),
        report.paragraph(note, "small"),
        report.heading("What the networks answer"),
        report.paragraph(f"The first {len(asked)} held-out tales, not hand-picked, and the first seed's answers."),
        report.table(["tale and question", *(name.replace("_", " ") for name in rows)], asked, kind="texts"),
        report.heading("Learning curves"),
        curves.of_rows(folder, config.rows, config.seeds),
        report.made_by("configs/demo_language.py", facts),
    ]


def _verdict(answer: str, expected: str) -> str:
    return f"{'✓' if answer == expected else '✗'} {answer}"


def _result(config, rows, expected, facts) -> dict:
    measured = {
        name: {
            "tuned_parameters": row.tuned,
            "test_perplexity": row.perplexity.tolist(),
            "answered_rightly": row.right(expected).tolist(),
            "tokens_per_second": row.tokens_per_second.tolist(),
        }
        for name, row in rows.items()
    }
    return {"rows": measured, "seeds": list(config.seeds), "config": config.to_dict(), **facts}
