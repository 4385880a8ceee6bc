"""Scale and shift: the same numbers as on the outputs of operations, and merged into plain weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fgvc
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.additions.ssf import ScaleAndShift, ScaledKernel
from toast_jax.model.families import of_config
from toast_jax.weights import rename

D, F, L = 6, 5, 2
ROW = ScaleAndShift(".*/(kernel|scale)")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "linear": {"kernel": draw(L, D, F), "bias": draw(L, F)},
    "keys": {"kernel": draw(L, D, F)},
    "conv": {"kernel": draw(3, 3, 1, D), "bias": draw(D)},
    "norm": {"scale": draw(D), "bias": draw(D)},
    "gamma": draw(D),
}
OWN = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=leaf.size), ROW.init(jax.random.key(0), PARAMS))


def test_every_operation_has_a_scale_and_those_with_a_bias_a_shift():
    shapes = {"linear": (L, F), "conv": (D,), "norm": (D,)}
    expected = {f"{name}/{kind}": shape for name, shape in shapes.items() for kind in ("scale", "shift")}
    assert trees.shapes(OWN) == expected | {"keys/scale": (L, F)}


def test_first_values_are_near_the_identity():
    own = ROW.init(jax.random.key(0), {"linear": {"kernel": np.empty((4, 1000)), "bias": np.empty(1000)}})["linear"]
    for kind, mean in (("scale", 1.0), ("shift", 0.0)):
        np.testing.assert_allclose((own[kind].mean(), own[kind].std()), (mean, 0.02), atol=2e-3)
    assert not np.array_equal(own["scale"] - 1, own["shift"])


def test_merged_parameters_scale_and_shift_the_outputs():
    merged, x = ROW.merge(PARAMS, OWN), draw(4, D)
    for layer in range(L):
        linear, own = ({name: leaf[layer] for name, leaf in tree["linear"].items()} for tree in (PARAMS, OWN))
        expected = (x @ linear["kernel"] + linear["bias"]) * own["scale"] + own["shift"]
        kernel, bias = (merged["linear"][name][layer] for name in ("kernel", "bias"))
        np.testing.assert_allclose(x @ kernel + bias, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged["conv"]["kernel"], PARAMS["conv"]["kernel"] * OWN["conv"]["scale"], rtol=1e-6)
    np.testing.assert_allclose(merged["norm"]["scale"], PARAMS["norm"]["scale"] * OWN["norm"]["scale"], rtol=1e-6)
    assert merged["gamma"] is PARAMS["gamma"]


def test_attached_parameters_are_the_merged_ones_in_value_and_gradient():
    x = draw(4, D)

    def outputs(how, own):
        params = how(PARAMS, own)
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], (params["linear"], params["keys"])) for i in range(L)]
        products = [x @ linear["kernel"] + linear["bias"] + x @ keys["kernel"] for linear, keys in layers]
        return sum(jnp.sin(y).sum() for y in (*products, *jax.tree.leaves((params["conv"], params["norm"]))))

    attached, merged = (jax.jit(jax.value_and_grad(functools.partial(outputs, how)))(OWN) for how in (ROW.attach, ROW.merge))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), attached, merged)


def test_no_step_computes_the_gradient_of_a_kernel():
    kernel, rows = draw(64, 32), draw(3, 64)
    gradient = jax.grad(lambda scale: jnp.sum(jnp.asarray(rows) @ ScaledKernel(kernel, scale)))
    jaxpr = jax.make_jaxpr(gradient)(draw(32))
    assert max(variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars) < kernel.size


def test_a_cast_keeps_the_digits_of_the_scale():
    kernel, scale = np.ones((2, 3), np.float32), np.array([1.001, 1.0, 0.999], np.float32)
    cast = ScaledKernel(kernel, scale).astype(jnp.bfloat16)
    assert (cast.kernel.dtype, cast.scale.dtype) == (jnp.bfloat16, np.float32)
    product = jnp.full((1, 2), 100, jnp.bfloat16) @ cast
    assert product.dtype == jnp.bfloat16


@pytest.mark.parametrize("backbone", ["vit_ti16_dinov3", "vit_g14_dinov2", "vit_ti16_siglip", "convnext_t"])
def test_every_kind_of_backbone_has_names_for_its_scales(backbone):
    """Module files and exports need them."""
    config = fgvc.get_config(f"method=ssf,backbone={backbone}")
    network, row = steered.build(config, 3)
    shapes = trees.shapes(jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0))["ssf"]))
    own = {f"ssf/{path}": np.zeros(shape, np.float32) for path, shape in shapes.items()}
    names = rename.to_torch(own, of_config(config))
    assert sum(array.size for array in names.values()) == sum(array.size for array in own.values())


def test_a_target_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match="The SSF target 'attn/query' matches no parameter"):
        ScaleAndShift("attn/query").init(jax.random.key(0), PARAMS)
