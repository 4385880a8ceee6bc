"""Adapters after blocks: their numbers, their first values, and that each family has a place for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import methods, steered
from toast_jax.model.additions.adapter import Adapters, Bottleneck
from toast_jax.model.layers.drop_path import BlockOutput
from toast_jax.model.layers.gelu import gelu

D, R, L = 6, 2, 3
PARAMS = {"backbone": {"blocks": {"norm1": {"scale": np.ones((L, D))}}, "last_0": {"norm1": {"scale": np.ones(D)}}}}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bottleneck():
    return Bottleneck(draw(D, R), draw(R, seed=1), draw(R, D, seed=2), draw(D, seed=3), draw(D, seed=4))


def output(x, *arguments):
    return BlockOutput().apply({"params": {"branch": bottleneck()}}, x, *arguments)


def test_a_block_without_a_branch_ends_as_before():
    x = jnp.asarray(draw(4, 5, D))
    assert BlockOutput().init(jax.random.key(0), x) == {} and BlockOutput().apply({}, x) is x


def test_a_branch_is_a_scaled_bottleneck_of_the_output():
    x, own = draw(4, 5, D), bottleneck()
    hidden = gelu(x @ own.down + own.down_bias)
    np.testing.assert_allclose(output(x), x + own.scaling * (hidden @ own.up + own.up_bias), rtol=1e-5, atol=1e-5)


def test_a_branch_is_dropped_by_example():
    x, rng = draw(64, 5, D), jax.random.split(jax.random.key(0), 64)
    added = output(x, (3, 0.25), rng) - x
    kept = np.any(added, axis=(1, 2))
    assert 36 < kept.sum() < 60
    np.testing.assert_allclose(added[kept], (output(x) - x)[kept] / 0.75, rtol=1e-4, atol=1e-5)
    assert np.any(kept != np.any(output(x, (2, 0.25), rng) - x, axis=(1, 2)))  # each block draws for itself


def test_first_values_are_those_of_the_paper():
    params = {"backbone": {"last_0": {"norm1": {"scale": np.ones(200)}}}}
    own = Adapters(methods.BLOCKS, rank=40).init(jax.random.key(0), params)["backbone"]["last_0"]
    for name in ("down", "up"):
        assert np.abs(own[name]).max() <= 0.02 and 0.0085 < own[name].std() < 0.0091  # 0.88 of the uncut deviation
        assert not np.any(own[f"{name}_bias"])
    assert np.all(own["scaling"] == 1) and not np.array_equal(own["down"], own["up"].T)


def test_every_block_has_a_bottleneck_of_its_own():
    shapes = {"down": (D, R), "down_bias": (R,), "up": (R, D), "up_bias": (D,), "scaling": (D,)}
    own = Adapters(methods.BLOCKS, rank=R).init(jax.random.key(0), PARAMS)
    stacked = {f"backbone/blocks/{name}": (L, *shape) for name, shape in shapes.items()}
    assert trees.shapes(own) == stacked | {f"backbone/last_0/{name}": shape for name, shape in shapes.items()}
    assert len({float(leaf[0, 0]) for leaf in (*own["backbone"]["blocks"]["down"], own["backbone"]["last_0"]["down"])}) == L + 1


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit_ti8", "convnext_t"])
def test_every_adapter_has_a_gradient(backbone):
    """A backbone whose blocks have no place for a branch would leave adapters without an effect."""
    config = tiny_config("", "adapter_plus", backbone)
    network, row = steered.build(config, 3)
    params = jax.jit(lambda: steered.init(network, row, jax.random.key(0)))()
    images = jnp.asarray(draw(1, config.data.image_size, config.data.image_size, 3))

    def loss(own):
        return jnp.sin(steered.apply(network, row, {**params, "adapter": own}, images)).sum()

    gradients = trees.flat(jax.jit(jax.grad(loss))(params["adapter"]))
    assert all(np.any(leaf) for leaf in gradients.values())


def test_adapters_are_not_merged():
    with pytest.raises(InputError, match=r"What this method adds \(adapter\) is more than a change of weights"):
        steered.merged(methods.METHODS["adapter_plus"], {**PARAMS, "adapter": {}})


def test_a_target_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match="The adapter target 'blocks' matches no parameter"):
        Adapters("blocks").init(jax.random.key(0), PARAMS)
