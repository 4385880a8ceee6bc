"""The text-specific part of a run: data sources, batches and token weights.

`image_runs` has the same functions for images; the step and the loop work with either.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.loader import Batch
from toast_jax.data.text import batches, chat, documents, sequences, token_cache, token_parts, tokenizer
from toast_jax.data.text.sequences import Sequences
from toast_jax.devices.protocol import Devices
from toast_jax.errors import InputError
from toast_jax.model import families
from toast_jax.train import evaluation, image_runs
from toast_jax.train.augment import by_token
from toast_jax.train.evaluation import Evaluation
from toast_jax.weights import places

log = logging.getLogger(__name__)

UNIT = "tokens"  # of counts and speed


@dataclasses.dataclass(frozen=True)
class Text:
    """A split before its text is tokenized; `tokenize` returns its sequences, from the cache if they are there."""

    tokenize: Callable[[], Sequences]

    classes = ()  # part of the interface of sources


def open_tokenizer(config: ConfigDict) -> tokenizer.Tokenizer:
    """Open the tokenizer of a config, check it against the backbone and set the token that ends a document."""
    opened = tokenizer.load(places.tokenizer(config.data.tokenizer))
    backbone = families.of_config(config).build(config, 0)
    vocabulary = backbone.vocabulary
    # Embeddings with added tokens may be padded to a round number; runs of earlier versions have no such field.
    padding = vocabulary if config.backbone.get("vocabulary", 0) else backbone.padding
    if not vocabulary - padding <= opened.vocabulary <= vocabulary:
        raise InputError(
            f"The tokenizer {config.data.tokenizer} has {opened.vocabulary} tokens, and {config.backbone.size} {vocabulary}; "
            "give the tokenizer that came with the weights in --config.data.tokenizer or, if their embedding has a row for "
            "each of its tokens, and perhaps more, set --config.backbone.vocabulary to the vocab_size in their config.json."
        )
    end = {"end": opened.end, "begin": opened.begin}[config.data.get("end", "end")]  # earlier versions have no such field
    if end is None:
        raise InputError("config.data.end is 'begin', and this tokenizer begins a document with nothing; set it to end.")
    opened.end = end
    return opened


def open_template(config: ConfigDict, words: tokenizer.Tokenizer) -> chat.Template | None:
    """Open the chat template of a config for its tokenizer; None for formats with prompts of their own."""
    if config.data.format != "messages":
        return None
    return chat.Template(config.data.template, tokenizer.file_of(places.tokenizer(config.data.tokenizer)), words)


def open_splits(config: ConfigDict, run: object = None) -> dict[str, Text]:
    """Open all splits of a config, tokenizing no text; `run` is of images, and ignored.

    The first document of each file is read as a check; large files whose tokens may be cached are not, see `documents.check`.
    """
    data, words = config.data, open_tokenizer(config)
    template = open_template(config, words)
    texts = _texts(data, template)
    for file in dict.fromkeys(file for file, _ in texts.values()):
        documents.check(file, _reader(data, template), token_cache.MIN_BYTES)

    def tokenize(name, file, read):
        fields = (name, data.documents, data.held_out, data.format, data.length, words.begin, words.end)
        fields += (template.identity,) if template else ()
        fields += (data.too_long,) if data.too_long != "cut" else ()
        make = lambda: _arranged(data, read(), words)  # noqa: E731
        packing = _packing(data, file, words, data.documents if name == "train" else 0)
        return token_cache.cached(file, places.tokenizer(data.tokenizer), fields, make, packing)

    return {name: Text(functools.partial(tokenize, name, file, read)) for name, (file, read) in texts.items()}


def open_sources(
    config: ConfigDict, *, verified: bool, run: object = None, opened: Mapping[str, Text] | None = None
) -> tuple[Sequences, dict[str, Sequences]]:
    """Tokenize the splits that `open_splits` returns, or has `opened`: training, and by name those of evaluation.

    `verified` and `run` are of images, and ignored.
    """
    opened = opened or open_splits(config)
    # Training text is the largest; it comes last so that errors in the other files are reported at once.
    sources = {name: text.tokenize() for name, text in reversed(list(opened.items()))}
    log.info("Sequences of %d tokens: %s.", config.data.length, ", ".join(f"{name} {len(s):,}" for name, s in sources.items()))
    return sources.pop("train"), sources


def open_file(config: ConfigDict, file: str, words: tokenizer.Tokenizer, template: chat.Template | None) -> Sequences:
    """Open a file in the format of a config, apart from its splits."""
    return _arranged(config.data, documents.stream(file, _reader(config.data, template)), words)


def _arranged(data, texts: Iterable[documents.Document], words) -> Sequences:
    if data.format == "text":
        return sequences.packed(texts, words, data.length)
    return sequences.padded(texts, words, data.length, data.too_long)


def _packing(data, file: str, words, most: int) -> token_cache.Packing | None:
    """Return how to pack a plain text without reading it into memory; None for other data."""
    if data.format != "text" or data.held_out:
        return None
    text = token_parts.Text(Path(file).expanduser(), documents.FORMATS[data.format], words, most)
    hosts = token_parts.Hosts(jax.process_index(), jax.process_count())
    return token_cache.Packing(text, data.length, data.workers, hosts)


def _reader(data, template) -> Callable[[Any], list]:
    return template.documents if template else documents.FORMATS[data.format]


def redraw(config: ConfigDict, train: Sequences, evals: dict[str, Sequences], run: object = None):
    """Return the sources as they are: they do not depend on the seed."""
    return train, evals


def records(config: ConfigDict, train: Sequences, evals: dict[str, Sequences]) -> dict[str, dict]:
    """Return no files: which texts are held out does not depend on the seed."""
    return {}


def show(config: ConfigDict) -> None:
    """Print the first `config.show` training examples as their tokens read, with the learned ones in [[ ]]."""
    words = open_tokenizer(config)
    _, read = _texts(config.data, open_template(config, words))["train"]
    for number, document in enumerate(itertools.islice(read(), config.show), start=1):
        ids, learned = sequences.encode(document, words)
        kept, cut = ids[: config.data.length], f", cut to {config.data.length}" if len(ids) > config.data.length else ""
        print(f"Example {number}: {len(ids)} tokens{cut}, {sum(learned[: len(kept)])} of them learned.")
        runs = itertools.groupby(zip(kept, learned, strict=False), key=lambda pair: pair[1])
        spelled = [(is_learned, tokenizer.spelled(words, [token for token, _ in run])) for is_learned, run in runs]
        print("".join(f"[[{text}]]" if is_learned else text for is_learned, text in spelled), end="\n\n")


def _texts(data, template) -> dict[str, tuple[str, Callable[[], Iterable[documents.Document]]]]:
    """Return the file of every split and a function that reads its documents."""
    of_record = _reader(data, template)
    read = functools.partial(documents.stream, data.splits.train, of_record, data.documents)
    texts: dict[str, tuple[str, Callable[[], Iterable[documents.Document]]]] = {"train": (data.splits.train, read)}
    if data.held_out:
        parts = functools.cache(lambda: _held_out(list(read()), data.held_out))
        texts |= {"train": (data.splits.train, lambda: parts()[0]), "val": (data.splits.train, lambda: parts()[1])}
    for name in ("val", "test"):
        if data.splits[name]:
            texts[name] = data.splits[name], functools.partial(documents.stream, data.splits[name], of_record)
    return texts


def _held_out(documents, share):
    """Split conversations like the release, by NumPy's permutation with seed 0."""
    order = np.random.RandomState(0).permutation(len(documents))
    border = int(len(order) * (1 - share))
    if not 0 < border < len(order):
        raise InputError(f"config.data.held_out is {share}, which leaves nothing of {len(order)} texts on one side; change it.")
    return [documents[i] for i in order[:border]], [documents[i] for i in order[border:]]


