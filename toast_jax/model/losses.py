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


def tune(model: Steered, method: Method, predictions: bool = False) -> Callable:
    """Build the scores of tuning: `loss`, the cross-entropy of the final look, and `accuracy`.

    With `predictions`, an evaluation also gets the `logits [B, C]` of images.
    """

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> dict[str, Float[Array, "B ..."]]:
        network = functools.partial(apply, model, method, params)
        logits = functools.partial(network, call="logits")
        pooled = network(inputs(batch), rng, features=batch.get("features"), call="pooled")
        loss, accuracy = _of_predictions(logits, pooled, batch)
        return {"loss": loss, "accuracy": accuracy, **({"logits": logits(pooled)} if predictions else {})}

    return scores


def pretune(
    model: Steered,
    method: Method,
    *,
    task_weight: float,
    variational_weight: float,
    distillation_weight: float = 0.0,
    by_class: bool = False,
) -> Callable:
    """Build the scores of pre-tuning: a weighted sum of cross-entropy, variational loss and distillation loss.

    The variational loss (paper, section 3.3) needs a top-down module. The distillation loss is not in the paper and needs no
    labels: the final look at a degraded image (the student) learns to match the look of the frozen backbone alone at the clean
    image (the teacher).

    Args:
      task_weight, variational_weight, distillation_weight: of the three losses. The variational loss is a score even if its
        weight is 0; the others are only computed if theirs is not.
      by_class: whether the distillation loss is the divergence of the student's class distribution from the teacher's, for a
        frozen, trained head; else it is the cosine distance of their pooled outputs plus that of their tokens.

    Returns:
      `(params, batch, rng) -> scores`: `loss`, `variational_loss`, `task_loss` with `accuracy`, and `distillation_loss`. The
      teacher sees `clean` of the batch; without one, as in an evaluation, what the student sees.
    """

    weights = {"variational_loss": variational_weight, "task_loss": task_weight, "distillation_loss": distillation_weight}

    compares_tokens = distillation_weight and not by_class

    def look(module, inputs, rng):
        if module.top_down is None and not compares_tokens:
            return module.pooled(inputs, rng), None, {}
        pooled, out = module.looks(inputs, rng, maps=False)
        look = out["look"]
        variational = {} if module.top_down is None else {"variational_loss": module.top_down.variational_loss(look["hidden"])}
        return pooled, look["tokens"], variational

    def scores(params: dict, batch: Batch, rng: Keys | None = None) -> Scores:
        network = functools.partial(apply, model, method, params)
        logits = functools.partial(network, call="logits")
        pooled, tokens, computed = network(inputs(batch), rng, call=look)
        if task_weight:
            computed["task_loss"], computed["accuracy"] = _of_predictions(logits, pooled, batch)
        if distillation_weight:
            teacher = functools.partial(
                model.backbone.apply, {"params": params["backbone"]}, batch.get("clean", batch["image"])
            )
            if by_class:
                target = jax.lax.stop_gradient(logits(teacher(method="pooled")))
                computed["distillation_loss"] = _divergence(logits(pooled), target)
            else:
                clean, out = jax.lax.stop_gradient(teacher(maps=False))
                first_prompt = 0 if model.prompts is None else model.backbone.first_prompt
                of_tokens = _distance(tokens, out["tokens"], first_prompt)
                computed["distillation_loss"] = _distance(pooled, clean) + of_tokens
        return {"loss": sum(weights[name] * score for name, score in computed.items() if name in weights), **computed}

    return scores


def _divergence(logits, target):
    """Return the Kullback-Leibler divergence `[B]` of the class distribution of `logits` from that of `target`."""
    return optax.losses.kl_divergence_with_log_targets(*(jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, target)))


def _distance(student, teacher, first_prompt=0):
    """Return 1 - cosine `[B]`, averaged over tokens; the teacher lacks the prompts, which begin at index `first_prompt`."""
    student = jnp.delete(student, slice(first_prompt, first_prompt + student.shape[1] - teacher.shape[1]), axis=1)
    cosines = optax.cosine_similarity(student.astype(jnp.float32), teacher.astype(jnp.float32), epsilon=1e-6)
    return 1 - cosines.reshape(len(cosines), -1).mean(axis=1)


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
