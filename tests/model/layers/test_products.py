"""The count of products that benchmarks print, and how far steps are from the least that they can do."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import products, roofline, scaling, steps
from benchmarks.recipe import CLASSES
from toast_jax.tables import costs


def test_products_are_counted_as_often_as_they_run():
    def function(x, kernels, others):
        x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)
        return jnp.einsum("bij,bjk->bik", x.reshape(2, 4, 16), others)

    x, kernels, others = jnp.ones((8, 16)), jnp.ones((5, 16, 16)), jnp.ones((2, 16, 3))
    program = jax.jit(function).lower(x, kernels, others).compile().as_text()
    assert products.flops(program) == 2 * (5 * 8 * 16 * 16 + 2 * 4 * 16 * 3)
    looped = products.Product(2 * 8 * 16 * 16, (8 * 16, 16 * 16, 8 * 16), batched=False)
    alone = products.Product(2 * 2 * 4 * 16 * 3, (2 * 4 * 16, 2 * 16 * 3, 2 * 4 * 3), batched=True)
    assert products.listed(program) == {looped: 5, alone: 1}
    assert costs.traced(jax.jit(function), x, kernels, others) == products.flops(program)


def test_products_of_the_larger_branch_count():
    branches = [lambda x: x, lambda x: x @ x, lambda x: jax.checkpoint(lambda x: x @ x @ x)(x)]
    x = jnp.ones((4, 4))
    assert costs.traced(lambda i, x: jax.lax.switch(i, branches, x), 0, x) == 2 * 2 * 4**3


def test_products_in_a_loop_without_a_known_length_are_refused():
    with pytest.raises(ValueError, match="while loop"):
        costs.traced(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), jnp.ones((2, 2)))


def test_a_product_is_bound_by_operations_or_by_memory():
    chip = roofline.Chip(flops=100.0, bandwidth=10.0)
    many = products.Product(1000, (5, 5, 5), batched=False)  # 10 s at the peak, 3 s of memory
    few = products.Product(100, (15, 15, 90), batched=True)  # 1 s, 24 s; 6 s where the weights stay on the chip
    assert roofline.least_seconds({many: 2, few: 1}, chip) == 2 * 10 + 24
    assert roofline.least_seconds({many: 2, few: 1}, chip, fused=True) == 2 * 10 + 6


@pytest.mark.slow
@pytest.mark.parametrize(("method", "over"), [("linear", 0.0), ("toast", 0.03), ("finetune", 0.05)])
def test_no_product_is_wasted(method, over):
    """What is over the minimum are the products of attention, computed again in the backward pass (see `remat`)."""
    case = steps.Case(method, "vit_ti16", steps.images(16))  # two on each of eight devices
    least = products.minimum(method, width=192, depth=12, tokens=197, classes=CLASSES)
    assert least <= products.flops(case.train.as_text()) / 2 <= (1 + over) * least


@pytest.mark.parametrize(
    "method", ["linear", *(pytest.param(name, marks=pytest.mark.slow) for name in ("toast", "toast_lite"))]
)
def test_devices_tell_each_other_gradients_of_what_is_tuned_and_nothing_else(method):
    tuned, program = scaling.compiled(method, "vit_mini16", 8)
    assert 4 * tuned <= scaling.reduced_bytes(program) <= 4 * tuned + 64  # and the scores
