"""Generated tokens: with caches as without, prompts of different lengths, sampling, and where sequences end."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.backbones.llama.test_network import OF_ALL_KINDS, V, apply, parameters, steered_llama
from toast_jax.model import generation, steered
from toast_jax.model.generation import Sampling
from toast_jax.model.top_down import TopDown

PROMPTS = ((3, 1, 4, 1, 5, 9), (2,), (6, 5, 3))
MOST = 7
GREEDY, RANDOM = Sampling(), Sampling(temperature=1.0)


@functools.cache
def generated(method="toast", prompts=PROMPTS, most=MOST, sampling=GREEDY, seed=0, at_once=3):
    net, row = steered_llama(method)
    parts = generation.generate(net, row, parameters(method), prompts, most=most, sampling=sampling, seed=seed, at_once=at_once)
    return np.concatenate(list(parts), axis=1)


def without_cache(method, prompt):
    """The likeliest tokens by looking at everything anew for each of them."""
    tokens = list(prompt)
    for _ in range(MOST):
        padded = np.array([tokens + [0] * (16 - len(tokens))], np.int32)
        segments = np.where(np.arange(16) < len(tokens), 1, -1)[None].astype(np.int32)
        logits = apply({"tokens": padded, "segments": segments}, method)
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("method", ["lora", "toast"])
def test_tokens_are_those_without_a_cache(method):
    expected = [without_cache(method, prompt) for prompt in PROMPTS]
    np.testing.assert_array_equal(generated(method), expected)
    assert len({tuple(row) for row in expected}) == 3  # else a mix-up of rows would not be seen


@pytest.mark.parametrize("fields", [{}, pytest.param(OF_ALL_KINDS, marks=pytest.mark.slow)], ids=["LLaMA", "all kinds"])
def test_a_step_gives_the_logits_without_a_cache(fields):
    """Of every token, not only of the likeliest; tokens that came in two parts."""
    net, row = steered_llama("toast", **fields)
    params = parameters("toast", **fields)
    tokens = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]], np.int32)
    run = jax.jit(functools.partial(steered.apply, net, row, call="extend"))
    caches, positions = net.caches(2, 8), np.arange(6)[None].repeat(2, axis=0)
    _, caches = run(params, tokens[:, :4], positions[:, :4], caches, np.array([3, 3]))
    logits, _ = run(params, tokens[:, 4:], positions[:, 4:], caches, np.array([1, 0]))
    expected = apply({"tokens": tokens, "segments": np.ones_like(tokens)}, params=params, **fields)
    np.testing.assert_allclose(logits[0], expected[0, 5], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[1], expected[1, 4], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_number_of_tokens_drawn_at_once_does_not_matter():
    np.testing.assert_array_equal(generated(sampling=RANDOM), generated(sampling=RANDOM, at_once=16))


def test_a_draw_depends_on_seed_prompt_and_position_alone():
    all_rows = generated(sampling=RANDOM)
    np.testing.assert_array_equal(generated(sampling=RANDOM, prompts=PROMPTS[:1]), all_rows[:1])
    assert (generated(sampling=RANDOM, seed=1) != all_rows).any()
    same = generated(sampling=RANDOM, prompts=((3, 1), (3, 1)))
    assert (same[0] != same[1]).any()


@pytest.mark.parametrize("count", [pytest.param(6, id="few"), pytest.param(60, id="many", marks=pytest.mark.slow)])
def test_a_prompt_is_continued_in_the_same_way_wherever_it_is_and_whatever_is_beside_it(count):
    """In batches of 3, whose program is shared; random orders, and others beside it."""
    rng = np.random.default_rng(0)
    everything = [*PROMPTS, (3, 1), (3, 1), (2, 7)]
    numbers = generation.numbers_of(everything)
    net, row = steered_llama("toast")

    def continued(chosen):
        prompts, own = [everything[i] for i in chosen], [numbers[i] for i in chosen]
        settings = {"most": MOST, "sampling": RANDOM, "seed": 0, "at_once": 3, "numbers": own}
        return np.concatenate(list(generation.generate(net, row, parameters(), prompts, **settings)), axis=1)

    expected = np.concatenate([continued([0, 1, 2]), continued([3, 4, 5])])
    assert len({tuple(row) for row in expected}) == len(everything)
    for _ in range(count):
        chosen = rng.choice(len(everything), 3, replace=False)
        np.testing.assert_array_equal(continued(chosen), expected[chosen])


def test_a_sequence_ends_at_a_stop_token_and_the_others_go_on():
    plain = generated()
    stop = int(plain[0, 2])
    ours = generated(sampling=Sampling(stop=(stop,)))
    for row, expected in zip(ours, plain, strict=True):
        assert generation.until_stop(row, (stop,)) == generation.until_stop(expected, (stop,))
    assert (ours[0, 2:] == stop).all() and len(generation.until_stop(ours[0], (stop,))) <= 2


def test_it_stops_when_every_sequence_has_ended():
    everything = tuple(range(V))
    assert generated(sampling=Sampling(stop=everything)).shape == (3, 1)


def test_cache_as_long_as_the_context():
    """Calls that draw past the end of what was asked for, and of the cache, change nothing before it."""
    net, row = steered_llama("toast", context=13)
    parts = generation.generate(net, row, parameters(), PROMPTS, most=MOST, sampling=GREEDY, at_once=5)
    np.testing.assert_array_equal(np.concatenate(list(parts), axis=1), generated())


LOGITS = np.log([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]).astype(np.float32)


def frequencies(temperature, top_p, draws=4000):
    keys = jax.random.split(jax.random.key(0), 2 * draws).reshape(draws, 2)
    tokens = jax.vmap(lambda rng: generation.sample(jnp.asarray(LOGITS), rng, Sampling(temperature, top_p)))(keys)
    return np.stack([np.bincount(column, minlength=4) / draws for column in np.asarray(tokens).T])


def test_temperature_and_top_p_of_draws():
    assert frequencies(0.0, 0.5)[[0, 1], [0, 3]].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(frequencies(1.0, 1.0), np.exp(LOGITS), atol=0.03)
    flatter = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(frequencies(2.0, 1.0), flatter, atol=0.03)
    # 0.5 alone is too little for 0.6, and 0.4 + 0.3 is enough.
    expected = np.array([[0.5, 0.25, 0, 0], [0, 0, 0.3, 0.4]])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(frequencies(1.0, 0.6), expected, atol=0.03)
    assert (frequencies(1.0, 0.6)[expected == 0] == 0).all()
    np.testing.assert_array_equal(frequencies(1.0, 1e-6), frequencies(0.0, 1.0))


def slow_processed(logits, sampling, seen):
    """Logits of one row by the definitions of transformers' processors, token by token."""
    logits = list(map(float, logits))
    for token in set(seen):
        penalty = sampling.repetition_penalty
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    logits = [value / sampling.temperature for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    allowed = set(order[: sampling.top_k] if sampling.top_k else order)
    weights = {token: np.exp(logits[token]) for token in order if token in allowed}
    total, likelier = sum(weights.values()), 0.0
    for token, weight in weights.items():
        if likelier >= sampling.top_p:
            allowed.remove(token)
        likelier += weight / total
    return [value if token in allowed else -np.inf for token, value in enumerate(logits)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7, top_k=5),
        Sampling(1.3, top_k=1),
        Sampling(0.9, top_k=1000),
        Sampling(1.0, top_p=0.8),
        Sampling(0.7, top_p=0.6, top_k=6, repetition_penalty=1.3),
        Sampling(1.0, repetition_penalty=0.5),
    ],
    ids=str,
)
def test_logits_are_processed_as_defined(sampling):
    logits = np.random.default_rng(0).normal(size=(3, 40), scale=3).astype(np.float32)
    tokens = [[3, 1, 3], [], list(range(40))]
    seen = np.array([[token in row for token in range(40)] for row in tokens])
    expected = [slow_processed(row, sampling, own) for row, own in zip(logits, tokens, strict=True)]
    np.testing.assert_allclose(generation.processed(jnp.asarray(logits), sampling, jnp.asarray(seen)), expected, rtol=1e-6)


