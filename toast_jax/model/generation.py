"""Text generation with a language model, token by token.

Letters in shapes: B sequences, S positions of a cache, V vocabulary.
"""

import collections
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from toast_jax import trees
from toast_jax.model.layers.arrays import Array, Keys
from toast_jax.model.layers.packed_kernels import Table, Transposed
from toast_jax.model.layers.stack import Unstacked
from toast_jax.model.methods import Method
from toast_jax.model.steered import Steered, apply


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Describes how the next token is drawn, as in Hugging Face transformers and in the same order.

    Attributes:
      repetition_penalty: divides the positive logits, and multiplies the negative ones, of all tokens of the prompt and the
        answer (Keskar et al., arXiv 1909.05858); 1 changes nothing.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: draws from this many of the most likely tokens, and those as likely as the last of them; 0 draws from all.
      top_p: draws from the most likely tokens whose total probability is at least this (Holtzman et al., arXiv 1904.09751);
        1 draws from all.
      stop: tokens that end a sequence.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    top_k: int = 0
    repetition_penalty: float = 1.0


@no_type_check  # maps over trees put other things than arrays in the fields
@flax.struct.dataclass
class Decoding:
    """Holds the state of sequences during generation.

    Attributes:
      token: the last token of each sequence, not yet cached.
      position: position of that token.
      done: whether a sequence has ended.
      caches: of both looks, see `Steered.caches`.
      rng: key of each sequence; a draw depends only on it and on the position.
      seen: the tokens of prompt and answer, or None if nothing depends on them.
    """

    token: Int32[Array, " B"]
    position: Int32[Array, " B"]
    done: Bool[Array, " B"]
    caches: dict
    rng: Keys
    seen: Bool[Array, "B V"] | None = None


