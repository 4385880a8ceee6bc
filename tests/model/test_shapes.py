"""Public functions name the shapes of their arrays, and the tests check every call against them (see conftest.py)."""

import ast

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests import ROOT
from toast_jax.model import losses, top_down
from toast_jax.model.additions.lora import LowRank
from toast_jax.model.layers import patches
from toast_jax.model.layers.drop_path import drop_path
from toast_jax.model.layers.linear import Linear
from toast_jax.train import step

FILES = [*(ROOT / "toast_jax/model").rglob("*.py"), ROOT / "toast_jax/train/step.py"]
# Parameters that are neither arrays nor annotated.
UNTYPED = {"self", "cls", "config"}
# These work on parameters of any shape, before a network is built from them, or forward what they get.
ANY_SHAPE = {
    *("model.backbones.vit.shapes.sized", "model.backbones.llama.torch_names.sized"),
    *("model.backbones.convnext.torch_names.sized", "model.steered.apply"),
}
BARE = {"Array", "ndarray"}


def batch(rows, **arrays):
    return {"label": np.zeros(rows, np.int32), **arrays}


WRONG = {
    "select: a prior of another width": lambda: top_down.select(jnp.ones((2, 5, 8)), jnp.ones(7)),
    "select: integers": lambda: top_down.select(jnp.ones((2, 5, 8), int), jnp.ones(8)),
    "TopDown: tokens of another width": lambda: top_down.TopDown(3, 8).init(jax.random.key(0), *[jnp.ones((2, 5, 7))] * 2),
    "TopDown: two lengths": lambda: top_down.TopDown(3, 8).init(jax.random.key(0), jnp.ones((2, 5, 8)), jnp.ones((2, 4, 8))),
    "cross_entropy: labels of another batch": lambda: losses.cross_entropy(jnp.ones((4, 10)), batch(1)),
    "cross_entropy: features of another batch": lambda: losses.cross_entropy(
        jnp.ones((4, 10)), batch(4, features={"pooled": jnp.ones((3, 8))})
    ),
    "Linear: a vector of integers": lambda: Linear(3).init(jax.random.key(0), jnp.ones(4, int)),
    "drop_path: keys of another batch": lambda: drop_path(jnp.ones((4, 3)), jax.random.split(jax.random.key(0), 2), 0.5),
    "drop_path: raw keys": lambda: drop_path(jnp.ones((4, 3)), jnp.zeros((4, 2), jnp.uint32), 0.5),
    "split: an image without a batch": lambda: patches.split(jnp.ones((8, 8, 3)), 4),
    "draw: a key in place of a state": lambda: step.draw(jax.random.key(0), batch(4), lambda batch, rng: batch),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_refused(name):
    with pytest.raises(TypeCheckError):
        WRONG[name]()


def test_kernels_may_be_low_rank():
    kernel = LowRank(np.ones((4, 3), np.float32), np.ones((4, 2), np.float32), np.ones((2, 3), np.float32))
    y = Linear(3, use_bias=False).apply({"params": {"kernel": kernel}}, jnp.ones((5, 4)))
    np.testing.assert_array_equal(y, np.full((5, 3), 12.0))


def functions(path):
    """The public functions and methods of a file, with `__call__`, by their names."""
    tree = ast.parse(path.read_text())
    module = ".".join(path.relative_to(ROOT / "toast_jax").with_suffix("").parts)
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
                prefix = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
                yield f"{module}.{prefix}{node.name}", node


def names_outside_of_brackets(annotation):
    """Names in an annotation, without those of arrays whose shape is written: `Float[Array, "B"]`."""
    match annotation:
        case ast.Subscript(value=ast.Name(id=kind)) if hasattr(jaxtyping, kind):
            return
        case ast.Name(id=name) | ast.Attribute(attr=name):
            yield name
        case ast.AST():
            for child in ast.iter_child_nodes(annotation):
                yield from names_outside_of_brackets(child)


PUBLIC = {name: node for path in FILES for name, node in functions(path)}


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - ANY_SHAPE))
def test_public_functions_write_the_shapes_of_their_arrays(name):
    arguments = PUBLIC[name].args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None and argument.arg not in UNTYPED:
            assert argument.annotation, f"{name} does not say what {argument.arg} is"
            assert not BARE & set(names_outside_of_brackets(argument.annotation)), f"{name}: {argument.arg} has no shape"
    returned = PUBLIC[name].returns
    assert returned or name.endswith(".setup"), f"{name} does not say what it returns"
    assert returned is None or not BARE & set(names_outside_of_brackets(returned)), f"{name} returns an array without a shape"


def test_files_are_read():
    assert {"model.top_down.TopDown.__call__", "train.step.update", "model.backbones.llama.network.rotate"} <= PUBLIC.keys()
    assert PUBLIC.keys() >= ANY_SHAPE