def train_batches(config: ConfigDict, source: Sequences, start_step: int) -> Generator[Batch]:
    """Return this host's share of the training batches from a step on."""
    return batches.train_batches(
        source,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
    )


def eval_batches(config: ConfigDict, source: Sequences) -> Generator[Batch]:
    """Return this host's share of the batches of an evaluation split."""
    shard = (jax.process_index(), jax.process_count())
    return batches.eval_batches(source, batch_size=config.batch_size, workers=config.data.workers, shard=shard)


def evaluate(config: ConfigDict, source: Sequences, step: Callable, tuned: dict, frozen: dict, devices: Devices) -> Evaluation:
    """Evaluate a network on a split with a mapped `evaluation.eval_step`."""
    return evaluation.evaluate(step, tuned, frozen, eval_batches(config, source), devices)


timing = image_runs.timing  # in epochs


def augmentation(config: ConfigDict, source: Sequences) -> Callable:
    """Return the augmentation on the device, `(batch, rng) -> batch`: it weights examples by their predicted tokens."""
    return by_token


def examples(config: ConfigDict) -> int:
    """Return how many tokens a batch has, padding included."""
    return config.batch_size * config.data.length


def summary(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores of a split and its perplexity, the exponential of the cross-entropy if that is among them."""
    if "variational_loss" in scores and "task_loss" not in scores:  # config.task_weight is 0
        return scores
    entropy = scores.get("task_loss", scores["loss"])
    return {**scores, "perplexity": math.exp(min(entropy, 700.0))}
