"""Attention: every implementation against the definition, and which one a program for a platform contains."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.layers import attention
from toast_jax.model.layers.attention import attend

B, N, K = 2, 5, 8
FORWARD, BACKWARD = r"__cudnn\$fmha\w*Softmax\(", r"__cudnn\$fmha\w*SoftmaxBackward\("


def arrays(queries=N, heads=4, kv_heads=4, keys=N, dtype=jnp.float32):
    shapes = (queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)
    draw = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (B, n, h, K), dtype) for key, (n, h) in zip(draw, shapes, strict=True)]


def causal_in_segments(length=N):
    segments = jnp.where(jnp.arange(length) < length // 2, 1, 2)[None].repeat(B, axis=0)
    return llama.places(segments.at[1, -1].set(-2))[1]


def definition(q, k, v, mask=None):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bmhk,bnhk->bhmn", q, k) / K**0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, -jnp.inf)
    return jnp.einsum("bhmn,bnhk->bmhk", jax.nn.softmax(logits), v)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(compute, q, k, v, weight, mask=None):
    """The output, and the gradients of its weighted sum."""
    args = () if mask is None else (mask,)
    out, pull = jax.vjp(lambda q, k, v: compute(q, k, v, *args), q, k, v)
    return out, *pull(weight)


def assert_close(ours, expected):
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compute", [attend, attention._xla, lambda q, k, v: attention.attend_with_weights(q, k, v)[0]])
@pytest.mark.parametrize("queries", [N, 1])
def test_every_implementation_without_a_mask(compute, queries):
    given = arrays(queries)
    assert_close(with_gradients(compute, *given), with_gradients(definition, *given))


@pytest.mark.parametrize("compute", [attend, attention._xla])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_implementation_with_causal_segments(compute, kv_heads):
    given = (*arrays(kv_heads=kv_heads), causal_in_segments())
    assert_close(with_gradients(compute, *given), with_gradients(definition, *given))


def test_weights_are_those_of_the_output():
    q, k, v, _ = arrays()
    mixed, weights = attention.attend_with_weights(q, k, v)
    assert_close([mixed], [jnp.einsum("bhmn,bnhk->bmhk", weights, v)])


@pytest.mark.parametrize("mapped", [(None, None, 0, None), (None, 1, 0, 0)])
def test_folding_a_mapped_axis_where_only_some_arguments_have_it(mapped):
    """As in a grid, whose first block has the same queries and keys in all members."""
    given = [x if axis is None else jnp.stack([x, 2 * x, -x], axis) for x, axis in zip(arrays(), mapped, strict=True)]
    one_by_one = functools.partial(with_gradients, definition)
    folded = attention._folded(functools.partial(with_gradients, attention._xla))
    ours, expected = (jax.jit(jax.vmap(compute, in_axes=mapped))(*given) for compute in (folded, one_by_one))
    assert_close(ours, expected)


@pytest.mark.parametrize(
    ("fits", "sizes"),
    [
        (True, {}),
        (True, {"queries": 6, "keys": 8, "masked": True}),
        (False, {"masked": True}),  # of odd sides
        (False, {"queries": 1}),
        (False, {"channels": 4}),
        (False, {"channels": 136}),
        (False, {"dtype": jnp.float32}),
    ],
)
def test_sizes_that_cudnn_takes(fits, sizes):
    vit_b = {"queries": 197, "keys": 197, "channels": 64, "dtype": jnp.bfloat16, "masked": False}
    assert attention.fits_cudnn(**{**vit_b, **sizes}) == fits


@pytest.fixture
def with_cudnn(monkeypatch):
    """As in a process with a GPU: JAX builds calls of cuDNN, which nothing here runs."""
    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    library = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", library)


def program(function, *args, platforms):
    return jax.jit(function).trace(*args).lower(lowering_platforms=platforms).as_text()


def calls_of_cudnn(text):
    return len(re.findall(FORWARD, text)), len(re.findall(BACKWARD, text))


@pytest.mark.parametrize("masked", [False, True])
def test_programs_of_platforms(with_cudnn, masked):
    length = 6 if masked else 7
    args = jax.eval_shape(lambda: arrays(length, keys=length, dtype=jnp.bfloat16))
    args += [causal_in_segments(length)] if masked else []
    step = functools.partial(with_gradients, attend)
    text = program(step, *args, platforms=("cuda",))
    assert calls_of_cudnn(text) == (2, 1)  # the forward pass, and again in the backward pass, which saves only the arguments
    assert f"{B}x4x{length}x{length}xf32" not in text
    for platform in ("cpu", "tpu"):
        text = program(step, *args, platforms=(platform,))
        assert "cudnn" not in text and "dot_general" in text
    several = jax.export.export(jax.jit(step), platforms=("cpu", "tpu"))(*args)
    assert several.platforms == ("cpu", "tpu")


def test_a_mapped_program_of_a_gpu_folds_its_members(with_cudnn):
    q, k, v, weight = jax.eval_shape(lambda: arrays(dtype=jnp.bfloat16))
    many = jax.ShapeDtypeStruct((3, *v.shape), v.dtype)
    step = jax.vmap(functools.partial(with_gradients, attend), in_axes=(None, None, 0, None))
    text = program(step, q, k, many, weight, platforms=("cuda",))
    assert calls_of_cudnn(text) == (2, 1) and f"tensor<{3 * B}x{N}x4x{K}xbf16>" in text


def test_float32_on_a_gpu_needs_no_cudnn(with_cudnn):
    assert "cudnn" not in program(attend, *arrays()[:3], platforms=("cuda",))


def test_only_maps_hold_attention_weights(with_cudnn):
    net = vit.ViT(width=16, depth=3, num_heads=2, patch=2, grid=2, dtype=jnp.bfloat16)
    images = jnp.zeros((3, 4, 4, 3))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), images))
    for look, has_maps in (("pooled", False), ("__call__", True)):
        text = program(functools.partial(net.apply, method=look), params, images, platforms=("cuda",))
        assert ("3x2x5x5xf32" in text) == has_maps
        assert ("cudnn" in text) != has_maps


@pytest.mark.skipif(jax.devices()[0].platform != "gpu", reason="set JAX_PLATFORMS=cuda on a machine with a GPU")
@pytest.mark.parametrize(("queries", "keys", "kv_heads", "masked"), [(197, 197, 4, False), (7, 5, 4, False), (6, 6, 2, True)])
def test_cudnn_on_a_gpu(queries, keys, kv_heads, masked):
    given = arrays(queries, keys=keys, kv_heads=kv_heads)
    mask = [causal_in_segments(queries)] if masked else []
    half = [x.astype(jnp.bfloat16) for x in given]
    assert calls_of_cudnn(program(functools.partial(with_gradients, attend), *half, *mask, platforms=("cuda",))) == (2, 1)
    ours, expected = with_gradients(attend, *half, *mask), with_gradients(definition, *given, *mask)
    for x, y in zip(ours, expected, strict=True):
        np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=0, atol=0.03 * np.abs(y).max())