def test_tokens_of_prompt_and_answer_are_penalized_and_those_of_padding_are_not():
    """No token of a prompt may occur in its answer, none of the answer twice; prompts are padded with token 0."""
    prompts, sampling = ((3, 1, 4, 1, 5, 9), (2,), tuple(range(V - MOST, V))), Sampling(repetition_penalty=1e9)
    rows = generated(prompts=prompts, sampling=sampling)
    for prompt, row in zip(prompts, rows, strict=True):
        assert len({*prompt, *row.tolist()}) == len(set(prompt)) + MOST
    net, row = steered_llama("toast")
    padded = np.array([[*prompt, *[0] * (16 - len(prompt))] for prompt in prompts], np.int32)
    lengths, keys = np.array([6, 1, MOST], np.int32), jax.random.split(jax.random.key(0), 3)
    state = generation.begin(net, row, parameters(), padded, lengths, 64, sampling, keys)
    assert [set(np.flatnonzero(seen)) for seen in state.seen] == [
        {*prompt, first} for prompt, first in zip(prompts, rows[:, 0], strict=True)
    ]


def unstacked(net, params):
    params = generation.unstacked(params)
    assert all(leaf.ndim < 3 for name in ("backbone", "top_down") for leaf in jax.tree.leaves(params.get(name, {})))
    return params


