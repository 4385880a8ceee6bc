"""Objectives, one function per stage: `(params, batch, rng) -> scores`.

Scores are arrays `[B]`, one value per example. Training minimizes the mean of `loss` and reports the means of all; evaluation
averages the same scores over a split.

The scores of a text are sums over its predicted tokens, weighted by the batch's `weight [B, N]`. The data pipeline sets weights
that sum to 1 per example, and `mask [B]` to the number of predicted tokens. An evaluation weights examples by `mask` and so
averages over tokens; in training, `train.augment.by_token` rescales the weights to the same effect.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Batch, Inputs, Keys, Scores
from toast_jax.model.layers.batch import split_by_example
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply

# Limits of a chunk of a language model's logits: at most so many values, but at least so many tokens of each sequence, to keep
# the products large.
MAX_LOGITS, MIN_TOKENS = 2**26, 64


def inputs(batch: Batch) -> Inputs | None:
    """Return the network's inputs: images, None if the batch has cached features instead, or tokens and their documents."""
    return {name: batch[name] for name in ("tokens", "segments")} if "tokens" in batch else batch.get("image")


def cross_entropy(logits: Float[Array, "B *N C"], batch: Batch) -> Float[Array, "B ..."]:
    """Compute the cross-entropy of every example or, from logits `[B, N, V]`, of every token.

    Args:
      batch: with `target [B, C]` or, if it has none, `label [B]`; of text, `label [B, N]`.
    """
    if "target" in batch:
        return optax.softmax_cross_entropy(logits, batch["target"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def tune(model: Steered, method: Method) -> Callable:
    """Build the scores of tuning: `loss`, the cross-entropy of the final look, and `accuracy`."""

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        network = functools.partial(apply, model, method, params)
        pooled = network(inputs(batch), rng, features=batch.get("features"), call="pooled")
        loss, accuracy = _of_predictions(functools.partial(network, call="logits"), pooled, batch)
        return {"loss": loss, "accuracy": accuracy}

    return scores


def pretune(model: Steered, method: Method, *, task_weight: float, variational_weight: float) -> Callable:
    """Build the scores of pre-tuning: a weighted sum of cross-entropy and variational loss (paper, section 3.3).

    The scores are `loss`, `variational_loss` if the network has a top-down module and, unless `task_weight` is 0, `task_loss`
    and `accuracy`.
    """

    def look(module, inputs, rng):
        if module.top_down is None:
            return module.pooled(inputs, rng), {}
        pooled, out = module.looks(inputs, rng, maps=False)
        return pooled, {"variational_loss": module.top_down.variational_loss(out["look"]["hidden"])}

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        network = functools.partial(apply, model, method, params)
        pooled, variational = network(inputs(batch), rng, call=look)
        loss = sum(variational_weight * term for term in variational.values())
        if not task_weight:
            return {"loss": loss, **variational}
        task, accuracy = _of_predictions(functools.partial(network, call="logits"), pooled, batch)
        return {"loss": task_weight * task + loss, "accuracy": accuracy, "task_loss": task, **variational}

    return scores


def _of_predictions(logits, pooled, batch):
    """Return cross-entropy and accuracy `[B]` of the predictions `logits(pooled)`."""
    if pooled.ndim == 2:
        predicted = logits(pooled)
        return cross_entropy(predicted, batch), _hits(predicted, batch)

    def of_tokens(pooled, label):
        predicted, labels = logits(pooled), {"label": label}
        return cross_entropy(predicted, labels), _hits(predicted, labels)

    of_one = math.prod(jax.eval_shape(logits, pooled[:, :1]).shape)
    size = max(MIN_TOKENS, MAX_LOGITS // of_one)
    of_all = _in_chunks(of_tokens, size, split_by_example(pooled), batch["label"])
    return tuple(jnp.sum(batch["weight"] * values, axis=1) for values in of_all)


def _in_chunks(function, size, *arrays):
    """Map arrays `[B, N, ...]` to arrays `[B, N]`, `size` tokens at a time.

    The backward pass recomputes each chunk, so memory holds the intermediates of one chunk only.
    """
    length = arrays[0].shape[1]
    if length <= size:
        return function(*arrays)
    count = -(-length // size)

    def split(x):
        padded = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(len(x), count, size, *x.shape[2:]), 1, 0)

    chunk = jax.checkpoint(function, prevent_cse=False)
    results = jax.lax.map(lambda parts: chunk(*parts), tuple(map(split, arrays)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], results)


def _hits(logits, batch):
    """Return 1 where the largest logit is that of the largest target, and 0 elsewhere."""
    expected = jnp.argmax(batch["target"], axis=-1) if "target" in batch else batch["label"]
    return (jnp.argmax(logits, axis=-1) == expected).astype(jnp.float32)
