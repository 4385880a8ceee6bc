"""Selection and feedback: which tokens pass, in what order the signal returns, and what the variational loss teaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax.model import top_down
from toast_jax.model.top_down import ConvTopDown, TopDown

L, B, N, D = 3, 2, 5, 8
select = jax.jit(top_down.select)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters():
    return {"prior": draw(D), "transform": draw(D, D, seed=1), "back": draw(L, D, D, seed=2), "out": draw(L, D, D, seed=3)}


@functools.partial(jax.jit, static_argnames="dtype")
def signal(params, compared, fed_back=None, dtype=jnp.float32):
    return TopDown(L, D, dtype).apply({"params": params}, compared, compared if fed_back is None else fed_back)


def orthogonal_to(prior, tokens):
    return tokens - (tokens @ prior)[..., None] * prior / (prior @ prior)


@pytest.mark.parametrize(("direction", "selected"), [(-1.0, 0.0), (1.0, 1.0)])
def test_opposite_tokens_are_ignored_and_parallel_ones_pass(direction, selected):
    prior = draw(D)
    tokens = direction * np.linspace(0.1, 9.0, B * N, dtype=np.float32).reshape(B, N, 1) * prior
    mask = select(tokens, prior)
    assert mask.shape == (B, N, 1)
    np.testing.assert_allclose(mask, selected, atol=1e-6)
    assert np.all(mask >= 0) and np.all(mask <= 1)


def test_selection_is_the_cosine():
    prior, tokens = draw(D), draw(B, N, D, seed=1)
    cosine = tokens @ prior / np.linalg.norm(tokens, axis=-1) / np.linalg.norm(prior)
    assert (cosine < 0).any() and (cosine > 0).any()
    np.testing.assert_allclose(select(tokens, prior)[..., 0], np.clip(cosine, 0, 1), rtol=1e-5, atol=1e-7)


def test_prior_orthogonal_to_all_tokens_gives_no_signal():
    params = parameters()
    params["prior"] = np.eye(D, dtype=np.float32)[0]
    tokens = draw(B, N, D, seed=4)
    tokens[..., 0] = 0.0
    td, mask = signal(params, tokens)
    assert td.shape == (L, B, N, D)
    assert not np.any(mask) and not np.any(td)
    np.testing.assert_allclose(select(orthogonal_to(draw(D), draw(B, N, D, seed=4)), draw(D)), 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_selection_ignores_magnitudes_and_the_signal_does_not(scale):
    params, tokens = parameters(), draw(B, N, D, seed=4)
    td, mask = signal(params, tokens)
    scaled_td, scaled_mask = signal({**params, "prior": 3.0 * params["prior"]}, scale * tokens)
    np.testing.assert_allclose(scaled_mask, mask, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled_td, scale * td, rtol=1e-4, atol=1e-5 * scale * np.abs(td).max())


@pytest.mark.parametrize("zero", ["tokens", "prior", "both"])
def test_zero_vectors_give_finite_values_and_gradients(zero):
    params, tokens = parameters(), draw(B, N, D, seed=4)
    if zero in ("tokens", "both"):
        tokens[0, 1] = 0.0
    if zero in ("prior", "both"):
        params["prior"] = np.zeros(D, np.float32)
    loss = lambda params, tokens: sum(jnp.sum(array**2) for array in signal(params, tokens))  # noqa: E731
    results = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, tokens)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_signal_returns_from_the_last_block_to_the_first():
    params, compared, fed_back = parameters(), draw(B, N, D, seed=4), draw(B, N, D, seed=5)
    td, mask = signal(params, compared, fed_back)
    np.testing.assert_array_equal(mask, select(compared, params["prior"]))
    z = np.asarray(mask) * fed_back @ params["transform"]
    for block in reversed(range(L)):
        z = z @ params["back"][block]
        expected = z @ params["out"][block]
        np.testing.assert_allclose(td[block], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@jax.jit
def variational(params, hidden):
    return TopDown(L, D).apply({"params": params}, hidden, method="variational_loss")


def test_variational_loss_is_the_sum_of_the_blocks_errors():
    params, hidden = parameters(), draw(L + 1, B, N, D, seed=6)
    expected = np.zeros(B)
    for block in range(L):
        for example in range(B):
            rebuilt = hidden[block + 1, example] @ params["back"][block]
            expected[example] += np.mean((rebuilt - hidden[block, example]) ** 2)
    np.testing.assert_allclose(variational(params, hidden), expected, rtol=1e-5)


def test_variational_loss_teaches_the_way_back_alone():
    grads, hidden = jax.jit(jax.grad(lambda *args: variational(*args).mean(), argnums=(0, 1)))(
        parameters(), draw(L + 1, B, N, D, seed=6)
    )
    assert all(np.abs(grads["back"][block]).min() > 0 for block in range(L))
    assert not any(np.any(grads[name]) for name in ("prior", "transform", "out"))
    assert not np.any(hidden)


def test_signal_starts_with_a_transform_that_changes_nothing():
    sites, width = 2, 256
    tokens = jnp.zeros((1, 1, width))
    params = jax.tree.map(np.asarray, jax.jit(TopDown(sites, width).init)(jax.random.key(0), tokens, tokens)["params"])
    feedback = (sites, width, width)
    assert jax.tree.map(np.shape, params) == {"prior": (width,), "transform": feedback[1:], "back": feedback, "out": feedback}
    np.testing.assert_array_equal(params["transform"], np.eye(width))
    np.testing.assert_allclose(params["prior"].std(), 1.0, rtol=0.1)
    # Every matrix is drawn on its own, with the deviation of torch's trunc_normal_(std=0.02).
    matrices = [*params["back"], *params["out"]]
    np.testing.assert_allclose([matrix.std() for matrix in matrices], 0.02, rtol=0.02)
    np.testing.assert_allclose(np.corrcoef([matrix.ravel() for matrix in matrices]), np.eye(2 * sites), atol=0.02)


def test_bfloat16_signal_is_selected_in_float32():
    params, tokens = parameters(), draw(B, N, D, seed=4)
    (td, mask), (expected, _) = signal(params, tokens.astype(jnp.bfloat16), dtype=jnp.bfloat16), signal(params, tokens)
    assert (td.dtype, mask.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(td.astype(jnp.float32), expected, atol=0.05 * np.abs(expected).max())


# The same for a network of stages.

CHANNELS, STRIDES, SIDE = (3, 4, 6, 8), (4, 2, 2), 2  # the last map is SIDE x SIDE


def conv_parameters():
    draws = {f"back_{i}": draw(CHANNELS[i + 1], s * s * CHANNELS[i], seed=i + 2) for i, s in enumerate(STRIDES)}
    draws |= {f"out_{i}": draw(CHANNELS[i], CHANNELS[i], seed=i + 8) for i in range(len(STRIDES))}
    return {"prior": draw(CHANNELS[-1]), "transform": draw(CHANNELS[-1], CHANNELS[-1], seed=1), **draws}


def stage_maps():
    """Inputs of the stages and the output of the last."""
    sides = SIDE * np.cumprod((1, *reversed(STRIDES)))[::-1]
    return tuple(draw(B, side, side, c, seed=20 + i) for i, (side, c) in enumerate(zip(sides, CHANNELS, strict=True)))


def transposed_convolution(x, kernel, stride):
    """Each place of `x` adds a patch of its own; `kernel [C, S * S * F]` holds the patch of each channel row by row."""
    b, h, w, c = x.shape
    kernel = kernel.reshape(c, stride, stride, -1)
    y = np.zeros((b, h * stride, w * stride, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            patch = np.einsum("bc,cuvf->buvf", x[:, i, j], kernel)
            y[:, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride] = patch
    return y


@jax.jit
def conv_signal(params, compared, fed_back):
    return ConvTopDown(CHANNELS, STRIDES).apply({"params": params}, compared, fed_back)


def test_signal_returns_through_the_stages():
    params, compared, fed_back = conv_parameters(), stage_maps()[-1], draw(B, SIDE, SIDE, CHANNELS[-1], seed=5)
    td, mask = conv_signal(params, compared, fed_back)
    assert mask.shape == (B, SIDE, SIDE, 1) and [one.shape for one in td] == [one.shape for one in stage_maps()[:-1]]
    np.testing.assert_allclose(mask, select(compared, params["prior"]), rtol=1e-5, atol=1e-6)
    z = np.asarray(mask) * fed_back @ params["transform"]
    for i in reversed(range(len(STRIDES))):
        z = transposed_convolution(z, params[f"back_{i}"], STRIDES[i])
        expected = z @ params[f"out_{i}"]
        np.testing.assert_allclose(td[i], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_prior_orthogonal_to_all_places_gives_no_signal():
    params, compared = conv_parameters(), stage_maps()[-1].copy()
    params["prior"] = np.eye(CHANNELS[-1], dtype=np.float32)[0]
    compared[..., 0] = 0.0
    td, mask = conv_signal(params, compared, stage_maps()[-1])
    assert not np.any(mask) and not any(np.any(one) for one in td)


def test_variational_loss_of_stages_is_the_sum_of_their_errors():
    params, hidden = conv_parameters(), stage_maps()
    loss = lambda params, hidden: ConvTopDown(CHANNELS, STRIDES).apply(  # noqa: E731
        {"params": params}, hidden, method="variational_loss"
    )
    expected = np.zeros(B)
    for i, stride in enumerate(STRIDES):
        rebuilt = transposed_convolution(hidden[i + 1], params[f"back_{i}"], stride)
        expected += np.mean((rebuilt - hidden[i]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss(params, hidden), expected, rtol=1e-5)
    of_params, of_hidden = jax.jit(jax.grad(lambda *args: loss(*args).mean(), argnums=(0, 1)))(params, hidden)
    assert {name for name, gradient in of_params.items() if np.any(gradient)} == {"back_0", "back_1", "back_2"}
    assert not any(np.any(gradient) for gradient in of_hidden)


def test_feedback_convolutions_start_as_in_the_release():
    module = ConvTopDown((3, 64, 256), (4, 2))
    shapes = jnp.zeros((1, 1, 1, 256)), jnp.zeros((1, 1, 1, 256))
    params = jax.tree.map(np.asarray, jax.jit(module.init)(jax.random.key(0), *shapes)["params"])
    expected = {"prior": (256,), "transform": (256, 256)}
    expected |= {"back_0": (64, 48), "out_0": (3, 3), "back_1": (256, 256), "out_1": (64, 64)}
    assert jax.tree.map(np.shape, params) == expected
    np.testing.assert_array_equal(params["transform"], np.eye(256))
    for name in ("back_0", "back_1"):  # torch's kaiming_uniform_(a=sqrt(5)), by the numbers that a transposed convolution has
        bound = params[name].shape[1] ** -0.5
        assert 0.99 * bound < np.abs(params[name]).max() <= bound
        np.testing.assert_allclose(params[name].std(), bound / np.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(params["out_1"].std(), 0.02, rtol=0.05)
