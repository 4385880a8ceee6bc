"""Score a language model without a judge: `--config=configs/score.py:run=RUN`."""

import collections
import functools
import json
import logging
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.analysis import bootstrap, report
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.text import batches, sequences
from toast_jax.data.text.documents import Turn
from toast_jax.data.text.sequences import Sequences
from toast_jax.devices import parallel
from toast_jax.errors import InputError, renaming
from toast_jax.model import losses
from toast_jax.tasks.language import question_file
from toast_jax.tasks.language.speaker import Speaker
from toast_jax.train import text_runs
from toast_jax.train.evaluation import evaluate, mapped
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

_WIDTH = 64  # sequences are padded to multiples of it, so that those of similar lengths share a compiled program


class Question(NamedTuple):
    """A context, texts that may continue it, and the position of the right one."""

    context: str
    choices: list[str]
    answer: int


def run(config: ConfigDict, folder: str) -> None:
    """Measure what the config names files for, log a table and write `score.json` to the folder.

    `config.text`: the perplexity, as in an evaluation of the run. `config.choices`: the accuracy of the choice with the largest
    log-likelihood, and of that with the largest per character; by question in `choices_scored.jsonl`. `config.questions`: exact
    match and F1 of generated answers, by question in `answers.jsonl`. Scores of questions have 95 % bootstrap intervals.

    Raises:
      InputError: there is nothing to measure, or a file or the run cannot be read.
    """
    check_fields(config)
    measures = {"text": _perplexity, "choices": _of_choices, "questions": _of_answers}
    if not any(config[name] for name in measures):
        raise InputError("Nothing to measure; name a file in --config.choices, --config.questions or --config.text.")
    # The most likely answers.
    speaker = Speaker(ConfigDict({**config, "temperature": 0.0, "top_p": 1.0}))
    folder = run_folder.writable(folder)
    with speaker.precision():
        results = {name: measure(config, speaker, folder) for name, measure in measures.items() if config[name]}
    run_folder.write_json(folder / "score.json", {**results, "config": config.to_dict(), **run_folder.circumstances()})
    rows = [row for name, result in results.items() for row in _rows(name, result)]
    log.info(
        "%s\nThe scores are in %s.", report.markdown(["score", "value", "95 % interval", "of"], rows), folder / "score.json"
    )


def _rows(name, result):
    counted = f"{result['count']:,} {'tokens' if name == 'text' else 'questions'}"
    for score, value in result.items():
        if isinstance(value, dict):
            yield [f"{name}: {score}", f"{value['mean']:.4f}", "{:.4f} to {:.4f}".format(*value["interval"]), counted]
        elif isinstance(value, float):
            yield [f"{name}: {score}", f"{value:.4f}", "-", counted]


