"""Properties of the ConvNeXt: its outputs, its steering input, drop-path, and how it is built and compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.backbones.expected import assert_close, layer_norm
from toast_jax import trees
from toast_jax.config.run_fields import base
from toast_jax.errors import InputError
from toast_jax.model.backbones.convnext import network as convnext

B, SIDE = 4, 32
DEPTHS, WIDTHS = (1, 1, 2, 2), (4, 6, 8, 10)
SITES = ((SIDE, 3), (8, 4), (4, 6), (2, 8))  # side and channels of the input of every stage


def network(**fields):
    return convnext.ConvNeXt(**{"depths": DEPTHS, "widths": WIDTHS, **fields})


@functools.cache
def parameters():
    """Those of `network()`, all of them random: what starts at zero or one would hide mistakes."""
    shapes = jax.eval_shape(lambda: network().init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"])
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: rng.normal(float(path.endswith(("scale", "gamma"))), 0.3, leaf.shape)  # noqa: E731
    return trees.nested({path: draw(path, leaf).astype(np.float32) for path, leaf in trees.flat(shapes).items()})


def images(size=B):
    return np.random.default_rng(1).normal(size=(size, SIDE, SIDE, 3)).astype(np.float32)


def signal():
    rng = np.random.default_rng(2)
    return tuple(rng.normal(size=(B, side, side, channels)).astype(np.float32) for side, channels in SITES)


@functools.partial(jax.jit, static_argnames=("net", "method"))
def look(net, params, images, td=None, rng=None, method="__call__"):
    return net.apply({"params": params}, images, td, rng, method=method)


def keys(size=B):
    return jax.random.split(jax.random.key(0), size)


def test_shapes_and_consistency_of_what_a_look_returns():
    params = parameters()
    pooled, out = look(network(), params, images(), signal())
    assert [map_.shape for map_ in out["hidden"]] == [*((B, side, side, c) for side, c in SITES), (B, 1, 1, WIDTHS[-1])]
    np.testing.assert_array_equal(out["hidden"][0], images())
    np.testing.assert_array_equal(out["fed_back"], out["hidden"][-1])
    assert_close(out["tokens"], layer_norm(out["fed_back"], params["norm"]))
    assert_close(look(network(), params, images(), signal(), method="pooled"), pooled)


def test_pooling_comes_before_the_last_norm():
    wide = np.concatenate([images(), images()[::-1]], axis=2)  # a map of two places
    pooled, out = look(network(), parameters(), wide)
    assert out["fed_back"].shape == (B, 1, 2, WIDTHS[-1])
    assert_close(pooled, layer_norm(out["fed_back"].mean(axis=(1, 2)), parameters()["norm"]))
    assert np.abs(pooled - out["tokens"].mean(axis=(1, 2))).max() > 1e-2


def test_top_down_signal_of_a_stage_is_added_to_its_input():
    params, zeros = parameters(), tuple(np.zeros_like(one) for one in signal())
    _, plain = look(network(), params, images())
    _, unsteered = look(network(), params, images(), zeros)
    assert_close(unsteered, plain, 1e-6)
    for stage in range(4):
        td = tuple(one if i == stage else zeros[i] for i, one in enumerate(signal()))
        _, steered = look(network(), params, images(), td)
        changed = [np.abs(a - b).max() > 1e-3 for a, b in zip(steered["hidden"], plain["hidden"], strict=True)]
        assert changed == [i > stage for i in range(5)]  # what the stage gets is told without its signal
    _, brighter = look(network(), params, images() + signal()[0])
    _, steered = look(network(), params, images(), (signal()[0], *zeros[1:]))
    assert_close(steered["hidden"][1:], brighter["hidden"][1:])


@pytest.mark.slow
def test_last_blocks_do_not_change_the_result():
    params, rng = dict(parameters()), keys()
    expected = look(network(drop_path=0.4), params, images(), signal(), rng)
    last = dict(params["stages_3"])
    blocks = last.pop("blocks")
    last |= {"last_0": jax.tree.map(lambda a: a[0], blocks), "last_1": last.pop("last_0")}
    ours = look(network(drop_path=0.4, last_blocks=2), params | {"stages_3": last}, images(), signal(), rng)
    assert_close(ours, expected)


def test_drop_path_of_an_example_depends_on_its_own_key():
    net, params, rng = network(drop_path=0.5), parameters(), keys()
    whole, _ = look(net, params, images(), rng=rng)
    order = np.array([2, 0, 3, 1])
    assert_close(look(net, params, images()[order], rng=rng[order])[0], whole[order])
    plain, _ = look(network(), params, images())
    assert_close(look(net, params, images())[0], plain, 1e-6)
    assert np.abs(whole - plain).max() > 1e-2


def test_drop_path_rates_grow_linearly_over_all_stages():
    size, highest = 256, 0.6
    flat = {path: np.zeros_like(leaf) for path, leaf in trees.flat(parameters()).items()}
    for path, leaf in flat.items():  # every stage starts with zeros, and every block adds 1
        if path.endswith(("pwconv2/bias", "gamma")):
            leaf[:] = 1.0
    _, out = look(network(drop_path=highest), trees.nested(flat), images(1).repeat(size, 0), rng=keys(size))
    rates = np.linspace(0.0, highest, sum(DEPTHS))
    stages = np.split(rates, np.cumsum(DEPTHS)[:-1])
    for added, rates in zip(out["hidden"][1:], stages, strict=True):
        values = np.asarray(added)[:, 0, 0, 0]
        np.testing.assert_array_equal(added, np.broadcast_to(values[:, None, None, None], added.shape))
        possible = np.array([0.0])
        for rate in rates:
            possible = np.concatenate([possible, possible + 1 / (1 - rate)]) if rate else possible + 1
        assert np.abs(values[:, None] - possible).min(axis=1).max() < 1e-5
        assert len({int(np.abs(value - possible).argmin()) for value in values}) == len(possible)
        deviation = np.sqrt(sum(rate / (1 - rate) for rate in rates) / size)
        assert abs(values.mean() - len(rates)) <= 4 * deviation


def remat_loss(net):
    return lambda params, td: jnp.sum(net.apply({"params": params}, images(), td, method="pooled") ** 2)


@pytest.mark.slow
def test_remat_changes_neither_outputs_nor_gradients(monkeypatch):
    def gradients(net):
        traced = jax.jit(jax.value_and_grad(remat_loss(net), argnums=(0, 1))).trace(parameters(), signal())
        return traced.lower().compile()(parameters(), signal()), str(traced.jaxpr).count("dot_general")

    little, products = gradients(network())
    nothing, twice = gradients(network(remat=True))
    monkeypatch.setattr(convnext, "remat", lambda block, **_: block)
    everything, fewest = gradients(network())
    assert_close(little, everything, 1e-5)
    assert_close(nothing, everything, 1e-4)
    assert products == fewest
    assert twice - fewest == 2 * 5  # those of the MLP, in the scanned block of each stage and in the last one


def test_bfloat16_computes_in_bfloat16_on_float32_parameters():
    net = network(dtype=jnp.bfloat16)
    created = jax.eval_shape(lambda: net.init(jax.random.key(0), images()))
    assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    (pooled, out), (expected, _) = (look(n, parameters(), images(), signal()) for n in (net, network()))
    assert (pooled.dtype, out["fed_back"].dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert_close(pooled, expected, 0.06)
    assert np.abs(pooled.astype(jnp.float32) - expected).max() > 1e-4


def test_program_does_not_grow_with_depth():
    def equations(depths):
        net = network(depths=depths, drop_path=0.1)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), images()))["params"]
        loss = lambda params: net.apply({"params": params}, images(), signal(), keys())[0].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(" = ")

    assert equations((2, 2, 3, 3)) == equations((3, 4, 27, 5)) > 100


@pytest.mark.parametrize("shape", [(SIDE + 16, SIDE, 3), (SIDE, SIDE + 1, 3), (SIDE, SIDE, 1), (0, SIDE, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="a ConvNeXt takes .S, S, 3., S a multiple of 32"):
        jax.eval_shape(functools.partial(network().init, jax.random.key(0)), jnp.zeros((1, *shape)))


# Parameters of torchvision's networks of these names, the largest of timm's, less their heads of 1000 classes.
PUBLISHED = {
    "t": 28_589_128 - 1000 * 769,
    "s": 50_223_688 - 1000 * 769,
    "b": 88_591_464 - 1000 * 1025,
    "l": 197_767_336 - 1000 * 1537,
    "xl": 350_196_968 - 1000 * 2049,
}


def build(change=None, *, backbone="convnext_b", last_blocks=1):
    config = base(name="", method="linear", backbone=backbone).backbone
    config.update(change or {})
    return convnext.build(config, last_blocks)


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    net = build(backbone=f"convnext_{name}")
    assert trees.count(jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))) == PUBLISHED[name]


def test_build_passes_every_field_on():
    change = {"drop_path": 0.2, "dtype": "bfloat16", "remat": True}
    built = build(change, backbone="convnext_l_in1k", last_blocks=3)
    fields = {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536), "last_blocks": 3}
    assert built == convnext.ConvNeXt(**fields, drop_path=0.2, dtype=jnp.bfloat16, remat=True)
    assert build().drop_path == 0.0  # as in the release


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "H"}, r"config.backbone.size is 'H'; it must be one of T, S, B, L"),
        ({"dtype": "bf16"}, "config.backbone.dtype is 'bf16'.*the nearest is 'bfloat16'"),
    ],
)
def test_build_refuses_what_it_cannot_build(change, message):
    with pytest.raises(InputError, match=message):
        build(change)
