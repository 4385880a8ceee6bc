"""The attentive probe: its numbers by hand, and the tokens that it reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.model import methods, steered
from toast_jax.model.additions.probe import AttentionProbe

B, N, D, Q = 6, 5, 8, 2


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_query_averages_its_own_channels():
    probe, tokens = AttentionProbe(D, Q, reduction=2), draw(B, N, D)
    params = {"queries": draw(Q, D, seed=1), "values": draw(D, D // 2, seed=2)}
    statistics = {"norm": {"running_mean": draw(D // 2, seed=3), "running_var": np.ones(D // 2, np.float32)}}
    features = probe.apply({"params": params | statistics}, tokens)
    values, group = tokens @ params["values"], D // 2 // Q
    for q in range(Q):
        weights = np.asarray(jax.nn.softmax(tokens @ params["queries"][q] / D**0.5))
        pooled = np.einsum("bn,bnc->bc", weights, values[..., q * group : (q + 1) * group])
        pooled -= statistics["norm"]["running_mean"][q * group : (q + 1) * group]
        np.testing.assert_allclose(features[:, q * group : (q + 1) * group], pooled, rtol=1e-4, atol=1e-5)


def test_first_values_are_those_of_the_paper():
    params = AttentionProbe(256, 32).init(jax.random.key(0), jnp.zeros((1, 2, 256)))["params"]
    assert trees.shapes(params["norm"]) == {"running_mean": (256,), "running_var": (256,)}
    assert 0.019 < params["queries"].std() < 0.021
    assert np.abs(params["values"]).max() <= 1 / 16 and 0.97 / 16 < np.sqrt(3) * params["values"].std() < 1.03 / 16


@pytest.mark.parametrize(
    ("backbone", "tokens", "count"), [("vit_ti8", "patches", 4), ("vit_ti8", "all", 5), ("convnext_t", "patches", 1)]
)
def test_which_tokens_are_read(backbone, tokens, count):
    config = tiny_config("", "ep", backbone)
    config.probe.tokens = tokens
    network, row = steered.build(config, 3)
    image = jnp.zeros((2, config.data.image_size, config.data.image_size, 3))
    params = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    features = jax.eval_shape(functools.partial(steered.apply, network, row, call="frozen_features"), params, image)
    assert features["pooled"].shape == (2, count, 16)


def test_module_files_hold_no_probe():
    params = {"head": {"bias": 0}, "probe": {"queries": 0}, "backbone": {"norm": 0}, "top_down": {"prior": 0, "transform": 0}}
    mask = jax.tree.map(lambda leaf: True, params) | {"backbone": {"norm": False}}
    assert methods.module_paths(mask) == {"top_down/prior", "top_down/transform"}
    assert not methods.METHODS["ep"].pretunes and methods.METHODS["toast_ep"].pretunes
