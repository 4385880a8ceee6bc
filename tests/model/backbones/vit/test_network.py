"""Properties of the ViT: its outputs, its steering inputs, drop-path, and how it is built and compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import LOOPS_OF_USERS
from tests.model.backbones.expected import assert_close, layer_norm
from toast_jax import trees
from toast_jax.config.run_fields import base
from toast_jax.errors import InputError
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.layers.drop_path import drop_path
from toast_jax.model.layers.linear import Linear

B, D, L, H, PATCH, GRID, P = 4, 16, 3, 2, 8, 2, 3
N = 1 + GRID**2
SIDE = PATCH * GRID
INPUTS = ("none", "td", "shallow", "deep", "deep_td")


def network(**fields):
    return vit.ViT(**{"width": D, "depth": L, "num_heads": H, "patch": PATCH, "grid": GRID, **fields})


@functools.cache
def parameters():
    """Those of `network()`."""
    return draw_parameters(network())


def draw_parameters(net):
    """All of them random: what starts at zero or one would hide mistakes."""
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), net.example)["params"])
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: rng.normal(float(path.endswith("scale")), 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return trees.nested({path: draw(path, leaf) for path, leaf in trees.flat(shapes).items()})


def restacked(params, last_blocks):
    """The parameters of `network()` for `network(last_blocks=last_blocks)`."""
    rest = {name: tree for name, tree in params.items() if name not in ("blocks", "last_0")}
    blocks = [jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(L - 1)] + [params["last_0"]]
    stack, last = blocks[: L - last_blocks], blocks[L - last_blocks :]
    if stack:
        rest["blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *stack)
    return rest | {f"last_{i}": block for i, block in enumerate(last)}


def images(size=B):
    return np.random.default_rng(1).normal(size=(size, SIDE, SIDE, 3)).astype(np.float32)


def inputs(kind):
    """Arguments of a look: a top-down signal, prompts that differ from example to example, or both."""
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    prompts = {"shallow": draw(1, 1, P, D), "deep": draw(L, B, P, D)}.get(kind.removesuffix("_td"))
    td = draw(L, B, N + (0 if prompts is None else P), D) if kind.endswith("td") else None
    return {"td": td, "prompts": prompts}


@functools.partial(jax.jit, static_argnames=("net", "method"))
def look(net, params, images, td=None, prompts=None, rng=None, method="__call__"):
    return net.apply({"params": params}, images, td, prompts, rng, method=method)


def keys(size=B, seed=0):
    return jax.random.split(jax.random.key(seed), size)


@pytest.mark.parametrize("kind", INPUTS)
def test_shapes_and_consistency_of_what_a_look_returns(kind):
    given = inputs(kind)
    tokens = N + (0 if given["prompts"] is None else P)
    pooled, out = look(network(), parameters(), images(), **given)
    assert trees.shapes(out) == {
        "tokens": (B, tokens, D),
        "fed_back": (B, tokens, D),
        "hidden": (L + 1, B, tokens, D),
        "attention": (L, B, H, tokens, tokens),
    }
    assert pooled.shape == (B, D)
    assert_close(out["tokens"], layer_norm(out["hidden"][-1], parameters()["norm"]))
    np.testing.assert_array_equal(pooled, out["tokens"][:, 0])
    np.testing.assert_array_equal(out["fed_back"], out["tokens"])
    np.testing.assert_allclose(out["attention"].sum(-1), 1.0, atol=1e-6)
    assert np.all(out["attention"] > 0)


def test_hidden_starts_with_the_embeddings():
    params, pixels = parameters(), images()
    _, out = look(network(), params, pixels)
    for row in range(GRID):
        for column in range(GRID):
            patch = pixels[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
            token = 1 + row * GRID + column
            embedded = patch.reshape(B, -1) @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
            assert_close(out["hidden"][0, :, token], embedded + params["pos_embed"][0, token])
    cls = params["cls_token"][0, 0] + params["pos_embed"][0, 0]
    assert_close(out["hidden"][0, :, 0], np.broadcast_to(cls, (B, D)))


@pytest.mark.parametrize(("kind", "pool"), [*((kind, "cls") for kind in INPUTS), ("none", "mean"), ("deep_td", "mean")])
def test_pooled_is_the_pooled_output_of_a_full_look(kind, pool):
    net, given = network(pool=pool), inputs(kind)
    pooled, out = look(network(), parameters(), images(), **given)
    if pool == "mean":  # of the patches, without class token and prompts
        pooled = out["tokens"][:, -(GRID**2) :].mean(1)
        assert_close(look(net, parameters(), images(), **given)[0], pooled)
    assert_close(look(net, parameters(), images(), **given, method="pooled"), pooled)


@pytest.mark.parametrize("last_blocks", [2, L])
def test_last_blocks_do_not_change_the_result(last_blocks):
    given = inputs("deep_td") | {"rng": keys()}
    one, many = network(drop_path=0.4), network(drop_path=0.4, last_blocks=last_blocks)
    params = restacked(parameters(), last_blocks)
    expected = look(one, parameters(), images(), **given)
    assert_close(look(many, params, images(), **given), expected)
    assert_close(look(many, params, images(), **given, method="pooled"), expected[0])


def test_deep_prompts_are_replaced_before_every_block():
    prompts = inputs("deep")["prompts"]
    _, out = look(network(), parameters(), images(), prompts=prompts)
    np.testing.assert_array_equal(out["hidden"][:L, :, 1 : 1 + P], prompts)


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_prompts_are_inserted_after_the_class_token(kind):
    prompts = inputs(kind)["prompts"]
    _, plain = look(network(), parameters(), images())
    _, out = look(network(), parameters(), images(), prompts=prompts)
    np.testing.assert_array_equal(np.delete(out["hidden"][0], range(1, 1 + P), axis=1), plain["hidden"][0])
    np.testing.assert_array_equal(out["hidden"][0, :, 1 : 1 + P], np.broadcast_to(prompts[0], (B, P, D)))


def test_shallow_prompts_flow_through_the_blocks():
    shallow, deep = inputs("shallow")["prompts"], inputs("deep")["prompts"]
    _, once = look(network(), parameters(), images(), prompts=shallow)
    assert all(np.abs(once["hidden"][i, :, 1 : 1 + P] - shallow[0]).min(axis=(1, 2)).max() > 0 for i in range(1, L))
    _, replaced = look(network(), parameters(), images(), prompts=np.concatenate([shallow.repeat(B, 1), deep[1:]]))
    assert_close(np.delete(replaced["hidden"][1], range(1, 1 + P), 1), np.delete(once["hidden"][1], range(1, 1 + P), 1))
    assert np.abs(replaced["tokens"][:, 0] - once["tokens"][:, 0]).max() > 1e-2


def with_value_bias(params, factor):
    flat = trees.flat(params)
    return trees.nested({path: leaf * factor if path.endswith("attn/v/bias") else leaf for path, leaf in flat.items()})


@pytest.mark.parametrize("factor", [0, 1])
def test_a_top_down_signal_of_zero_adds_the_value_bias_once(factor):
    once, twice = with_value_bias(parameters(), factor), with_value_bias(parameters(), 2 * factor)
    steered = look(network(), once, images(), td=np.zeros((L, B, N, D), np.float32))
    assert_close(steered, look(network(), twice, images()), 1e-6)
    difference = np.abs(steered[0] - look(network(), once, images())[0]).max()
    assert difference > 1e-2 if factor else difference < 1e-5


def test_top_down_signal_reaches_values_alone():
    td = inputs("td")["td"]
    td[1:] = 0.0
    _, steered = look(network(), parameters(), images(), td=td)
    _, unsteered = look(network(), parameters(), images(), td=np.zeros_like(td))
    assert_close(steered["attention"][0], unsteered["attention"][0], 1e-6)
    assert np.abs(steered["hidden"][1] - unsteered["hidden"][1]).min() > 0


def test_top_down_signal_of_a_block_enters_at_that_block():
    zeros = np.zeros((L, B, N, D), np.float32)
    _, unsteered = look(network(), parameters(), images(), td=zeros)
    for block in range(L):
        td = np.where(np.arange(L)[:, None, None, None] == block, inputs("td")["td"], zeros)
        _, steered = look(network(), parameters(), images(), td=td)
        changed = np.abs(steered["hidden"] - unsteered["hidden"]).max(axis=(1, 2, 3))
        assert not changed[: block + 1].any() and changed[block + 1 :].all()


def test_drop_path_drops_whole_branches_and_keeps_the_expectation():
    rate, size = 0.3, 4000
    out = np.asarray(drop_path(jnp.ones((size, 2, 3)), keys(size), rate))
    kept = out[:, 0, 0] > 0
    np.testing.assert_allclose(out, np.broadcast_to(kept[:, None, None] / (1 - rate), out.shape), rtol=1e-6)
    assert abs(out.mean() - 1.0) < 4 * np.sqrt(rate / (1 - rate) / size)


def test_drop_path_of_rate_zero_or_without_keys_does_nothing():
    x = jnp.asarray(images())[..., 0]
    np.testing.assert_array_equal(drop_path(x, keys(), 0.0), x)
    np.testing.assert_array_equal(drop_path(x, None, 0.9), x)
    plain = look(network(), parameters(), images())
    assert_close(look(network(drop_path=0.0), parameters(), images(), rng=keys()), plain, 1e-6)
    assert_close(look(network(drop_path=0.9), parameters(), images()), plain, 1e-6)


def test_drop_path_of_an_example_depends_on_its_own_key():
    net, params, rng = network(drop_path=0.5), parameters(), keys()
    whole, _ = look(net, params, images(), rng=rng)
    order = np.array([2, 0, 3, 1])
    assert_close(look(net, params, images()[order], rng=rng[order])[0], whole[order])
    halves = [look(net, params, images()[part], rng=rng[part])[0] for part in (slice(0, 2), slice(2, 4))]
    assert_close(np.concatenate(halves), whole)
    same_image, _ = look(net, params, images()[:1].repeat(B, 0), rng=rng)
    assert np.abs(same_image - same_image[0]).max() > 1e-2


@pytest.mark.parametrize("last_blocks", [1, 2])
def test_drop_path_rates_grow_linearly_and_branches_are_dropped_on_their_own(last_blocks):
    size, highest = 256, 0.6
    flat = {path: leaf.copy() for path, leaf in trees.flat(parameters()).items()}
    for path, leaf in flat.items():  # attention adds 1 to the first number of every token, the MLP to the second
        if "attn/proj" in path or "mlp/fc2" in path:
            leaf[:] = 0.0
        if path.endswith("bias") and "attn/proj" in path:
            leaf[..., 0] = 1.0
        if path.endswith("bias") and "mlp/fc2" in path:
            leaf[..., 1] = 1.0
    net = network(drop_path=highest, last_blocks=last_blocks)
    _, out = look(net, restacked(trees.nested(flat), last_blocks), images(1).repeat(size, 0), rng=keys(size))
    added = np.diff(out["hidden"][:, :, 0, :2], axis=0)  # block, example, branch
    for block, rate in enumerate(np.linspace(0.0, highest, L)):
        kept = added[block] > 0.5
        np.testing.assert_allclose(added[block], kept / (1 - rate), atol=1e-4)
        assert np.all(np.abs(kept.mean(0) - (1 - rate)) <= 4 * np.sqrt(rate * (1 - rate) / size))
        both = kept.all(1).mean()
        assert abs(both - (1 - rate) ** 2) <= 4 * np.sqrt(both * (1 - both) / size)
    dropped = ~(added > 0.5).reshape(L, -1)
    assert np.any(dropped[1] & ~dropped[2])  # with the same random numbers, the lower rate would drop a subset


def test_remat_changes_neither_outputs_nor_gradients(monkeypatch):
    def gradients(net):
        def loss(params, td):
            return jnp.sum(net.apply({"params": params}, images(), td, method="pooled") ** 2)

        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(parameters(), td)
        return lowered.compile(LOOPS_OF_USERS)(parameters(), td), lowered.as_text().count("stablehlo.dot_general")

    td = inputs("td")["td"]
    little, products = gradients(network())
    nothing, twice = gradients(network(remat=True))
    monkeypatch.setattr(vit, "remat", lambda block, **_: block)
    everything, fewest = gradients(network())
    assert_close(little, everything, 1e-5)
    assert_close(nothing, everything, 1e-4)
    # The scanned block and the last one have the products of attention a second time, or all but the last of the MLP.
    assert products - fewest == 2 * 2
    assert twice - fewest == 2 * 7


@pytest.mark.parametrize("k", (0, 2))
def test_unrolled_blocks_compute_the_same(k):
    """From the first block, and from a later one."""

    def looked(net):
        td = inputs("td")["td"]
        start, td = (td[0], td[-k:]) if k else (None, td)
        return jax.jit(lambda params: net.apply({"params": params}, images(), td, start=start, method="pooled"))(parameters())

    assert_close(looked(network(unroll=True)), looked(network()), 1e-6)


def test_unrolled_blocks_are_recomputed_if_remat_is_set():
    """A barrier for each block keeps the compiler from undoing it, as it could without a loop."""

    def barriers(**fields):
        loss = jax.grad(lambda params: jnp.sum(network(**fields).apply({"params": params}, images(), method="pooled") ** 2))
        return jax.jit(loss).lower(parameters()).as_text().count("stablehlo.optimization_barrier")

    last = barriers()
    assert last > 0 and barriers(unroll=True) == last
    # The two blocks of the stack share a function (jax 0.10) or have one each (jax 0.12).
    assert barriers(unroll=True, remat=True) - last in (1, 2)


def test_remat_explains_as_well():
    given = inputs("td")
    assert_close(look(network(remat=True), parameters(), images(), **given), look(network(), parameters(), images(), **given))


def test_bfloat16_computes_in_bfloat16_on_float32_parameters():
    net, given = network(dtype=jnp.bfloat16), inputs("deep_td")
    created = jax.eval_shape(lambda: net.init(jax.random.key(0), images()))
    assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    (pooled, out), (expected, full) = (look(n, parameters(), images(), **given) for n in (net, network()))
    assert (pooled.dtype, out["hidden"].dtype, out["attention"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert_close(pooled, expected, 0.05)
    assert_close(out["attention"], full["attention"], 0.05)
    assert np.abs(pooled.astype(jnp.float32) - expected).max() > 1e-4
    np.testing.assert_allclose(out["attention"].sum(-1), 1.0, atol=1e-6)  # bfloat16 would miss by 1e-3


def test_linear_adds_its_bias_as_often_as_told():
    layer = Linear(3)
    params = {"kernel": np.ones((2, 3), np.float32), "bias": np.arange(3, dtype=np.float32)}
    np.testing.assert_array_equal(layer.apply({"params": params}, jnp.ones(2), bias_scale=2.0), [2.0, 4.0, 6.0])
    np.testing.assert_array_equal(layer.apply({"params": params}, jnp.ones(2)), [2.0, 3.0, 4.0])
    assert list(jax.eval_shape(Linear(3, use_bias=False).init, jax.random.key(0), jnp.ones(2))["params"]) == ["kernel"]


@pytest.mark.parametrize("shape", [(SIDE + PATCH, SIDE + PATCH, 3), (SIDE, SIDE, 1), (SIDE, SIDE // 2, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"images are .*takes \(16, 16, 3\)"):
        jax.eval_shape(functools.partial(network().init, jax.random.key(0)), jnp.zeros((1, *shape)))


@pytest.mark.parametrize("kind", ["none", "deep_td"])
def test_program_does_not_grow_with_depth(kind):
    def equations(depth):
        net = network(depth=depth, drop_path=0.1)
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), images()))["params"]
        given = {name: value if value is None else np.zeros((depth, *value.shape[1:])) for name, value in inputs(kind).items()}
        loss = lambda params: net.apply({"params": params}, images(), **given, rng=keys())[0].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(" = ")

    assert equations(4) == equations(12) > 100


# Parameters of timm's and torchvision's networks of these names at 224 pixels, less their heads of 1000 classes.
PUBLISHED = {
    "ti16": 5_717_416 - 1000 * 193,
    "s16": 22_050_664 - 1000 * 385,
    "s32": 22_878_952 - 1000 * 385,
    "b16": 86_567_656 - 1000 * 769,
    "b32": 88_224_232 - 1000 * 769,
    "l16": 304_326_632 - 1000 * 1025,
    "l32": 306_535_400 - 1000 * 1025,
    "h14": 632_045_800 - 1000 * 1281,
}


def build(change=None, *, backbone="vit_b16", image_size=224, last_blocks=1):
    config = base(name="", method="linear", backbone=backbone).backbone
    config.update(change or {})
    return vit.build(config, image_size, last_blocks)


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_the_published_one(name):
    params = jax.eval_shape(lambda: build(backbone=f"vit_{name}").init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    assert trees.count(params) == PUBLISHED[name]


def test_build_passes_every_field_on():
    change = {"pool": "mean", "drop_path": 0.2, "dtype": "bfloat16", "remat": True}
    built = build(change, backbone="vit_l32", image_size=384, last_blocks=24)
    fields = {"width": 1024, "depth": 24, "num_heads": 16, "patch": 32, "grid": 12, "last_blocks": 24}
    assert built == vit.ViT(**fields, pool="mean", drop_path=0.2, dtype=jnp.bfloat16, remat=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "XL"}, r"config.backbone.size is 'XL'; it must be one of Mini, Nano, Ti, S, B, L, H"),
        ({"pool": "max"}, "config.backbone.pool is 'max'; it must be one of cls, mean"),
        ({"dtype": "bf16"}, "config.backbone.dtype is 'bf16'.*the nearest is 'bfloat16'"),
    ],
)
def test_build_refuses_what_it_cannot_build(change, message):
    with pytest.raises(InputError, match=message):
        build(change)


def test_prompts_for_some_of_the_blocks_are_refused():
    with pytest.raises(ValueError, match=f"prompts are for 2 blocks; give them for 1 or for all {L}"):
        look(network(), parameters(), images(), prompts=np.zeros((2, 1, P, D), np.float32))