def processed(logits: Float[Array, "B V"], sampling: Sampling, seen: Bool[Array, "B V"] | None = None) -> Float[Array, "B V"]:
    """Apply `Sampling` to logits: the next token is drawn from their softmax, or is the largest at temperature 0.

    Args:
      seen: the tokens that the repetition penalty concerns; None for none.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if not sampling.temperature:
        return logits
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if sampling.top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        likelier = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)  # total of more likely tokens
        least = jnp.min(jnp.where(likelier < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def sample(
    logits: Float[Array, "B V"], rng: Keys, sampling: Sampling, seen: Bool[Array, "B V"] | None = None
) -> Int32[Array, " B"]:
    """Draw a token for each row; see `processed`."""
    logits = processed(logits, sampling, seen)
    drawn = jax.vmap(jax.random.categorical)(rng, logits) if sampling.temperature else jnp.argmax(logits, axis=-1)
    return drawn.astype(jnp.int32)


def _draw(logits, rng, position, sampling, seen):
    """Draw the tokens at some positions; return them, whether they end their sequences, and the tokens seen so far."""
    token = sample(logits, jax.vmap(jax.random.fold_in)(rng, position), sampling, seen)
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return token, jnp.isin(token, jnp.array(sampling.stop, jnp.int32)), seen


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6))
def begin(
    model: Steered,
    method: Method,
    params: dict,
    prompts: Int32[Array, "B N"],
    lengths: Int32[Array, " B"],
    places: int,
    sampling: Sampling,
    rng: Keys,
) -> Decoding:
    """Read prompts and draw the first token after each.

    Args:
      model, method, params: see `steered.apply`.
      prompts: padded on the right with any token.
      lengths: number of tokens of each prompt, 1 or more.
      places: S, the length of the longest sequence to generate, prompt included.
      sampling: how to draw.
      rng: key of each sequence.
    """
    caches = model.caches(len(prompts), places)
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    # Padding is cached too, but its positions are overwritten before any token attends to them.
    logits, caches = apply(model, method, params, prompts, positions, caches, lengths - 1, call="extend")
    seen = None
    if sampling.repetition_penalty != 1.0:
        row, is_text = jnp.arange(len(prompts))[:, None], positions < lengths[:, None]
        seen = jnp.zeros(logits.shape, bool).at[row, prompts].max(is_text)
    token, done, seen = _draw(logits, rng, lengths, sampling, seen)
    return Decoding(token, lengths, done, caches, rng, seen)


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5), donate_argnums=3)
def extend(
    model: Steered, method: Method, params: dict, state: Decoding, steps: int, sampling: Sampling
) -> tuple[Decoding, Int32[Array, "B {steps}"]]:
    """Draw `steps` more tokens of every sequence; a finished sequence repeats its last token."""

    def step(state, _):
        last = jnp.zeros_like(state.token)
        logits, caches = apply(
            model, method, params, state.token[:, None], state.position[:, None], state.caches, last, call="extend"
        )
        token, done, seen = _draw(logits, state.rng, state.position + 1, sampling, state.seen)
        token, done = jnp.where(state.done, state.token, token), state.done | done
        return Decoding(token, state.position + 1, done, caches, state.rng, seen), token

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


def generate(
    model: Steered,
    method: Method,
    params: dict,
    prompts: Sequence[Sequence[int]],
    *,
    most: int,
    sampling: Sampling,
    seed: int = 0,
    at_once: int = 16,
    numbers: Sequence[int] | None = None,
    put: Callable = jnp.asarray,
) -> Iterator[Int32[np.ndarray, "B n"]]:
    """Continue prompts until every sequence has ended or has `most` new tokens.

    Programs are compiled for lengths that are multiples of 64, of short prompts 16, so that prompts of similar lengths share
    them.

    Args:
      model, method, params: see `steered.apply`.
      prompts: tokens of each prompt, at least one. The longest prompt and `most` together must fit the model's context.
      most: largest number of new tokens per sequence, 1 or more.
      sampling: how to draw.
      seed: of the draws.
      at_once: number of tokens to draw before they are yielded.
      numbers: of the sequences, which their draws depend on; None for `numbers_of(prompts)`.
      put: places an array of all sequences, `[B, ...]`, on the devices.

    Yields:
      the next n tokens of every sequence. Drop those that follow a stop token, see `until_stop`.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    context = model.backbone.context
    width = min(_rounded(lengths.max(), 64 if lengths.max() > 48 else 16), context)
    padded = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    places = min(max(width, _rounded(lengths.max() + most, 64)), context)
    numbers = np.asarray(numbers_of(prompts) if numbers is None else numbers, np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
    state = begin(model, method, params, put(padded), put(lengths), places, sampling, put(keys))
    yield np.asarray(state.token)[:, None]
    left = most - 1
    while left > 0 and not np.asarray(state.done).all():
        # The last call may draw too many tokens, even past the end of the caches; the surplus is cut off.
        state, tokens = extend(model, method, params, state, at_once, sampling)
        yield np.asarray(tokens)[:, :left]
        left -= at_once


def stored(model: Steered, params: dict) -> dict:
    """Store parameters as the devices read them fastest, token by token; may donate them.

    Only CPUs need another layout: `packed` for 16 bits, which they multiply in float32, and `unstacked` for float32.
    """
    if jax.default_backend() != "cpu":
        return params
    return packed(model, params) if jnp.dtype(model.backbone.dtype).itemsize == 2 else unstacked(params)


def unstacked(params: dict) -> dict:
    """Store every layer of a language model and of its top-down module in arrays of its own; deletes the stacked parameters."""
    is_stacked = re.compile(r"backbone/blocks/.*|top_down/(back|out)").fullmatch
    return trees.nested({path: Unstacked.of(leaf) if is_stacked(path) else leaf for path, leaf in trees.flat(params).items()})


def packed(model: Steered, params: dict) -> dict:
    """Store the matrices of a language model for generation on CPUs, see `layers.packed_kernels`; donates the parameters."""
    pack = jax.jit(lambda kind, leaf: kind.of(leaf, model.backbone.dtype), static_argnums=0, donate_argnums=1)
    kinds = {"embed": Table} | dict.fromkeys(("kernel", "head", "back", "out", "transform"), Transposed)

    def of(path, leaf):
        kind = kinds.get(path.rpartition("/")[2])
        return pack(kind, leaf) if kind else leaf

    return trees.nested({path: of(path, leaf) for path, leaf in trees.flat(params).items()})


def numbers_of(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Number prompts by their tokens, wherever they are in a batch; of equal prompts each has another number."""
    seen: collections.Counter[tuple[int, ...]] = collections.Counter()
    numbers = []
    for prompt in map(tuple, prompts):
        numbers.append(zlib.crc32(np.array([*prompt, seen[prompt]], np.int32).tobytes()))
        seen[prompt] += 1
    return numbers


def _rounded(length, unit) -> int:
    return -(-int(length) // unit) * unit


def until_stop(tokens: Int[np.ndarray, " n"], stop: tuple[int, ...]) -> list[int]:
    """Return the tokens of a sequence before its first stop token."""
    ends = np.flatnonzero(np.isin(tokens, stop))
    return tokens[: ends[0] if len(ends) else None].tolist()
