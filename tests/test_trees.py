"""Parameter trees: flat and nested, split and merged, pruned and counted."""

import jax
import numpy as np
import pytest

from toast_jax import trees

TREE = {"a": {"b": np.ones((2, 3)), "c": np.zeros(4)}, "d": np.full((), 5.0)}
MASKS = [
    {"a": {"b": True, "c": False}, "d": True},
    {"a": {"b": True, "c": True}, "d": True},
    {"a": {"b": False, "c": False}, "d": False},
]


def test_flat_and_nested_are_inverse():
    flat = trees.flat(TREE)
    assert list(flat) == ["a/b", "a/c", "d"]
    assert flat["a/b"] is TREE["a"]["b"]
    assert trees.nested(flat) == TREE


@pytest.mark.parametrize("mask", MASKS)
def test_merge_undoes_split(mask):
    chosen, rest = trees.split(TREE, mask)
    for path, keep in trees.flat(mask).items():
        assert trees.flat(chosen)[path] is (trees.flat(TREE)[path] if keep else None)
        assert trees.flat(rest)[path] is (None if keep else trees.flat(TREE)[path])
    for merged in (trees.merge(chosen, rest), trees.merge(rest, chosen)):
        assert jax.tree.structure(merged) == jax.tree.structure(TREE)
        assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(TREE), strict=True))


def test_prune_leaves_arrays_alone():
    chosen, rest = trees.split(TREE, MASKS[0])
    assert trees.prune(chosen) == {"a": {"b": TREE["a"]["b"]}, "d": TREE["d"]}
    assert trees.prune(rest) == {"a": {"c": TREE["a"]["c"]}}
    assert trees.prune(trees.split(TREE, MASKS[1])[1]) == {}


@pytest.mark.parametrize("make", [lambda tree: tree, lambda tree: jax.eval_shape(lambda: tree)])
def test_count_and_shapes_of_arrays_and_of_shapes(make):
    assert trees.count(make(TREE)) == 11
    assert trees.count(trees.split(make(TREE), MASKS[0])[0]) == 7
    assert trees.count([]) == 0
    assert trees.shapes(make(TREE)) == {"a/b": (2, 3), "a/c": (4,), "d": ()}
