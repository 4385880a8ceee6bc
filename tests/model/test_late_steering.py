"""A second look that starts in the middle: `config.steered_blocks`."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY_CONVNEXT, tiny_config
from tests.model.backbones.llama import test_network as test_llama
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import generation, losses, steered
from toast_jax.model.backbones.convnext import network as convnext
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.families import FAMILIES
from toast_jax.train import feature_cache

B, CLASSES = test_llama.B, 3
SITES = {"vit_ti8": 3, "convnext_t": 4, "llama": test_llama.L}
# Between none and all of the blocks. A ViT of one steered block has none of the scanned stack among them.
LATE = [("vit_ti8", 1), ("vit_ti8", 2), ("convnext_t", 2), ("llama", 1)]
# Of a ConvNeXt and of the last block alone, gradients and intermediates take long to compile.
QUICK = (("vit_ti8", 2), ("llama", 1))
SOME_SLOW = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in LATE]


@pytest.fixture(scope="module", autouse=True)
def tiny_sizes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        patch.setitem(convnext.SIZES, "tiny", TINY_CONVNEXT)
        yield


@functools.cache
def network(backbone, k, method="toast", drop_path=0.0):
    if backbone == "llama":
        model, row = test_llama.steered_llama(method)
        top_down = FAMILIES["llama"].top_down(model.backbone, k or SITES[backbone])
        return dataclasses.replace(model, top_down=top_down, steered_blocks=k % SITES[backbone]), row
    config = tiny_config("", method, backbone)
    config.steered_blocks, config.backbone.drop_path = k, drop_path
    return steered.build(config, CLASSES)


@pytest.mark.parametrize("k", [-1, 4])
def test_a_number_of_blocks_that_the_network_does_not_have_is_refused(k):
    """As of a language model that was not tuned, whose config no run has checked."""
    with pytest.raises(InputError, match=f"config.steered_blocks is {k}; this network has 3 blocks to steer"):
        network("vit_ti8", k)


@functools.cache
def parameters(backbone, method="toast"):
    """Of the network whose blocks are all steered, all random: a parameter that starts at zero would hide mistakes."""
    shapes = jax.eval_shape(lambda: steered.init(*network(backbone, 0, method), jax.random.key(0)))
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: rng.normal(float(path.endswith("scale")), 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return trees.nested({path: draw(path, leaf) for path, leaf in trees.flat(shapes).items()})


def of_last(params, k, sites, change=lambda leaf, k: leaf[-k:], lower=None):
    """Keep of the top-down module what the last k sites need; `lower` changes the numbered layers of the others."""
    flat = {}
    for path, leaf in trees.flat(params).items():
        match = re.fullmatch(r"top_down/(?:back|out)(?:_(?P<site>\d))?", path)
        if match and match["site"] is None:
            flat[path] = change(leaf, k)
        elif not match or int(match["site"]) >= sites - k:
            flat[path] = leaf
        elif lower:
            flat[path] = lower(leaf)
    return trees.nested(flat)


def silent_below(params, k, sites):
    """Let the lower sites have top-down inputs of zero, and count the bias of their values once in a steered look too."""

    def zero_below(leaf, k):
        return np.where(np.arange(len(leaf))[:, None, None] < len(leaf) - k, 0, leaf).astype(leaf.dtype)

    flat = trees.flat(of_last(params, k, sites, zero_below, np.zeros_like))
    flat["top_down/back"] = params["top_down"].get("back")
    for i in range(sites):
        flat[f"top_down/back_{i}"] = params["top_down"].get(f"back_{i}")
    if "backbone/blocks/attn/v/bias" in flat:
        below = np.arange(len(flat["backbone/blocks/attn/v/bias"]))[:, None] < sites - k
        flat["backbone/blocks/attn/v/bias"] = np.where(below, 0, flat["backbone/blocks/attn/v/bias"])
    return trees.nested({path: leaf for path, leaf in flat.items() if leaf is not None})


def inputs(backbone):
    if backbone == "llama":
        return test_llama.text()
    side = 16 if backbone == "vit_ti8" else 32
    return np.random.default_rng(1).integers(0, 256, (B, side, side, 3), dtype=np.uint8)


@functools.partial(jax.jit, static_argnames=("backbone", "k", "method", "call", "drop_path"))
def apply(backbone, k, params, *args, method="toast", call=None, drop_path=0.0, **kwargs):
    return steered.apply(*network(backbone, k, method, drop_path), params, *args, call=call, **kwargs)


def assert_close(computed, expected, tolerance=1e-5):
    np.testing.assert_allclose(computed, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("backbone", SITES)
def test_all_blocks_by_number_are_all_blocks(backbone):
    """Bit for bit, as it is the same program."""
    assert network(backbone, SITES[backbone]) == network(backbone, 0)


@pytest.mark.parametrize(("backbone", "k"), SOME_SLOW)
def test_steering_the_last_blocks_is_a_whole_look_with_silence_below(backbone, k):
    params = silent_below(parameters(backbone), k, SITES[backbone])
    late = of_last(params, k, SITES[backbone])

    def logits_and_gradients(k, params):
        def mean(top_down):
            logits = apply(backbone, k, {**params, "top_down": top_down}, inputs(backbone))
            return (logits**2).mean(), logits

        return jax.jit(jax.grad(mean, has_aux=True))(params["top_down"])

    gradients, logits = logits_and_gradients(k, late)
    of_whole, expected = logits_and_gradients(0, params)
    assert_close(logits, expected)
    of_whole = of_last({"top_down": of_whole}, k, SITES[backbone])["top_down"]
    assert set(gradients) == set(of_whole)
    for name, gradient in gradients.items():
        assert_close(gradient, of_whole[name], 1e-4)
    # Both differ from the network as it looks at first.
    silent = {**late, "top_down": {**late["top_down"], "prior": -100 * late["top_down"]["prior"]}}
    assert np.abs(apply(backbone, k, silent, inputs(backbone)) - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("backbone", "k"), SOME_SLOW)
def test_explained_intermediates_are_of_the_steered_blocks(backbone, k):
    params = of_last(parameters(backbone), k, SITES[backbone])
    logits, out = apply(backbone, k, params, inputs(backbone), call="explain")
    assert_close(logits, apply(backbone, k, params, inputs(backbone)))
    assert len(out["td"]) == k and len(out["look"]["hidden"]) == k + 1
    assert len(out["first_look"]["hidden"]) == SITES[backbone] + 1
    np.testing.assert_array_equal(out["look"]["hidden"][0], out["first_look"]["hidden"][-k - 1])


@pytest.mark.parametrize(("backbone", "k"), SOME_SLOW[1:])
def test_the_second_look_needs_only_what_is_cached(backbone, k):
    """Without the inputs, and with the gradients of the network that computes its first look itself."""
    params = of_last(parameters(backbone), k, SITES[backbone])
    features = apply(backbone, k, params, inputs(backbone), call="frozen_features")
    assert set(features) == {"tokens", "start"} | ({"fed_back"} if backbone == "convnext_t" else set())
    assert feature_cache.replaces_images(features)
    if backbone != "llama":  # whose features are never cached
        assert_close(apply(backbone, k, params, None, features=features), apply(backbone, k, params, inputs(backbone)))


@pytest.mark.parametrize("backbone", ["vit_ti8", pytest.param("convnext_t", marks=pytest.mark.slow)])
def test_paths_are_dropped_in_the_steered_blocks_of_each_look(backbone):
    params = of_last(parameters(backbone), 2, SITES[backbone])
    keys = jax.random.split(jax.random.key(0), B)
    _, out = apply(backbone, 2, params, inputs(backbone), keys, call="explain", drop_path=0.9)
    _, plain = apply(backbone, 2, params, inputs(backbone), call="explain", drop_path=0.9)
    for look in ("first_look", "look"):
        assert np.abs(np.asarray(out[look]["hidden"][-1]) - plain[look]["hidden"][-1]).max() > 1e-3


@pytest.mark.parametrize(("backbone", "k"), SOME_SLOW)
def test_pretuning_reconstructs_the_steered_blocks_alone(backbone, k):
    params = of_last(parameters(backbone), k, SITES[backbone])
    model, row = network(backbone, k)
    scores = losses.pretune(model, row, task_weight=0.0, variational_weight=1.0)
    batch = inputs(backbone) if backbone == "llama" else {"image": inputs(backbone)}
    losses_of_examples = jax.jit(scores)(params, {**batch, "label": np.zeros(B, np.int32)})["loss"]
    _, out = apply(backbone, k, params, inputs(backbone), call="explain")
    expected = model.top_down.apply({"params": params["top_down"]}, out["look"]["hidden"], method="variational_loss")
    assert_close(losses_of_examples, np.asarray(expected))
    gradients = jax.jit(jax.grad(lambda p: scores(p, {**batch, "label": np.zeros(B, np.int32)})["loss"].mean()))(params)
    tuned = {path for path, leaf in trees.flat(gradients).items() if np.abs(leaf).max() > 0}
    assert tuned == {path for path in trees.flat(params) if path.startswith("top_down/back")}


def test_generated_tokens_are_those_without_caches():
    """The second look's cache holds the steered blocks alone."""
    model, row = network("llama", 1)
    params = of_last(parameters("llama"), 1, SITES["llama"])
    assert {name: cache["k"].shape[0] for name, cache in model.caches(1, 8).items()} == {
        "first_look": SITES["llama"],
        "look": 1,
    }
    prompt, most = [3, 1, 4, 1, 5], 5
    tokens = list(prompt)
    for _ in range(most):
        padded = np.array([tokens + [0] * (16 - len(tokens))], np.int32)
        segments = np.where(np.arange(16) < len(tokens), 1, -1)[None].astype(np.int32)
        logits = apply("llama", 1, params, {"tokens": padded, "segments": segments})
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    for stored in (params, generation.unstacked(jax.tree.map(jnp.copy, params))):
        parts = generation.generate(model, row, stored, [prompt], most=most, sampling=generation.Sampling(), at_once=2)
        np.testing.assert_array_equal(np.concatenate(list(parts), axis=1)[0], tokens[len(prompt) :])
