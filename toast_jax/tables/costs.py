"""Count the floating-point operations of a method, in the matrix products of its jaxpr. Nothing is computed or read."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.model import losses, methods, steered


def per_image(config: ConfigDict) -> tuple[float, float]:
    """Count the GFLOP for one image: of training, forward and backward, and of inference.

    Both are without the head, nothing is cached, and only matrix products count, two operations per multiply-add.
    """
    network, method = steered.build(config, 1)
    params = jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0)))
    tuned, frozen = trees.split(params, methods.tuned_mask(params, method))
    size = config.data.image_size
    batch = {"image": jnp.zeros((1, size, size, 3), jnp.uint8), "label": jnp.zeros(1, jnp.int32)}
    scores = losses.tune(network, method)

    def loss(tuned, frozen):
        return scores(trees.merge(tuned, frozen), batch)["loss"].sum()

    inference = traced(lambda params: steered.apply(network, method, params, batch["image"]), params)
    return traced(jax.grad(loss), tuned, frozen) / 1e9, inference / 1e9


def traced(function: Callable, *args) -> int:
    """Count the operations of all matrix products of `function(*args)` in its jaxpr, two per multiply-add.

    The body of a scan counts as often as it runs. Of several branches, such as those of platforms, the largest counts. Of a
    step that is mapped over devices, the share of one device counts.

    Raises:
      ValueError: a `while` loop, which has no known trip count, has a matrix product.
    """
    return _traced(jax.make_jaxpr(function)(*args).jaxpr)


def _traced(jaxpr):
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    inside = [_traced(getattr(value, "jaxpr", value)) for value in jax.tree.leaves(list(params.values())) if _is_jaxpr(value)]
    if name == "while" and any(inside):
        raise ValueError("a while loop has matrix products and no known trip count")
    if name == "cond":
        return max(inside)
    return sum(inside) * (params["length"] if name == "scan" else 1)


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