def _write_lines(path: Path, records: list[dict]) -> None:
    run_folder.replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _batch_size(config) -> int:
    devices = jax.local_device_count()
    return -(-config.batch_size // devices) * devices


def _perplexity(config, speaker, folder) -> dict[str, Any]:
    of_run = speaker.config
    # A network that was not tuned has the default length, which its context may not hold.
    length = config.length or min(of_run.data.length, speaker.context)
    if length > speaker.context:
        raise InputError(
            f"config.length is {length}, but this network reads {speaker.context} tokens; set "
            f"--config.length={speaker.context} or less."
        )
    of_run.data.length, of_run.data.too_long = length, "cut"
    with renaming(OF_SAVED | {"data.splits": "text", "data.format": "format", "data.length": "length"}):
        source = text_runs.open_file(of_run, config.text, speaker.tokenizer, speaker.template)
    model, method, params = speaker.network
    step = mapped(losses.tune(model, method))
    batch = batches.eval_batches(source, batch_size=_batch_size(config))
    none_frozen = jax.tree.map(lambda _: None, params)
    return text_runs.summary(evaluate(step, parallel.place(params), none_frozen, batch).means)


def _of_choices(config, speaker, folder: Path) -> dict[str, Any]:
    with renaming({"data.splits": "choices"}):
        questions = _read_choices(config.choices)
    scored, cut = log_likelihoods(speaker, questions, _batch_size(config))
    # The length in characters, as in lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).
    picks = [
        (int(np.argmax(values)), int(np.argmax(values / [len(choice.strip()) for choice in question.choices])))
        for question, values in zip(questions, scored, strict=True)
    ]
    correct = np.array([[pick == question.answer for pick in both] for question, both in zip(questions, picks, strict=True)])
    lines = [
        {"log_likelihoods": values.tolist(), "picked": raw, "picked_normalized": normalized, "answer": question.answer}
        for question, values, (raw, normalized) in zip(questions, scored, picks, strict=True)
    ]
    _write_lines(folder / "choices_scored.jsonl", lines)
    scores = {"accuracy": correct[:, 0], "accuracy_normalized": correct[:, 1]}
    return {**bootstrap.summary(scores, config.seed), "count": len(questions), "contexts_cut": cut}


def _read_choices(path: str) -> list[Question]:
    """Read records of `context`, `choices` and `answer`, the position of the right choice from 0 or its text.

    Raises:
      InputError: the file cannot be read, or a record lacks one of them.
    """
    questions = []
    for place, record in question_file.read(path):
        fields = record if isinstance(record, dict) else {}
        context, choices, answer = (fields.get(name) for name in Question._fields)
        if not isinstance(context, str) or not isinstance(choices, list) or len(choices) < 2:
            raise InputError(
                f'{place} has no text under "context" or no list of two or more under "choices"; write '
                '{"context": "...", "choices": ["...", "..."], "answer": 0} in every line.'
            )
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise InputError(f"{place} has a choice that is empty or no text; correct or remove it.")
        if isinstance(answer, str) and choices.count(answer) == 1:
            answer = choices.index(answer)
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise InputError(
                f'{place} has no "answer" among its {len(choices)} choices ({answer!r}); write the position of the '
                "right one, from 0, or its text."
            )
        questions.append(Question(context, choices, answer))
    return questions


def log_likelihoods(speaker: Speaker, questions: list[Question], batch_size: int) -> tuple[list[np.ndarray], int]:
    """Sum the log-probabilities of the tokens of every choice after its context, in batches over all devices.

    A space is put between context and choice unless one of them has it. A context that does not fit the network loses its
    beginning.

    Args:
      questions: each with any number of choices.
      batch_size: a multiple of the number of devices.

    Returns:
      for each question float64 `[choices]`, and the number of contexts that lost their beginning.

    Raises:
      InputError: a choice alone does not fit the network.
    """
    rows, cut = [], 0
    for question in questions:
        encoded = [_encoded(speaker, question.context, choice) for choice in question.choices]
        cut += any(is_cut for *_, is_cut in encoded)
        rows += [(ids, flags) for ids, flags, _ in encoded]
    if cut:
        log.warning(
            "%d contexts do not fit the %d tokens that the network reads, and lose their beginning.", cut, speaker.context
        )
    model, method, params = speaker.network
    step, params = parallel.replicate(functools.partial(_summed, losses.tune(model, method)), 1), parallel.place(params)
    widths = np.array([min(-(-len(ids) // _WIDTH) * _WIDTH, speaker.context) for ids, _ in rows])
    sums = np.zeros(len(rows))
    for width in np.unique(widths):
        places = np.flatnonzero(widths == width)
        source = _source([rows[i] for i in places], int(width))
        shards = parallel.sharded(batches.eval_batches(source, batch_size=batch_size))
        sums[places] = np.concatenate(jax.device_get([step(params, batch) for batch in shards]))[: len(places)]
    return np.split(sums, np.cumsum([len(question.choices) for question in questions])[:-1]), cut


def _encoded(speaker, context: str, choice: str) -> tuple[list[int], list[bool], bool]:
    spaced = not context or context[-1].isspace() or choice[0].isspace()
    context = context if spaced else f"{context} "
    # Of a space before it, too, where the tokenizer joins them, and as a network would generate it.
    ids, flags = sequences.encode([Turn(context + choice, len(context.rstrip()), ends=False)], speaker.tokenizer)
    surplus, first = len(ids) - speaker.context, 0 if speaker.tokenizer.begin is None else 1  # the begin token is kept
    begins = not flags[0]
    if surplus > 0:
        ids, flags = ids[:first] + ids[first + surplus :], flags[:first] + flags[first + surplus :]
    if not begins or (surplus > 0 and flags[first]):
        raise InputError(
            f"The choice {choice[:40]!r} has no context before it in the {speaker.context} tokens that this network reads; "
            "write a context, or shorten the choice."
        )
    return ids, flags, surplus > 0


def _source(rows, width: int) -> Sequences:
    tokens, segments, answers = (
        np.full((len(rows), width), fill, kind) for fill, kind in ((0, np.int32), (-1, np.int32), (0, bool))
    )
    for row, (ids, flags) in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)], answers[row, : len(ids)] = ids, 1, flags
    return Sequences(tokens, segments, answers)


def _summed(scores: Callable, params: dict, batch: dict) -> jax.Array:
    """Return the log-likelihood of the predicted tokens of every sequence of the global batch, `[B]`."""
    by_sequence = -scores(params, batch)["loss"] * batch["mask"]  # the loss is the mean of a sequence
    return jax.lax.all_gather(by_sequence, parallel.AXIS, tiled=True)


def _of_answers(config, speaker, folder: Path) -> dict[str, Any]:
    with renaming({"data.splits": "questions"}):
        records = question_file.read(config.questions)
    expected = []
    for place, record in records:
        fields = record if isinstance(record, dict) else {}
        answers = fields.get("answer")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(fields.get("question"), str) or not isinstance(answers, list) or not answers:
            raise InputError(
                f'{place} has no text under "question" or none under "answer"; write {{"question": "...", "answer": '
                '"..."} in every line, or a list of right answers.'
            )
        if not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"{place} has an answer that is no text; correct it.")
        expected.append(answers)
    generated = list(speaker.each([speaker.tokens(record["question"]) for _, record in records], config.batch_size))
    matches = [max(exact_match(text, answer) for answer in answers) for text, answers in zip(generated, expected, strict=True)]
    shares = [max(token_f1(text, answer) for answer in answers) for text, answers in zip(generated, expected, strict=True)]
    lines = [
        {**record, "generated": text, "exact_match": match, "f1": share}
        for (_, record), text, match, share in zip(records, generated, matches, shares, strict=True)
    ]
    _write_lines(folder / "answers.jsonl", lines)
    scores = {"exact_match": np.array(matches), "f1": np.array(shares)}
    return {**bootstrap.summary(scores, config.seed), "count": len(records)}


def words_of(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them (arXiv 1606.05250): lower case, no punctuation, no articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(text: str, expected: str) -> float:
    """Return 1 if two answers have the same words in the same order, else 0; see `words_of`."""
    return float(words_of(text) == words_of(expected))


def token_f1(text: str, expected: str) -> float:
    """Return the harmonic mean of precision and recall of the words of an answer; see `words_of`."""
    words, right = words_of(text), words_of(expected)
    common = (collections.Counter(words) & collections.Counter(right)).total()
    return 2 * common / (len(words) + len(right)) if words and right else float(words == right)
