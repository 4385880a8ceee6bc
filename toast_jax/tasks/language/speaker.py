"""A language model that answers: its tokenizer, the prompts it was tuned with, and sampling."""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.data.text import documents, sequences
from toast_jax.devices import parallel, precision
from toast_jax.errors import InputError, renaming
from toast_jax.model import families, generation
from toast_jax.model.generation import Sampling
from toast_jax.tasks.language import stop_strings
from toast_jax.train import saved_run, text_runs
from toast_jax.train.setup import load_network

log = logging.getLogger(__name__)

_CONVERSING = ("conversations", "messages")  # formats whose next question follows the last answer


class Speaker:
    """A network with its tokenizer, prompt format and sampling parameters; call its methods inside of `precision()`.

    Attributes:
      config: of the run, or of the network that was not tuned, with the format and template of the prompts.
      network: model, method and parameters, for `steered.apply`.
      tokenizer, template: of the network; the template is None for formats with prompts of their own.
      context: how many tokens the network reads.
      converses: whether a next question follows the last answer.
    """

    def __init__(self, config: ConfigDict):
        """Open the language model of a run, or that of the section `network`.

        Args:
          config: of a task, with the fields of `configs/generate.py` that concern neither questions nor their number.

        Raises:
          InputError: no such run or backbone, or its tokenizer lacks what the format needs.
        """
        if config.run:
            with renaming(OF_SAVED):
                saved = saved_run.load(config.run, config.weights, config.top_down, config.module)
            of_run, self.network = saved.config, (saved.model, saved.method, saved.params)
            if families.of_config(of_run).reads != "text":
                raise InputError(f"The run in {config.run} has tuned a network of images; give one of a language model.")
        elif config.network:
            with renaming({}, "network"):
                of_run, network = config.network.copy_and_resolve_references(), load_network(config.network, 0)
            self.network = network.model, network.method, trees.merge(network.tuned, network.frozen)
        else:
            command = f"--config=configs/{config.task}.py:run=RUN"
            raise InputError(f"Nothing to {config.task} with; write {command}, or :backbone=BACKBONE.")
        if config.tokenizer:
            of_run.data.tokenizer = config.tokenizer
        with renaming(OF_SAVED):
            self.tokenizer = text_runs.open_tokenizer(of_run)
            of_run.data.format = config.format or of_run.data.format
            of_run.data.template = config.template or of_run.data.template
            self.template = text_runs.open_template(of_run, self.tokenizer)
        self.config, self.converses = of_run, of_run.data.format in _CONVERSING
        self._most, self._seed = config.most, config.seed
        self.context = families.of_config(of_run).size(of_run.backbone).context
        self._end = self.template.stop if self.template else self.tokenizer.end
        self._stop = config.get("stop", ())  # a score has none of these three fields
        self._sampling = Sampling(
            config.temperature,
            config.top_p,
            tuple(dict.fromkeys((self._end, self.tokenizer.end))),
            config.get("top_k", 0),
            config.get("repetition_penalty", 1.0),
        )
        self.network = *self.network[:2], generation.stored(self.network[0], self.network[2])
        self.precision = functools.partial(precision.of_products, of_run)

    def tokens(self, question: str, before: Sequence[int] = ()) -> list[int]:
        """Encode a question as a prompt; `before` holds the tokens of the conversation so far.

        Raises:
          InputError: the prompt is empty, or it and an answer do not fit the context.
        """
        document: documents.Document
        if self.template:
            document, before = self.template.prompt(question, not before), before[:-1]  # which it begins with
        else:
            document = [documents.Turn(documents.PROMPTS[self.config.data.format](question, not before), ends=False)]
        ids = [*before, *sequences.encode(document, self.tokenizer, begins=not before)[0]]
        if not ids:
            raise InputError("The prompt is empty, and this tokenizer begins a text with nothing; write a word at least.")
        if len(ids) + self._most > self.context:
            raise InputError(
                f"The prompt {question[:40]!r} has {len(ids)} tokens, and with --config.most={self._most} more it does not fit "
                f"the {self.context} that this network reads; shorten one of them."
            )
        return ids

    def stream(self, ids: list[int], stoppable: bool = False) -> list[int]:
        """Print an answer as it is sampled; return the tokens of prompt and answer.

        Args:
          stoppable: whether an interrupt ends the answer instead of the program.
        """
        answer: list[int] = []
        text, shown = "", 0
        try:
            for part in self._sample([ids], at_once=1):
                answer += part[0].tolist()
                text, has_ended = self._text(answer)
                settled = len(text) if has_ended else stop_strings.settled(text, self._stop)
                print(text[shown:settled], end="", flush=True)
                shown = max(shown, settled)
                if has_ended:
                    break
        except KeyboardInterrupt:
            if not stoppable:
                raise
        print(text[shown:])
        tokens = generation.until_stop(np.array(answer, np.int32), self._sampling.stop)
        while len(self.tokenizer.decode(tokens)) > len(text):  # those of a stop string
            tokens.pop()
        return [*ids, *tokens, self._end]

    def answers(self, prompts: list[list[int]], numbers: Sequence[int] | None = None, put=jnp.asarray) -> list[str]:
        """Answer several prompts at once; for `numbers` and `put` see `generation.generate`."""
        sampled = np.zeros((len(prompts), 0), np.int32)
        for part in self._sample(prompts, 16, numbers, put):
            sampled = np.concatenate([sampled, part], axis=1)
            texts = [self._text(row) for row in sampled]
            if all(has_ended for _, has_ended in texts):
                break
        return [text for text, _ in texts]

    def each(self, prompts: list[list[int]], batch_size: int) -> Iterator[str]:
        """Answer any number of prompts, in batches over all devices of this process.

        A batch of more than one prompt is rounded up to a multiple of the number of devices.
        """
        devices = jax.local_device_count() if min(batch_size, len(prompts)) > 1 else 1
        size, numbers = -(-batch_size // devices) * devices, generation.numbers_of(prompts)
        if devices > 1:
            self.network = (*self.network[:2], parallel.place(self.network[2]))
        for start in range(0, len(prompts), size):
            batch, numbered = (_padded(values[start : start + size], size) for values in (prompts, numbers))
            put = parallel.split if devices > 1 else jnp.asarray
            yield from self.answers(batch, numbered, put)[: len(prompts) - start]
            log.info("%d of %d questions answered.", min(start + size, len(prompts)), len(prompts))

    def _sample(self, prompts, at_once, numbers=None, put=jnp.asarray) -> Iterator[np.ndarray]:
        settings = {"most": self._most, "sampling": self._sampling, "seed": self._seed, "put": put}
        return generation.generate(*self.network, prompts, **settings, at_once=at_once, numbers=numbers)

    def _text(self, tokens):
        """Return the text of an answer, and whether a stop token or a stop string has ended it."""
        text = self.tokenizer.decode(generation.until_stop(np.asarray(tokens), self._sampling.stop))
        text, is_cut = stop_strings.cut(text, self._stop)
        return text, is_cut or bool(np.isin(tokens, self._sampling.stop).any())


def _padded(values: list[Any], size: int) -> list[Any]:
    """Repeat the first value, so that the last batch runs the same compiled program."""
    return values + values[:1] * (size - len(values))
