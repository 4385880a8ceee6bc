"""Generate text: `--config=configs/generate.py:run=FOLDER`, with a run that has tuned a language model."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check_fields
from toast_jax.data.text import documents
from toast_jax.errors import InputError
from toast_jax.model import families, generation
from toast_jax.model.generation import Sampling
from toast_jax.train import saved_run, text
from toast_jax.train.setup import load_network
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

# How a question is put to a network that was tuned on a format of `data.text`; the second argument is whether it is the first.
_ASKED: dict[str, Callable[[str, bool], str]] = {
    "text": lambda question, first: question,
    "prompts": lambda question, first: question,
    "instructions": lambda question, first: documents.instruct(question),
    "conversations": documents.converse,
}


def run(config: ConfigDict, folder: str) -> None:
    """Answers a file of questions, one prompt, or what is typed, in this order of what the config names.

    Answers to a file go to `answers.jsonl` in the folder; everything else to the terminal, as it is drawn.

    Raises:
      InputError: no such run or backbone, a number out of range, or a question that does not fit the context.
    """
    check_fields(config)
    speaker = Speaker(config)
    if config.file:
        _answer_file(config, speaker, run_folder.writable(folder))
    elif config.prompt:
        speaker.stream(speaker.tokens(config.prompt))
    else:
        _converse(speaker)


class Speaker:
    """A network with its tokenizer, and how its config wants it to draw."""

    def __init__(self, config: ConfigDict):
        if config.run:
            saved = saved_run.load(config.run, config.weights)
            of_run, self._network = saved.config, (saved.model, saved.method, saved.params)
            if families.of_config(of_run).reads != "text":
                raise InputError(f"The run in {config.run} has tuned a network of images; give one of a language model.")
        elif config.network:
            of_run, network = config.network, load_network(config.network, 0)
            self._network = network.model, network.method, trees.merge(network.tuned, network.frozen)
        else:
            raise InputError("Nothing to generate with; write --config=configs/generate.py:run=RUN, or :backbone=BACKBONE.")
        if config.tokenizer:
            of_run.data.tokenizer = config.tokenizer
        self._tokenizer = text.open_tokenizer(of_run)
        self._most, self._seed, self._context = config.most, config.seed, self._network[0].backbone.context
        self._sampling = Sampling(config.temperature, config.top_p, (self._tokenizer.end,))
        self.format = config.format or of_run.data.format
        self._asked = _ASKED[self.format]

    def tokens(self, question: str, before: list[int] = ()) -> list[int]:
        """What the network reads when it is asked; `before` is what was said until then.

        Raises:
          InputError: that and an answer do not fit the context.
        """
        begin = [] if self._tokenizer.begin is None or before else [self._tokenizer.begin]
        ids = [*before, *begin, *self._tokenizer.encode(self._asked(question, not before)).ids]
        if not ids:
            raise InputError("The prompt is empty, and this tokenizer begins a text with nothing; write a word at least.")
        if len(ids) + self._most > self._context:
            raise InputError(
                f"The prompt {question[:40]!r} has {len(ids)} tokens, and with --config.most={self._most} more it does not fit "
                f"the {self._context} that this network reads; shorten one of them."
            )
        return ids

    def stream(self, ids: list[int]) -> list[int]:
        """Prints an answer as it is drawn; returns what was read and said, as tokens."""
        said, shown = [], ""
        for part in self._draw([ids], at_once=1):
            said += part[0].tolist()
            now = self._text(said)
            if not now.endswith("\ufffd"):  # a character that is not whole yet
                print(now[len(shown) :], end="", flush=True)
                shown = now
        print(self._text(said)[len(shown) :])
        return [*ids, *generation.until_stop(np.array(said), self._sampling.stop), self._tokenizer.end]

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """The answers to several prompts at once."""
        return [self._text(row) for row in np.concatenate(list(self._draw(prompts, at_once=16)), axis=1)]

    def _draw(self, prompts, at_once) -> Iterator[np.ndarray]:
        return generation.generate(
            *self._network, prompts, most=self._most, sampling=self._sampling, seed=self._seed, at_once=at_once
        )

    def _text(self, tokens):
        return self._tokenizer.decode(generation.until_stop(np.asarray(tokens), self._sampling.stop))


def _answer_file(config, speaker, folder: Path) -> None:
    path = Path(config.file).expanduser()
    questions = documents.records(path)
    for place, record in questions:
        if not isinstance(record, dict) or not isinstance(record.get("question"), str):
            raise InputError(f'{place} of {path} has no text under "question"; write {{"question": "..."}} in every line.')
    prompts = [speaker.tokens(record["question"]) for _, record in questions]
    answered = folder / "answers.jsonl"
    with answered.open("w", encoding="utf-8") as file:
        for start in range(0, len(prompts), config.batch_size):
            some = prompts[start : start + config.batch_size]
            # Filled up, so that the last batch needs no program of its own.
            answers = speaker.answers(some + some[:1] * (config.batch_size - len(some)))
            for (_, record), answer in zip(questions[start : start + config.batch_size], answers, strict=False):
                file.write(json.dumps({**record, "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
            log.info("%d of %d questions answered.", min(start + config.batch_size, len(prompts)), len(prompts))
    log.info("The answers are in %s.", answered)


def _converse(speaker) -> None:
    """Answers every line that is typed, until the input ends; a conversation goes on until it does not fit any more."""
    before = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if not line.strip():
            continue
        try:
            ids = speaker.tokens(line.rstrip("\n"), before)
        except InputError as message:
            if not before:
                raise
            log.warning("%s The conversation begins anew.", message)
            before = []
            ids = speaker.tokens(line.rstrip("\n"))
        said = speaker.stream(ids)
        before = said if speaker.format == "conversations" else []
