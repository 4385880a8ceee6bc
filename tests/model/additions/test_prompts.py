"""Prompt tokens: their shapes, their first values and their dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax.model.additions.prompts import Prompts

L, B, P, D, PATCH = 3, 4, 5, 16, 8
TOKENS = np.random.default_rng(0).normal(size=(L, P, D)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="dropout")
def prompts(rng=None, dropout=0.0):
    return Prompts(L, P, D, PATCH, dropout).apply({"params": {"tokens": TOKENS}}, rng)


def keys(size=B):
    return jax.random.split(jax.random.key(0), size)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_without_keys_all_examples_share_whole_prompts(dropout):
    np.testing.assert_array_equal(prompts(dropout=dropout), TOKENS[:, None])


def test_dropout_of_rate_zero_needs_no_keys():
    np.testing.assert_array_equal(prompts(keys()), TOKENS[:, None])


def test_dropout_drops_entries_and_keeps_the_expectation():
    rate, size = 0.25, 500
    ratio = np.asarray(prompts(keys(size), dropout=rate)) / TOKENS[:, None]
    assert ratio.shape == (L, size, P, D)
    kept = (ratio > 0).astype(int)
    np.testing.assert_allclose(ratio, kept / (1 - rate), rtol=1e-5)
    assert abs(ratio.mean() - 1.0) < 4 * np.sqrt(rate / (1 - rate) / ratio.size)
    # Every entry has a coin of its own: over layers, examples, tokens and widths.
    assert all(np.ptp(kept, axis=axis).any() for axis in range(4))


def test_dropout_of_an_example_depends_on_its_own_key():
    order = np.array([2, 0, 3, 1])
    whole = prompts(keys(), dropout=0.5)
    np.testing.assert_array_equal(prompts(keys()[order], dropout=0.5), whole[:, order])
    np.testing.assert_array_equal(prompts(keys()[1:2], dropout=0.5), whole[:, 1:2])


@pytest.mark.parametrize("layers", [1, 12])
def test_first_values_are_uniform_in_the_published_range(layers):
    tokens = jax.jit(Prompts(layers, 100, 768, 16).init)(jax.random.key(0))["params"]["tokens"]
    bound = np.sqrt(6 / (3 * 16**2 + 768))
    assert (tokens.shape, tokens.dtype) == ((layers, 100, 768), jnp.float32)
    assert 0.99 * bound < np.abs(tokens).max() <= bound
    np.testing.assert_allclose(tokens.std(), bound / np.sqrt(3), rtol=0.02)
