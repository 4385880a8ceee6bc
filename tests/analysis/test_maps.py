"""Maps of a look, by hand: heads, rollout, what is fed back, and the gradient map of a ConvNeXt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax.analysis import comparison, drawing, maps
from toast_jax.model import steered

WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(7), (3, 2, 4, 7)).astype(np.float32)  # L, B, H, N; two prompts


def test_map_of_the_class_token_is_its_row_of_the_last_block():
    ours = maps.of_class_token(jnp.asarray(WEIGHTS), grid=2)
    expected = WEIGHTS[2, :, :, 0, 3:].mean(axis=1)
    np.testing.assert_allclose(ours, expected.reshape(2, 2, 2), rtol=1e-6)
    heads = maps.of_heads(jnp.asarray(WEIGHTS), grid=2)
    np.testing.assert_array_equal(heads[1, 3], WEIGHTS[2, 1, 3, 0, 3:].reshape(2, 2))


def test_maps_in_blocks_are_the_rows_of_the_class_token():
    in_blocks = maps.of_blocks(jnp.asarray(WEIGHTS), grid=2)
    np.testing.assert_allclose(in_blocks, WEIGHTS[:, :, :, 0, 3:].mean(axis=2).swapaxes(0, 1).reshape(2, 3, 2, 2), rtol=1e-6)


def test_rollout_is_the_product_over_blocks():
    mean = 0.5 * WEIGHTS.mean(axis=2) + 0.5 * np.eye(7, dtype=np.float32)
    expected = (mean[2] @ mean[1] @ mean[0])[:, 0, 3:].reshape(2, 2, 2)
    np.testing.assert_allclose(maps.rollout(jnp.asarray(WEIGHTS), 2), expected, rtol=1e-5)


def test_rollout_does_not_follow_prompts_that_are_replaced():
    mean = 0.5 * WEIGHTS.mean(axis=2) + 0.5 * np.eye(7, dtype=np.float32)
    mean[:, :, :, 1:3] = 0
    expected = (mean[2] @ mean[1] @ mean[0])[:, 0, 3:].reshape(2, 2, 2)
    np.testing.assert_allclose(maps.rollout(jnp.asarray(WEIGHTS), 2, replaced=2), expected, rtol=1e-5)


def looked(method, backbone="vit_ti8"):
    """A network with random parameters, and what `look` and `look_closely` see of three images."""
    config = tiny_config("unused", method, backbone)
    network, row = steered.build(config, 3)
    side = 2 * config.data.image_size if backbone == "convnext_t" else config.data.image_size  # a last map of more than a place
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), shapes)
    images = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    see = lambda params, images: (maps.look(network, row, params, images), maps.look_closely(network, row, params, images))  # noqa: E731
    plain, close = jax.device_get(jax.jit(see)(params, images))
    return params, functools.partial(steered.apply, network, row, params), images, plain, close


def test_closer_look_of_a_vit():
    _, apply, images, plain, (probabilities, found, parts) = looked("toast")
    np.testing.assert_allclose(probabilities, plain[0], rtol=1e-5)
    for name, one in plain[1].items():
        np.testing.assert_allclose(found[name], one, rtol=1e-4, atol=1e-7)
    assert set(found) == {*maps.ORDER, maps.ROLLOUT} and all(one.shape == (3, 2, 2) for one in found.values())
    for heads, name in ((parts.first_heads, maps.FIRST), (parts.last_heads, maps.LAST)):
        assert len(heads) == 2
        np.testing.assert_allclose(np.mean(heads, axis=0), found[name], rtol=1e-5)
    _, out = jax.device_get(apply(images, call="explain"))
    norms = np.sqrt((out["td"][:, :, 1:] ** 2).sum(axis=-1)).reshape(3, 3, 2, 2)
    np.testing.assert_allclose(np.stack(parts.top_down), norms, rtol=1e-4)


def test_blocks_before_a_second_look_that_starts_late_are_those_of_the_first(monkeypatch):
    """Of three blocks the last two look again."""
    config = tiny_config("unused", "toast")
    config.steered_blocks = 2
    network, row = steered.build(config, 3)
    params = steered.init(network, row, jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    _, by_name = maps.look_in_blocks(network, row, params, images)
    first, last = by_name[maps.FIRST], by_name[maps.LAST]
    assert first.shape == last.shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(last[:, :1], first[:, :1])
    probabilities, found, parts = jax.device_get(maps.look_closely(network, row, params, images))
    np.testing.assert_allclose(last[:, 2], found[maps.LAST], rtol=1e-5)
    titles = []
    monkeypatch.setattr(drawing, "titled", lambda panel, title, lines=2: titles.append(title) or panel)
    looked = comparison.Looked(("a", "b"), probabilities.max(axis=-1), found, parts)
    comparison.picture_of(images[0], "picture", looked, 0)
    numbered = [title.split(", mean")[0] for title in titles if "fed back" in title]
    assert numbered == ["norm fed back, block 2", "norm fed back, block 3"]


def measured_look(method, **fields):
    """A network of random parameters, its `explain` of three images, and its maps for labels of which one is unknown."""
    config = tiny_config("unused", method)
    config.update(fields)
    network, row = steered.build(config, 3)
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), shapes)
    images = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)

    def see(params, images):
        explained = steered.apply(network, row, params, images, call="explain")
        looks = {"first look": explained[1].get("first_look"), "look": explained[1]["look"]}
        perturbed = {}  # the same network up to its last block, one token after the other changed
        for name, look in looks.items():
            if look is not None:
                td = explained[1]["td"][-1] if name == "look" and "td" in explained[1] else None
                logits = lambda tokens, td=td: steered.apply(network, row, params, tokens, td, call=maps._classify_from_last)  # noqa: E731
                jacobian = jax.jacobian(lambda tokens: logits(tokens).sum(axis=0))(look["hidden"][-2])  # noqa: B023
                perturbed[name] = (logits(look["hidden"][-2]), jacobian, look["hidden"][-2])
        measured = maps.look_to_measure(network, row, params, images, jnp.array([2, 0, -1]))
        return explained, perturbed, measured

    return jax.device_get(jax.jit(see)(params, images))


def gradient_of(jacobian, classes):
    """The norm of each patch's gradient of the logit of its image's class, `[B, 2, 2]`."""
    of_class = jacobian[classes, np.arange(3)]
    return np.sqrt((of_class[:, -4:] ** 2).sum(axis=-1)).reshape(3, 2, 2)


def test_maps_to_measure_of_a_network_that_looks_twice():
    (logits, out), perturbed, (again, found) = measured_look("toast", steered_blocks=2)
    np.testing.assert_allclose(again, logits, rtol=1e-5)
    assert set(found) == {*maps.MEASURED} - {maps.GRAD_CAM}
    np.testing.assert_allclose(perturbed["look"][0], logits, rtol=1e-4, atol=1e-5)  # so the gradient is of this network
    classes = np.array([2, 0, logits[2].argmax()])
    for name, label in (("first look", maps.FIRST_GRADIENT), ("look", maps.GRADIENT)):
        np.testing.assert_allclose(found[label], gradient_of(perturbed[name][1], classes), rtol=1e-3)
    assert np.abs(found[maps.GRADIENT] / found[maps.FIRST_GRADIENT] - 1).max() > 0.01
    first, last = out["first_look"]["attention"], out["look"]["attention"]
    assert (len(first), len(last)) == (3, 2)
    np.testing.assert_allclose(found[maps.FIRST_ROLLOUT], maps.rollout(first, 2), rtol=1e-4)
    np.testing.assert_allclose(found[maps.ROLLOUT], maps.rollout(np.concatenate([first[:1], last]), 2), rtol=1e-4)
    # The last block normalizes its tokens, so to scale a patch changes nothing.
    _, jacobian, tokens = perturbed["look"]
    along = np.abs((jacobian * tokens).sum(axis=-1))[..., -4:]
    assert along.max() < 1e-3 * np.linalg.norm(jacobian, axis=-1).max() * np.linalg.norm(tokens, axis=-1).max()


@pytest.mark.slow
def test_maps_to_measure_of_a_network_that_looks_once():
    (logits, _), perturbed, (_, found) = measured_look("vpt")
    assert set(found) == {maps.LAST, maps.ROLLOUT, maps.GRADIENT}
    np.testing.assert_allclose(perturbed["look"][0], logits, rtol=1e-4, atol=1e-5)  # its prompts are among the tokens
    classes = np.array([2, 0, logits[2].argmax()])
    np.testing.assert_allclose(found[maps.GRADIENT], gradient_of(perturbed["look"][1], classes), rtol=1e-3)


@pytest.mark.slow
def test_closer_look_of_one_that_looks_once():
    _, apply, images, _, (_, found, parts) = looked("vpt")
    assert set(found) == {maps.LAST, maps.ROLLOUT} and parts.top_down == [] == parts.first_heads
    _, out = jax.device_get(apply(images, call="explain"))
    with_prompts, without = (maps.rollout(out["look"]["attention"], 2, replaced=count) for count in (0, 2))
    np.testing.assert_allclose(found[maps.ROLLOUT], without, rtol=1e-4)
    assert np.abs(with_prompts - without).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "toast"])
def test_closer_look_of_a_convnext(method):
    params, apply, images, plain, (probabilities, found, parts) = looked(method, "convnext_t")
    np.testing.assert_allclose(probabilities, plain[0], rtol=1e-4)
    assert set(found) == {*plain[1], maps.GRAD_CAM} and parts.last_heads == []
    assert [one.shape[1] for one in parts.top_down] == ([64, 16, 8, 4] if method == "toast" else [])
    # The gradient of a logit behind a mean over the map, a LayerNorm and the head, by hand.
    _, out = jax.device_get(apply(images, call="explain"))
    last, named = out["look"]["hidden"][-1].astype(np.float64), probabilities.argmax(axis=-1)
    pooled = last.mean(axis=(1, 2))
    deviation = np.sqrt(pooled.var(axis=1, keepdims=True) + 1e-6)
    normed = (pooled - pooled.mean(axis=1, keepdims=True)) / deviation
    gradient = params["backbone"]["norm"]["scale"] * params["head"]["kernel"][:, named].T
    centred = gradient - gradient.mean(axis=1, keepdims=True) - normed * (gradient * normed).mean(axis=1, keepdims=True)
    weights = centred / deviation / 4
    expected = np.maximum((weights[:, None, None] * last).sum(axis=-1), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(found[maps.GRAD_CAM], expected, rtol=1e-3, atol=1e-4 * expected.max())
