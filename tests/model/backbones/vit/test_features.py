"""Features of the published kinds of ViT: special tokens, rotary positions, pooling, and how each is steered and mapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.backbones.vit.test_network import PATCH, B, D, H, L, P, assert_close, draw_parameters, look
from toast_jax import trees
from toast_jax.analysis import maps
from toast_jax.config import backbone_names
from toast_jax.config.run_fields import base
from toast_jax.model import losses, methods, steered
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.backbones.vit.features import Features
from toast_jax.model.backbones.vit.kinds import KINDS
from toast_jax.model.backbones.vit.rotary import Rotary
from toast_jax.model.methods import METHODS
from toast_jax.model.top_down import TopDown
from toast_jax.weights import pretrained

ROWS, COLUMNS = 2, 3
DINOV3 = Features(registers=2, rotary=100.0, qkv_bias="qv", eps=1e-5, mlp="swiglu")
SIGLIP = Features(class_token=False, mlp="gelu_tanh")
NETWORKS = {"dinov3": {"features": DINOV3, "hidden": 8}, "siglip": {"features": SIGLIP, "pool": "attention"}}
SPECIAL = {"dinov3": 3, "siglip": 0}


def network(kind, **fields):
    sizes = {"width": D, "depth": L, "num_heads": H, "patch": PATCH, "grid": (ROWS, COLUMNS)}
    return vit.ViT(**sizes | NETWORKS[kind] | fields)


@functools.cache
def parameters(kind):
    return draw_parameters(network(kind))


def images(rows=ROWS, columns=COLUMNS):
    return np.random.default_rng(1).normal(size=(B, rows * PATCH, columns * PATCH, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=NETWORKS)
def steered_look(request):
    """Of every kind: its name, a top-down signal, and a look with it and with prompts that differ from block to block."""
    kind, rng = request.param, np.random.default_rng(2)
    prompts = rng.normal(size=(L, 1, P, D)).astype(np.float32)
    td = rng.normal(size=(L, B, SPECIAL[kind] + ROWS * COLUMNS + P, D)).astype(np.float32)
    return kind, td, prompts, look(network(kind), parameters(kind), images(), td, prompts)


def test_prompts_follow_the_class_token_or_come_first(steered_look):
    kind, _, prompts, (_, out) = steered_look
    first = int(NETWORKS[kind]["features"].class_token)
    np.testing.assert_array_equal(out["hidden"][:L, :, first : first + P], np.broadcast_to(prompts, (L, B, P, D)))


def test_pooled_is_the_pooled_output_of_a_full_look(steered_look):
    kind, td, prompts, (pooled, _) = steered_look
    assert_close(look(network(kind), parameters(kind), images(), td, prompts, method="pooled"), pooled)
    assert np.abs(pooled - pooled[0]).max() > 1e-2


def test_maps_leave_special_tokens_out(steered_look):
    kind, _, _, (_, out) = steered_look
    values = np.arange(out["tokens"].shape[1], dtype=np.float32)[None]
    on_grid = network(kind).on_grid(values)
    np.testing.assert_array_equal(on_grid.ravel(), np.arange(SPECIAL[kind] + P, values.shape[1]))
    attention = maps._attention(out)
    if kind == "siglip":  # the pooling's attention takes the place of the class token's
        np.testing.assert_allclose(out["reads"].sum(-1), 1.0, atol=1e-6)
        assert not np.asarray(out["reads"])[..., :P].any()
        np.testing.assert_array_equal(attention[-1, :, :, 0, 1:], out["reads"])
        assert attention.shape == (L + 1, B, H, 1 + values.shape[1], 1 + values.shape[1])
        # Nothing attends to the added token, which keeps half of its own share.
        share = maps.rollout(jnp.asarray(attention)[..., : 1 + values.shape[1]], grid=2)
        assert np.all(np.asarray(share).sum(axis=(1, 2)) < 0.5 + 1e-6)
    else:
        assert "reads" not in out and attention is out["attention"]


def test_every_token_takes_a_top_down_input(steered_look):
    """Registers too: what a block adds to the values of any token changes its output."""
    kind, td, prompts, (_, out) = steered_look
    for token in range(td.shape[2]):
        changed = td.copy()
        changed[-1, :, token] += 1.0
        _, other = look(network(kind), parameters(kind), images(), changed, prompts)
        assert np.abs(other["hidden"][-1] - out["hidden"][-1]).max() > 1e-3, token


def test_a_register_takes_a_top_down_input_as_far_as_it_is_selected():
    """As the class token: all of it where the prior has its direction, and none where the prior has the opposite one."""
    model = steered.Steered(network("dinov3"), top_down=TopDown(L, D))
    draw = functools.partial(np.random.default_rng(3).normal, 0.0, 0.3)
    module = {"prior": draw(size=D), "transform": draw(size=(D, D)), "back": draw(size=(L, D, D)), "out": draw(size=(L, D, D))}

    @jax.jit
    def look_twice(prior):
        params = {"backbone": parameters("dinov3"), "top_down": module | {"prior": prior}}
        return model.apply({"params": params}, images(), method="looks")[1]

    tokens = look_twice(module["prior"])["first_look"]["tokens"]
    for token in range(SPECIAL["dinov3"]):
        out = look_twice(tokens[0, token])
        assert_close(out["selection"][0, token], 1.0)
        assert np.abs(out["td"][:, 0, token]).max(axis=-1).min() > 1e-2
        out = look_twice(-tokens[0, token])
        assert not np.asarray(out["selection"])[0, token].any() and not np.asarray(out["td"])[:, 0, token].any()


def test_registers_have_no_position_and_no_place():
    params, special = parameters("dinov3"), SPECIAL["dinov3"]
    embedded = network("dinov3").apply({"params": params}, images(), method="_embed")
    for token, row in zip(range(special), [*params["cls_token"][0], *params["reg_token"][0]], strict=True):
        assert_close(embedded[:, token], np.broadcast_to(row, (B, D)))
    x = np.random.default_rng(0).normal(size=(1, special + 6, 1, 8)).astype(np.float32)
    turned = Rotary((2, 3), 8, 100.0)(x, special)
    np.testing.assert_array_equal(turned[:, :special], x[:, :special])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.abs(turned[:, special:] - x[:, special:]).min(axis=-1).max() > 1e-3
    np.testing.assert_array_equal(Rotary((2, 3), 8, 100.0)(x[:, :1], special), x[:, :1])  # queries of the class token alone


def test_rotary_positions_turn_by_the_distance_of_patches():
    """The product of a query and a key depends on how far their patches are apart, in rows and in columns."""
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=(1, 1, 1, 8)), (1, 20, 1, 8)).astype(np.float32) for _ in range(2))
    turn = Rotary((4, 5), 8, 100.0)
    products = np.einsum("bmhk,bnhk->mn", turn(q, 0), turn(k, 0)).reshape(4, 5, 4, 5)
    np.testing.assert_allclose(products[1, 2, 2, 4], products[0, 0, 1, 2], rtol=1e-4)
    np.testing.assert_allclose(products[3, 1, 3, 0], products[0, 4, 0, 3], rtol=1e-4)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 1e-3


def test_pixels_beyond_the_last_patch_are_ignored():
    padded = np.pad(images(), ((0, 0), (0, PATCH - 1), (0, 1), (0, 0)), constant_values=9.0)
    embed = functools.partial(network("siglip").apply, {"params": parameters("siglip")}, method="_embed")
    assert_close(embed(padded), embed(images()))


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        pytest.param(f"vit_s16_{tag}", method, marks=() if method == "toast" else pytest.mark.slow)
        for tag in ("reg4_dinov2", "dinov3", "siglip")
        for method in METHODS
    ],
)
def test_every_method_has_gradients(backbone, method):
    """Shapes alone."""
    config = base(name="", method=method, backbone=backbone)
    model, row = steered.build(config, 10)
    params = jax.eval_shape(lambda: steered.init(model, row, jax.random.key(0)))
    tuned, frozen = trees.split(params, methods.tuned_mask(params, row))
    images, label = jnp.zeros((2, 224, 224, 3), jnp.uint8), jnp.zeros(2, jnp.int32)

    def loss(tuned, frozen):
        return losses.tune(model, row)(trees.merge(tuned, frozen), {"image": images, "label": label})["loss"].mean()

    gradients = jax.eval_shape(jax.grad(loss), tuned, frozen)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, tuned)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Of the published files, less mask token, LayerScale and the positions that other images have.
        ("vit_s16_dinov3", 21_596_544 - 384 - 24 * 384),
        ("vit_b14_reg4_dinov2", 86_583_552 - 768 - 24 * 768 - (37**2 - 16**2) * 768),
        ("vit_b16_siglip", 92_884_224),
    ],
)
def test_number_of_parameters_by_name(name, count):
    config = base(name="", method="linear", backbone=name).backbone
    net = vit.build(config, 224, 1)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), net.example)["params"])
    assert trees.count(shapes) == count, trees.count(shapes)


def test_a_tag_of_a_name_gives_the_features_of_its_kind():
    for kind in KINDS:
        if kind.tag:
            fields = backbone_names.of_images(f"vit_b16_{kind.tag}_x")
            assert {f"backbone.{name}": value for name, value in kind.fields.items()}.items() <= fields.items()
    assert backbone_names.of_images("vit_b16_dinov31")["backbone.rotary"] == 0.0
    assert backbone_names.of_images("vit_hplus16_dinov3")["backbone.mlp"] == "swiglu"


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_resized_alike_for_other_images_and_from_files(antialias):
    """With antialias, PyTorch's kernel is another one."""
    model = network("dinov3", grid=(4, 4), features=Features(antialias=antialias))
    embed = np.random.default_rng(0).normal(size=(1, 17, D)).astype(np.float32)
    _, fitted = vit.of_side(model, {"pos_embed": embed}, (2 * PATCH, 3 * PATCH))
    expected = pretrained.resize_pos_embed(embed, 7, (2, 3), antialias)
    np.testing.assert_array_equal(fitted["pos_embed"], expected)
