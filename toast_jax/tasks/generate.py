"""Generate text with a tuned language model: `--config=configs/generate.py:run=FOLDER`."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.text import documents, sequences
from toast_jax.devices import precision
from toast_jax.errors import InputError, renaming
from toast_jax.model import families, generation
from toast_jax.model.generation import Sampling
from toast_jax.train import saved_run, text_runs
from toast_jax.train.setup import load_network
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

# The prompt of a question, by the format of the tuning data; the flag is True for the first question of a conversation. That of
# messages is `chat.Template.prompt`.
_PROMPTS: dict[str, Callable[[str, bool], str]] = {
    "text": lambda question, first: question,
    "prompts": lambda question, first: question,
    "instructions": lambda question, first: documents.instruct(question),
    "conversations": documents.converse,
}
_CONVERSING = ("conversations", "messages")  # formats whose next question follows the last answer


def run(config: ConfigDict, folder: str) -> None:
    """Answer `config.file`, else `config.prompt`, else the lines typed at the terminal.

    Answers to a file are written to `answers.jsonl` in the folder; all others are streamed to the terminal.

    Raises:
      InputError: no such run or backbone, a number out of range, or a question that does not fit the context.
    """
    check_fields(config)
    speaker = Speaker(config)
    with speaker.precision():
        if config.file:
            _answer_file(config, speaker, run_folder.writable(folder))
        elif config.prompt:
            speaker.stream(speaker.tokens(config.prompt))
        else:
            _converse(speaker)


class Speaker:
    """A network with its tokenizer, prompt format and sampling parameters; call its methods inside of `precision()`."""

    def __init__(self, config: ConfigDict):
        if config.run:
            with renaming(OF_SAVED):
                saved = saved_run.load(config.run, config.weights, config.top_down, config.module)
            of_run, self._network = saved.config, (saved.model, saved.method, saved.params)
            if families.of_config(of_run).reads != "text":
                raise InputError(f"The run in {config.run} has tuned a network of images; give one of a language model.")
        elif config.network:
            with renaming({}, "network"):
                of_run, network = config.network, load_network(config.network, 0)
            self._network = network.model, network.method, trees.merge(network.tuned, network.frozen)
        else:
            raise InputError("Nothing to generate with; write --config=configs/generate.py:run=RUN, or :backbone=BACKBONE.")
        if config.tokenizer:
            of_run.data.tokenizer = config.tokenizer
        with renaming(OF_SAVED):
            self._tokenizer = text_runs.open_tokenizer(of_run)
            of_run.data.format = config.format or of_run.data.format
            of_run.data.template = config.template or of_run.data.template
            self._template = text_runs.open_template(of_run, self._tokenizer)
        self._most, self._seed = config.most, config.seed
        self._context = families.of_config(of_run).sizes[of_run.backbone.size].context
        self._end = self._template.stop if self._template else self._tokenizer.end
        self._sampling = Sampling(config.temperature, config.top_p, tuple(dict.fromkeys((self._end, self._tokenizer.end))))
        self.format = of_run.data.format
        self.precision = functools.partial(precision.of_products, of_run)

    def tokens(self, question: str, before: Sequence[int] = ()) -> list[int]:
        """Encode a question as a prompt; `before` holds the tokens of the conversation so far.

        Raises:
          InputError: the prompt is empty, or it and an answer do not fit the context.
        """
        document: documents.Document
        if self._template:
            document = self._template.prompt(question, not before)
        else:
            document = [documents.Turn(_PROMPTS[self.format](question, not before), ends=False)]
        ids = [*before, *sequences.encode(document, self._tokenizer, begins=not before)[0]]
        if not ids:
            raise InputError("The prompt is empty, and this tokenizer begins a text with nothing; write a word at least.")
        if len(ids) + self._most > self._context:
            raise InputError(
                f"The prompt {question[:40]!r} has {len(ids)} tokens, and with --config.most={self._most} more it does not fit "
                f"the {self._context} that this network reads; shorten one of them."
            )
        return ids

    def stream(self, ids: list[int]) -> list[int]:
        """Print an answer as it is sampled; return the tokens of prompt and answer."""
        answer, shown = [], ""
        for part in self._sample([ids], at_once=1):
            answer += part[0].tolist()
            decoded = self._text(answer)
            if not decoded.endswith("\ufffd"):  # an incomplete character
                print(decoded[len(shown) :], end="", flush=True)
                shown = decoded
        print(self._text(answer)[len(shown) :])
        return [*ids, *generation.until_stop(np.array(answer), self._sampling.stop), self._end]

    def answers(self, prompts: list[list[int]], numbers: Sequence[int] | None = None) -> list[str]:
        """Answer several prompts at once; their draws depend on `numbers`, see `generation.numbers_of`."""
        return [self._text(row) for row in np.concatenate(list(self._sample(prompts, 16, numbers)), axis=1)]

    def _sample(self, prompts, at_once, numbers=None) -> Iterator[np.ndarray]:
        settings = {"most": self._most, "sampling": self._sampling, "seed": self._seed}
        return generation.generate(*self._network, prompts, **settings, at_once=at_once, numbers=numbers)

    def _text(self, tokens):
        return self._tokenizer.decode(generation.until_stop(np.asarray(tokens), self._sampling.stop))


def _answer_file(config, speaker, folder: Path) -> None:
    path = Path(config.file).expanduser()
    with renaming({"data.splits": "file"}):
        questions = list(documents.records(path))
    for place, record in questions:
        if not isinstance(record, dict) or not isinstance(record.get("question"), str):
            raise InputError(f'{place} of {path} has no text under "question"; write {{"question": "..."}} in every line.')
    prompts = [speaker.tokens(record["question"]) for _, record in questions]
    numbers = generation.numbers_of(prompts)
    answered = folder / "answers.jsonl"
    with answered.open("w", encoding="utf-8") as file:
        for start in range(0, len(prompts), config.batch_size):
            # Padded, so that the last batch runs the same compiled program.
            batch, numbered = (
                part + part[:1] * (config.batch_size - len(part))
                for part in (values[start : start + config.batch_size] for values in (prompts, numbers))
            )
            answers = speaker.answers(batch, numbered)
            for (_, record), answer in zip(questions[start : start + config.batch_size], answers, strict=False):
                file.write(json.dumps({**record, "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
            log.info("%d of %d questions answered.", min(start + config.batch_size, len(prompts)), len(prompts))
    log.info("The answers are in %s.", answered)


def _converse(speaker) -> None:
    """Answer each line of the input until it ends; a conversation that outgrows the context starts over."""
    before: list[int] = []
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
            log.warning("%s The conversation starts over.", message)
            before = []
            ids = speaker.tokens(line.rstrip("\n"))
        tokens = speaker.stream(ids)
        before = tokens if speaker.format in _CONVERSING else []