@pytest.mark.parametrize("store", (generation.packed, unstacked))
@pytest.mark.parametrize("method", ("lora", "toast", "toast_lite"))
def test_parameters_stored_for_generation_change_no_token(method, store):
    """They are copied, as the stored ones take their memory."""
    net, row = steered_llama(method)
    stored = store(net, jax.tree.map(jnp.copy, parameters(method)))
    parts = generation.generate(net, row, stored, PROMPTS, most=MOST, sampling=GREEDY, at_once=3)
    np.testing.assert_array_equal(np.concatenate(list(parts), axis=1), generated(method))


def test_tokens_are_added_to_the_caches_in_place():
    """Beside the caches themselves, memory holds a few arrays of one layer, not one of all layers."""
    depth, rows, places = 9, 2, 4096
    net, row = steered_llama("toast", depth=depth, context=places)
    net = net.clone(top_down=TopDown(depth, net.backbone.width))
    params = jax.eval_shape(lambda: steered.init(net, row, jax.random.key(0)))
    zeros, keys = jnp.zeros(rows, jnp.int32), jax.random.split(jax.random.key(0), rows)
    state = jax.eval_shape(lambda: generation.Decoding(zeros, zeros, zeros > 0, net.caches(rows, places), keys))
    memory = generation.extend.lower(net, row, params, state, 3, GREEDY).compile().memory_analysis()
    caches = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.caches))
    assert memory.alias_size_in_bytes >= caches
    assert memory.temp_size_in_bytes < caches / 3, (memory.temp_size_in_bytes, caches)


def test_arrays_of_one_layer_are_neither_copied_nor_stacked():
    """Of the kernels of a network, of its top-down module and of its caches."""
    rows, places = 2, 1000
    net, row = steered_llama("toast", context=places)
    params = unstacked(net, jax.tree.map(jnp.copy, parameters("toast")))
    tokens, keys = jnp.ones((rows, 16), jnp.int32), jax.random.split(jax.random.key(0), rows)
    state = jax.eval_shape(functools.partial(generation.begin, net, row, params, tokens, tokens[:, 0], places, GREEDY), keys)
    program = generation.extend.lower(net, row, params, state, 3, GREEDY).compile()
    assert program.memory_analysis().alias_size_in_bytes >= sum(4 * leaf.size for leaf in jax.tree.leaves(state.caches))
    step, layers, width = program.as_text(), net.backbone.depth, net.backbone.width
    assert f"f32[{rows},{places}," in step and f"f32[{layers},{rows},{places}," not in step
    assert not re.search(rf"f32\[{rows},{places},\S* copy\(", step)
    assert f"f32[{width},{width}]" in step and not re.search(rf"f32\[1,{width},{width}\]\S* dynamic-slice", step)


def test_no_step_copies_or_converts_a_stack_of_kernels_or_a_cache():
    """With kernels for generation, in bfloat16, which a CPU computes in float32."""
    rows, places = 2, 2048
    net, row = steered_llama("lora", depth=9, hidden=4096, vocabulary=20_000, context=places, dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda: generation.packed(net, steered.init(net, row, jax.random.key(0))))
    zeros, keys = jnp.zeros(rows, jnp.int32), jax.random.split(jax.random.key(0), rows)
    state = jax.eval_shape(lambda: generation.Decoding(zeros, zeros, zeros > 0, net.caches(rows, places), keys))
    memory = generation.extend.lower(net, row, params, state, 3, GREEDY).compile().memory_analysis()
    backbone = params["backbone"]
    arrays = jax.tree.leaves([state.caches, backbone["embed"], backbone["head"], backbone["blocks"]["mlp"]])
    assert memory.temp_size_in_bytes < 4 * min(leaf.size for leaf in arrays), memory.temp_size_in_bytes
