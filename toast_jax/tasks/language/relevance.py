"""Show which tokens a tuned language model feeds back: `--config=configs/relevance.py:run=RUN`."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from toast_jax.analysis import report
from toast_jax.config.check import check_fields
from toast_jax.data.text import documents, sequences, tokenizer
from toast_jax.errors import InputError, renaming
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply
from toast_jax.tasks.language import question_file
from toast_jax.tasks.language.speaker import Speaker
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

_WIDTH = 64  # passages are padded to multiples of it, so that those of similar lengths share a compiled program
_LEGEND = (
    "The network looks at a text once and feeds each token back, scaled by its relevance: the cosine of the token's output in "
    "this first look and the prior that was tuned for the task, clipped to 0 to 1. A token is dropped at 0. The shade is the "
    "relevance divided by the largest of this page, special tokens aside; point at a token to read its relevance."
)
# By `config.data.format`: the record of a question and its answer, as in the tuning data.
_RECORDS: dict[str, Callable[[str, str], dict]] = {
    "text": lambda question, answer: {"prompt": question, "response": _spaced(question, answer)},
    "prompts": lambda question, answer: {"prompt": question, "response": _spaced(question, answer)},
    "instructions": lambda question, answer: {"instruction": question, "output": answer},
    "conversations": lambda question, answer: {
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    },
    "messages": lambda question, answer: {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    },
}


class Piece(NamedTuple):
    """The text of one token, or of tokens that share a character, and the relevance of each of them."""

    text: str
    relevance: list[float]
    answer: bool
    special: bool


def run(config: ConfigDict, folder: str) -> None:
    """Write `relevance.html`, every question and answer with its tokens shaded by relevance, and `relevance.json`.

    Raises:
      InputError: there is no run or question, the network has no top-down module, or a passage does not fit the context.
    """
    if not (config.run or config.network) or not (config.prompt or config.file):
        raise InputError(f"Nothing to look at; write --config=configs/{config.task}.py:run=RUN --config.prompt=QUESTION.")
    check_fields(config)
    # The most likely answers.
    speaker = Speaker(ConfigDict({**config, "temperature": 0.0, "top_p": 1.0, "seed": 0}))
    model, method, params = speaker.network
    if model.top_down is None:
        network = f"The run in {config.run}" if config.run else f"The network of {speaker.config.backbone.weights}"
        raise InputError(
            f"{network} has no top-down module (method {speaker.config.method}), so it selects no tokens; give a run of toast "
            "or toast_lite."
        )
    questions, folder = list(_questions(config)), run_folder.writable(folder)
    passages = []
    with speaker.precision():
        for question, answer in questions:
            ids, flags = _given(speaker, question, answer) if answer else _generated(speaker, question, config.most)
            passages.append(_pieces(speaker.tokenizer, ids, flags, relevance(model, method, params, ids)))
    page = folder / "relevance.html"
    page.write_text(_page(config, [question for question, _ in questions], passages), encoding="utf-8")
    result = [
        {"question": question, "pieces": [piece._asdict() for piece in pieces]}
        for (question, _), pieces in zip(questions, passages, strict=True)
    ]
    facts = {"config": config.to_dict(), **run_folder.circumstances()}
    run_folder.write_json(folder / "relevance.json", {"questions": result, **facts})
    log.info("The relevance of the tokens of %d questions and answers is in %s.", len(questions), page.resolve())


def relevance(model: Steered, method: Method, params: dict, ids: list[int]) -> Float32[np.ndarray, " N"]:
    """Compute the relevance of each of N tokens, between 0 (dropped) and 1 (fed back as it is); see `top_down.select`."""
    width = min(-(-len(ids) // _WIDTH) * _WIDTH, model.backbone.context)
    tokens, segments = np.zeros((1, width), np.int32), np.full((1, width), -1, np.int32)
    tokens[0, : len(ids)], segments[0, : len(ids)] = ids, 1
    return np.asarray(_selection(model, method, params, {"tokens": tokens, "segments": segments}))[0, : len(ids)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _selection(model, method, params, text):
    _, out = apply(model, method, params, text, call="looks", maps=False)  # only the first look is compiled
    return out["selection"][..., 0]


def _questions(config) -> Iterator[tuple[str, str]]:
    """Return each question with its answer, "" where the run has to generate one."""
    if not config.file:
        yield config.prompt, config.answer
        return
    with renaming({"data.splits": "file"}):
        records = question_file.read(config.file)
    for place, record in records:
        fields: dict[str, Any] = {"answer": ""} | (record if isinstance(record, dict) else {})
        if not isinstance(fields.get("question"), str) or not isinstance(fields["answer"], str):
            raise InputError(
                f'{place} has no text under "question", or an "answer" that is no text; write {{"question": "..."}} '
                'or {"question": "...", "answer": "..."} in every line.'
            )
        yield fields["question"], fields["answer"]


def _given(speaker, question: str, answer: str) -> tuple[list[int], list[bool]]:
    """Encode a question with its answer as in the tuning data, and mark the tokens of the answer."""
    form = speaker.config.data.format
    read = speaker.template.documents if speaker.template else documents.FORMATS["prompts" if form == "text" else form]
    made = read(_RECORDS[form](question, answer))
    if not made:
        raise InputError(f"The question {question[:40]!r} or its answer is empty; correct it.")
    ids, flags = sequences.encode(made[0], speaker.tokenizer)
    if len(ids) > speaker.context:
        raise InputError(
            f"The question {question[:40]!r} and its answer have {len(ids)} tokens, more than the {speaker.context} that this "
            "network reads; shorten one of them."
        )
    return ids, flags


def _spaced(question: str, answer: str) -> str:
    """Return an answer with a space before it unless it or the end of the question has one."""
    return answer if not question or question[-1].isspace() or answer[0].isspace() else f" {answer}"


def _generated(speaker, question: str, most: int) -> tuple[list[int], list[bool]]:
    """Let the run answer, in the terminal; return the tokens of prompt and answer, and mark those of the answer."""
    prompt = speaker.tokens(question)
    ids = speaker.stream(prompt)[: len(prompt) + most]  # an answer of `most` tokens has not ended
    return ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt))


def _pieces(words: tokenizer.Tokenizer, ids: list[int], flags: list[bool], values) -> list[Piece]:
    special, pieces, start = {*words.special.values()}, [], 0
    for count, text in tokenizer.pieces(words, ids):
        part = [float(value) for value in values[start : start + count]]
        pieces.append(Piece(text, part, flags[start], ids[start] in special))
        start += count
    return pieces


def _page(config, questions: list[str], passages: list[list[Piece]]) -> str:
    # The begin token is nearly the same in every text, and may outshine all others.
    values = [value for pieces in passages for piece in pieces if not piece.special for value in piece.relevance]
    most = max([*values, 1e-6])

    def shaded(pieces):
        notes = [", ".join(f"{value:.3f}" for value in piece.relevance) for piece in pieces]
        shares = [min(sum(piece.relevance) / len(piece.relevance) / most, 1.0) for piece in pieces]
        return report.shaded((piece.text, share, note) for piece, share, note in zip(pieces, shares, notes, strict=True))

    scale = report.shaded((f" {share * most:.3f} ", share, "") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    parts = [report.heading("Which tokens are fed back", 1), report.paragraph(_LEGEND), scale]
    for question, pieces in zip(questions, passages, strict=True):
        parts.append(report.heading(question if len(question) <= 80 else f"{question[:77]}..."))
        for name, answers in (("prompt", False), ("answer", True)):
            shown = [piece for piece in pieces if piece.answer == answers]
            inside = [value for piece in shown for value in piece.relevance]
            if shown:
                spread = f"relevance {np.mean(inside):.3f} on average, {min(inside):.3f} to {max(inside):.3f}"
                parts += [report.paragraph(f"{name}: {len(inside)} tokens, {spread}", "small"), shaded(shown)]
    of = f"the run in {config.run}" if config.run else f"the network of {config.network.backbone.weights}"
    made_by = f"Made by configs/relevance.py from {of}."
    return report.page("Which tokens are fed back", *parts, report.paragraph(made_by, "small"))
