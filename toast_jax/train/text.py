"""What is particular to a run on text: its data, and how tokens are weighed.

`vision` has the same functions for images; the step and the loop know neither.
"""

import logging
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from toast_jax.data.text import batches, documents, sequences, tokenizer
from toast_jax.data.text.sequences import Sequences
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.model import families

log = logging.getLogger(__name__)

UNIT = "tokens"  # what is counted


def open_tokenizer(config: ConfigDict) -> tokenizer.Tokenizer:
    """The tokenizer of a config, checked against its backbone; what ends a document is what the config says."""
    opened = tokenizer.load(config.data.tokenizer)
    vocabulary = families.of_config(config).sizes[config.backbone.size].vocabulary
    if opened.vocabulary != vocabulary:
        raise InputError(
            f"The tokenizer {config.data.tokenizer} has {opened.vocabulary} tokens, and {config.backbone.size} {vocabulary}; "
            "give the tokenizer that came with the weights in --config.data.tokenizer."
        )
    ends = {"end": opened.end, "begin": opened.begin}
    opened.end = ends[config.data.get("end", "end")]  # runs of earlier versions have no such field
    if opened.end is None:
        raise InputError("config.data.end is 'begin', and this tokenizer begins a document with nothing; set it to end.")
    return opened


def open_sources(config: ConfigDict, *, verified: bool) -> tuple[Sequences, dict[str, Sequences]]:
    """The training source, and by name the evaluation sources that the config has; reading them verifies them."""
    data, words = config.data, open_tokenizer(config)
    names = ["train"] + [name for name in ("val", "test") if data.splits[name]]
    texts = {name: documents.read(data.splits[name], documents.FORMATS[data.format]) for name in names}
    if data.documents:
        texts["train"] = texts["train"][: data.documents]
    if data.held_out:
        texts["train"], texts["val"] = _held_out(texts["train"], data.held_out)
    arrange = sequences.packed if data.format == "text" else sequences.padded
    opened = {name: arrange(some, words, data.length) for name, some in texts.items()}
    log.info("Sequences of %d tokens: %s.", data.length, ", ".join(f"{name} {len(one):,}" for name, one in opened.items()))
    return opened.pop("train"), opened


def _held_out(documents, share):
    """The release's split of conversations: by a permutation of NumPy's with seed 0."""
    order = np.random.RandomState(0).permutation(len(documents))
    border = int(len(order) * (1 - share))
    if not 0 < border < len(order):
        raise InputError(f"config.data.held_out is {share}, which leaves nothing of {len(order)} texts on one side; change it.")
    return [documents[i] for i in order[:border]], [documents[i] for i in order[border:]]


def train_batches(config: ConfigDict, source: Sequences, start_step: int) -> Iterator[dict]:
    """This host's share of the training batches from a step on."""
    return batches.train_batches(
        source,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
    )


def eval_batches(config: ConfigDict, source: Sequences) -> Iterator[dict]:
    """This host's share of an evaluation split."""
    shard = (jax.process_index(), jax.process_count())
    return batches.eval_batches(source, batch_size=config.batch_size, workers=config.data.workers, shard=shard)


def augmentation(config: ConfigDict, source: Sequences) -> Callable:
    """What happens to a training batch on the device, `(batch, rng) -> batch`."""
    return by_token


def examples(config: ConfigDict) -> int:
    """What a batch counts for, in `UNIT`, padding too."""
    return config.batch_size * config.data.length


def summary(scores: dict[str, float]) -> dict[str, float]:
    """The scores of a split and its perplexity, which the cross-entropy is the logarithm of."""
    entropy = scores.get("task_loss", scores["loss"])
    return {**scores, "perplexity": math.exp(min(entropy, 700.0))}


def by_token(batch: dict, rng: jax.Array) -> dict:
    """Weighs the examples of a training batch by the tokens that they predict, over all devices: weights then add up to B."""
    share = batch["mask"] / jnp.maximum(jax.lax.pmean(batch["mask"].mean(), parallel.AXIS), 1e-6)
    return {**batch, "weight": batch["weight"] * share[:, None]}
