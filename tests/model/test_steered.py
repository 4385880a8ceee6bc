"""The steered network: what it creates, what it computes, and where gradients stop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fgvc
from tests.conftest import METHODS, tiny_config
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.additions.probe import AttentionProbe
from toast_jax.model.additions.prompts import Prompts
from toast_jax.model.backbones.normalize import normalize
from toast_jax.model.backbones.vit.network import ViT
from toast_jax.model.families import FAMILIES
from toast_jax.model.top_down import TopDown

B, L, D, N, SIDE, CLASSES = 4, 3, 16, 5, 16, 3
# Those of the other rows are the one of linear.
NETWORKS = ("linear", "ep", "ssf", "adapter_plus", "vpt", "lora", "toast", "toast_lite", "toast_ep")
GROUPS = {
    "ep": {"probe"},
    "ssf": {"ssf"},
    "adapter_plus": {"adapter"},
    "vpt": {"prompts"},
    "lora": {"lora"},
    "toast": {"top_down"},
    "toast_lite": {"top_down", "lora"},
    "toast_ep": {"top_down", "probe"},
}


@functools.cache
def built(method, dropout=0.0):
    """A network, its row, and parameters that are all random: what starts at zero or one would hide mistakes."""
    config = tiny_config("", method)
    config.backbone.drop_path, config.prompts.dropout = (0.0, dropout) if method == "vpt" else (dropout, 0.0)
    network, row = steered.build(config, CLASSES)
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    rng = np.random.default_rng(0)
    around_one = ("scale", "running_var")
    draw = lambda path, leaf: rng.normal(float(path.endswith(around_one)), 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return network, row, trees.nested({path: draw(path, leaf) for path, leaf in trees.flat(shapes).items()})


@functools.partial(jax.jit, static_argnames=("method", "dropout", "call"))
def apply(method, params, images, rng=None, dropout=0.0, call=None):
    network, row, _ = built(method, dropout)
    return steered.apply(network, row, params, images, rng, call=call)


def images():
    return np.random.default_rng(1).integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8)


def keys():
    return jax.random.split(jax.random.key(0), B)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


QUICK = ("adapter_plus", "toast_lite")
SOME_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


@pytest.mark.parametrize("method", SOME_SLOW)
def test_explained_logits_are_the_logits(method):
    _, _, params = built(method)
    logits = apply(method, params, images())
    assert (logits.shape, logits.dtype) == ((B, CLASSES), jnp.float32)
    explained, out = apply(method, params, images(), call="explain")
    assert_close(explained, logits)
    assert set(out) == ({"first_look", "selection", "td", "look"} if "toast" in method else {"look"})


def test_explained_intermediates_lead_to_one_another():
    network, row, params = built("toast")
    logits, out = apply("toast", params, images(), call="explain")
    assert (out["selection"].shape, out["td"].shape) == ((B, N, 1), (L, B, N, D))
    floats = np.asarray(normalize(jnp.asarray(images())))
    look = jax.jit(lambda td: network.backbone.apply({"params": params["backbone"]}, floats, td))
    assert_close(look(None)[1]["tokens"], out["first_look"]["tokens"])
    pooled, second = look(out["td"])
    assert_close(second["tokens"], out["look"]["tokens"])
    assert_close(pooled @ params["head"]["kernel"] + params["head"]["bias"], logits)
    td, selection = network.top_down.apply({"params": params["top_down"]}, *[out["first_look"]["tokens"]] * 2)
    assert_close(td, out["td"])
    assert_close(selection, out["selection"])
    assert 0 < np.mean(out["selection"] > 0) < 1


def test_pixels_and_normalised_floats_give_the_same():
    _, _, params = built("toast")
    floats = (images() / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = apply("toast", params, images())
    assert_close(apply("toast", params, floats.astype(np.float32)), expected)
    assert_close(apply("toast", params, floats.astype(np.float32), call="explain")[0], expected)


@pytest.mark.parametrize("method", ["vpt", pytest.param("toast", marks=pytest.mark.slow)])
def test_dropout_of_prompts_and_paths_acts_with_keys_alone(method):
    _, _, params = built(method)
    plain = apply(method, params, images())
    assert_close(apply(method, params, images(), dropout=0.5), plain)
    dropped = apply(method, params, images(), keys(), dropout=0.5)
    assert np.abs(dropped - plain).max(axis=1).min() > 1e-3
    explained, _ = apply(method, params, images(), keys(), dropout=0.5, call="explain")
    assert_close(explained, dropped)


def test_two_looks_drop_different_paths():
    _, _, params = built("toast", 0.5)
    silent = {**params, "top_down": {**params["top_down"], "out": np.zeros((L, D, D), np.float32)}}
    flat = trees.flat(silent)
    silent = trees.nested({path: 0 * leaf if path.endswith("v/bias") else leaf for path, leaf in flat.items()})
    _, same = apply("toast", silent, images(), dropout=0.5, call="explain")
    assert_close(same["first_look"]["tokens"], same["look"]["tokens"])
    _, different = apply("toast", silent, images(), keys(), dropout=0.5, call="explain")
    assert np.abs(different["first_look"]["tokens"] - different["look"]["tokens"]).max() > 1e-2


def test_no_gradient_flows_through_the_first_look():
    network, row, params = built("toast")

    @jax.jit
    def gradients(params):
        def pull(params):
            logits, out = steered.apply(network, row, params, images(), call="explain")
            return logits.sum(), out["td"].sum()

        _, back = jax.vjp(pull, params)
        return jax.vmap(back)((jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))[0]

    both = gradients(params)
    through_logits, through_td = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(through_td["backbone"]))
    untouched = {path for path, leaf in trees.flat(through_logits).items() if not np.any(leaf)}
    assert all(path.endswith("attn/k/bias") for path in untouched)  # softmax cancels the bias of the keys
    assert {path for path, leaf in trees.flat(through_td).items() if np.any(leaf)} == {
        f"top_down/{name}" for name in ("prior", "transform", "back", "out")
    }


@pytest.mark.parametrize("method", METHODS)
def test_init_creates_the_groups_of_the_row(method):
    network, row, params = built(method)
    assert set(params) == {"backbone", "head"} | GROUPS.get(method, set())
    assert trees.shapes(params["head"]) == {"kernel": (D, CLASSES), "bias": (CLASSES,)}
    shapes = {
        "prompts": {"tokens": (L, 2, D)},
        "top_down": {"prior": (D,), "transform": (D, D), "back": (L, D, D), "out": (L, D, D)},
    }
    assert all(trees.shapes(params[name]) == shapes[name] for name in set(params) & set(shapes))


def test_head_starts_as_in_the_release():
    network, row = steered.build(tiny_config("", "linear"), 200)
    head = jax.jit(lambda: steered.init(network, row, jax.random.key(0))["head"])()
    np.testing.assert_allclose(head["bias"], -np.log(99.0), rtol=1e-6)
    np.testing.assert_allclose(head["kernel"].std(), np.sqrt(2 / 200), rtol=0.05)
    np.testing.assert_allclose(head["kernel"].mean(), 0.0, atol=5e-3)


def test_lora_of_a_row_is_scaled_by_alpha_over_rank():
    network, row, params = built("lora")
    assert (row.added.rank, row.added.alpha) == (4, 1.0)
    dense = {name: jax.tree.map(np.copy, tree) for name, tree in params.items() if name != "lora"}
    for part in ("blocks", "last_0"):
        attention, deltas = dense["backbone"][part]["attn"], params["lora"]["backbone"][part]["attn"]
        for name in "qkv":
            attention[name]["kernel"] += deltas["a"] @ deltas[name]["b"] / 4
    expected = apply("linear", dense, images())
    assert_close(apply("lora", params, images()), expected)
    without = {name: tree for name, tree in params.items() if name != "lora"}
    assert np.abs(apply("linear", without, images()) - expected).max() > 1e-2


def test_lora_of_toast_lite_is_toast_with_dense_feedback():
    _, _, params = built("toast_lite")
    top_down, deltas = dict(params["top_down"]), params["lora"]["top_down"]
    for name in ("back", "out"):
        top_down[name] = top_down[name] + deltas[name]["a"] @ deltas[name]["b"] / 4
    dense = {"backbone": params["backbone"], "head": params["head"], "top_down": top_down}
    assert_close(apply("toast_lite", params, images()), apply("toast", dense, images()))


@pytest.mark.parametrize("method", METHODS)
def test_config_builds_the_network_of_its_row(method):
    config = fgvc.get_config(f"method={method}")
    config.tuned_blocks, config.lora.rank, config.lora.alpha = 3, 8, 2.0
    config.prompts.update({"num": 7, "dropout": 0.1})
    config.probe.update({"reduction": 2, "tokens": "all"})
    network, row = steered.build(config, 200)
    expected = FAMILIES["vit"].methods[method]
    backbone = {"width": 768, "depth": 12, "num_heads": 12, "patch": 16, "grid": 14, "pool": "cls", "drop_path": 0.1}
    assert network == steered.Steered(
        ViT(**backbone, last_blocks=3 if method == "partial" else 1),
        steered.classifier(200),
        top_down=TopDown(12, 768) if expected.signal == "top_down" else None,
        prompts=Prompts(12, 7, 768, 16, 0.1) if expected.signal == "prompts" else None,
        probe=AttentionProbe(768, 32, 2, True) if expected.probe else None,
    )
    assert (row.tuned, row.frozen) == (expected.tuned, expected.frozen)
    assert row.added == (expected.added and expected.added.configured(config))


def test_config_asks_for_shallow_prompts_and_bfloat16():
    config = fgvc.get_config("method=vpt")
    config.prompts.deep = False
    assert steered.build(config, 5)[0].prompts.layers == 1
    config = fgvc.get_config("method=toast")
    config.backbone.dtype = "bfloat16"
    network, _ = steered.build(config, 5)
    assert network.backbone.dtype == network.top_down.dtype == jnp.bfloat16


def test_bfloat16_gives_float32_logits_close_to_those_of_float32():
    config = tiny_config("", "toast_lite")
    config.backbone.dtype = "bfloat16"
    network, row = steered.build(config, CLASSES)
    _, _, params = built("toast_lite")
    logits = jax.jit(functools.partial(steered.apply, network, row))(params, images())
    expected = apply("toast_lite", params, images())
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


def test_unknown_method_is_refused_with_the_nearest():
    config = fgvc.get_config("method=tost")
    with pytest.raises(InputError, match="config.method is 'tost'.*the nearest is 'toast'"):
        steered.build(config, 5)


def test_head_starts_at_zero_if_the_config_says_so():
    config = fgvc.get_config("method=linear")
    config.head.start = "zeros"
    network, row = steered.build(config, 50)
    head = jax.jit(lambda: steered.init(network, row, jax.random.key(0))["head"])()
    assert not np.any(head["kernel"]) and np.all(head["bias"] == head["bias"][0])
