"""Low-rank deltas: the same numbers as dense matrices, on the kernels that a row names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import methods
from toast_jax.model.additions import lora
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.layers.linear import Linear

D, F, R, L = 6, 5, 2, 3
ROW = lora.LowRankDeltas(vit.LORA_KERNELS, R)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(width=D):
    """Attention kernels in a stack of two blocks and in one block alone, and what stands around them."""

    def block(*layers):
        attention = {name: {"kernel": draw(*layers, width, width), "bias": draw(*layers, width)} for name in "qkv"}
        return {"attn": {**attention, "proj": {"kernel": draw(*layers, width, width)}}}

    return {"backbone": {"blocks": block(2), "last_0": block()}, "head": {"kernel": draw(width, 3)}}


def value_and_grad(multiply, *arguments):
    loss = lambda *arguments: jnp.sum(jnp.sin(multiply(*arguments)))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, argnums=range(len(arguments))))(*arguments)


def assert_close(ours, theirs):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)


def attached(kernel, a, b, scale=0.25):
    params, deltas = {"linear": {"kernel": kernel}}, {"linear": {"a": a, "b": b}}
    return lora.LowRankDeltas("linear/kernel", R, scale * R).attach(params, deltas)["linear"]["kernel"]


def test_low_rank_is_the_dense_matrix_in_value_and_gradients():
    arguments = draw(4, D), draw(D, F, seed=1), draw(D, R, seed=2), draw(R, F, seed=3)
    low_rank = lambda x, kernel, a, b: x @ attached(kernel, a, b)  # noqa: E731
    dense = lambda x, kernel, a, b: x @ (kernel + 0.25 * (a @ b))  # noqa: E731
    assert_close(value_and_grad(low_rank, *arguments), value_and_grad(dense, *arguments))


def test_low_rank_works_inside_scan_and_vmap():
    arguments = draw(4, D), draw(L, D, D, seed=1), draw(L, D, R, seed=2), draw(L, R, D, seed=3)
    through = lambda x, kernel: jax.lax.scan(lambda x, kernel: (x @ kernel,) * 2, x, kernel)[1]  # noqa: E731
    each = lambda x, kernel: jax.vmap(lambda kernel: x @ kernel)(kernel)  # noqa: E731
    for multiply in (through, each):
        low_rank = lambda x, kernel, a, b: multiply(x, attached(kernel, a, b))  # noqa: B023, E731
        dense = lambda x, kernel, a, b: multiply(x, kernel + 0.25 * (a @ b))  # noqa: B023, E731
        assert_close(value_and_grad(low_rank, *arguments), value_and_grad(dense, *arguments))


def test_low_rank_never_forms_the_matrix():
    rows, width = 3, 64
    jaxpr = jax.make_jaxpr(lambda x, low_rank: x @ low_rank)(
        draw(rows, width), attached(draw(width, width), draw(width, R), draw(R, width))
    )
    assert max(variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars) == rows * width


def test_linear_takes_a_low_rank_kernel():
    kernel, a, b, x = draw(D, F), draw(D, R, seed=1), draw(R, F, seed=2), draw(4, D, seed=3)
    apply = lambda kernel: Linear(F).apply({"params": {"kernel": kernel, "bias": np.ones(F)}}, jnp.asarray(x))  # noqa: E731
    assert_close(apply(attached(kernel, a, b)), apply(kernel + 0.25 * a @ b))


def test_astype_casts_all_three_matrices():
    cast = attached(draw(D, F), draw(D, R), draw(R, F)).astype(jnp.bfloat16)
    assert isinstance(cast, lora.LowRank)
    assert [leaf.dtype for leaf in jax.tree.leaves(cast)] == [jnp.bfloat16] * 3
    assert (jnp.ones((1, D), jnp.bfloat16) @ cast).dtype == jnp.bfloat16


def test_attach_touches_the_targets_alone():
    params = parameters()
    deltas = jax.tree.map(jnp.ones_like, ROW.init(jax.random.key(0), params))
    flat, before = trees.flat(dataclasses.replace(ROW, alpha=2.0 * R).attach(params, deltas)), trees.flat(params)
    assert list(flat) == list(before)
    low_rank = {path for path, leaf in flat.items() if isinstance(leaf, lora.LowRank)}
    assert low_rank == {f"backbone/{part}/attn/{name}/kernel" for part in ("blocks", "last_0") for name in "qkv"}
    for path, leaf in flat.items():
        if path in low_rank:
            np.testing.assert_array_equal(leaf.b, np.full_like(leaf.b, 2.0))
            np.testing.assert_array_equal(leaf.a, np.ones_like(leaf.a))
        assert (leaf.kernel if path in low_rank else leaf) is before[path]


def test_first_deltas_change_nothing():
    params = parameters()
    deltas = ROW.init(jax.random.key(0), params)
    assert all(not np.any(leaf) for path, leaf in trees.flat(deltas).items() if path.endswith("b"))
    kernel = ROW.attach(params, deltas)["backbone"]["last_0"]["attn"]["q"]["kernel"]
    x = jnp.asarray(draw(4, D))
    np.testing.assert_array_equal(x @ kernel, x @ kernel.kernel)


def test_kernels_of_one_input_share_one_a():
    deltas = ROW.init(jax.random.key(0), parameters())
    shared = {"backbone/blocks/attn/a": (2, D, R), "backbone/last_0/attn/a": (D, R)}
    own = {f"backbone/blocks/attn/{name}/b": (2, R, D) for name in "qkv"}
    own |= {f"backbone/last_0/attn/{name}/b": (R, D) for name in "qkv"}
    assert trees.shapes(deltas) == shared | own
    attention = ROW.attach(parameters(), deltas)["backbone"]["blocks"]["attn"]
    assert attention["q"]["kernel"].a is attention["k"]["kernel"].a is attention["v"]["kernel"].a


def test_kernels_of_a_target_without_a_shared_group_have_deltas_of_their_own():
    params = {"top_down": {"back": draw(L, D, D), "out": draw(L, D, D), "transform": draw(D, D)}}
    deltas = lora.LowRankDeltas(methods.FEEDBACK, R).init(jax.random.key(0), params)
    sides = {f"top_down/{name}/{side}" for name in ("back", "out") for side in "ab"}
    assert trees.shapes(deltas) == {path: (L, D, R) if path.endswith("a") else (L, R, D) for path in sides}
    drawn = [*deltas["top_down"]["back"]["a"], *deltas["top_down"]["out"]["a"]]
    assert len({float(a[0, 0]) for a in drawn}) == 2 * L


def test_first_a_is_uniform_as_in_the_release():
    width = 400
    a = lora.LowRankDeltas("kernel", 40).init(jax.random.key(0), {"kernel": np.empty((2, width, 8))})["kernel"]["a"]
    bound = width**-0.5
    assert 0.99 * bound < np.abs(a).max() <= bound
    np.testing.assert_allclose(a.std(axis=(1, 2)), bound / np.sqrt(3), rtol=0.03)


@pytest.mark.parametrize("target", ["backbone/blocks/attn/query/kernel", "attn/q/kernel", "backbone/last_0/attn/q"])
def test_a_target_that_matches_nothing_is_refused(target):
    with pytest.raises(InputError, match=f"The LoRA target '{target}' matches no parameter"):
        lora.LowRankDeltas(target, R).init(jax.random.key(0), parameters())
