"""Parameter trees: nested dicts of arrays, seen as flat dicts of "/"-joined paths, and split by a boolean mask."""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict


def flat(tree: dict) -> dict:
    """`{"a": {"b": x}}` -> `{"a/b": x}`."""
    return flatten_dict(tree, sep="/")


def nested(tree: dict) -> dict:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    return unflatten_dict(tree, sep="/")


def split(tree: dict, mask: dict) -> tuple[dict, dict]:
    """Split a tree in two of the same structure: (where `mask` is True, where it is False), with None in the gaps."""
    chosen = jax.tree.map(lambda keep, leaf: leaf if keep else None, mask, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, mask, tree)
    return chosen, rest


def merge(tree: dict, other: dict) -> dict:
    """Undo `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, tree, other, is_leaf=lambda leaf: leaf is None)


def prune(tree: dict) -> dict:
    """Drop the gaps that `split` left: a nested dict of arrays alone."""
    return nested({path: leaf for path, leaf in flat(tree).items() if leaf is not None})


def count(tree) -> int:
    """Count the scalars in all leaves; works on shapes as well as on arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(tree: dict) -> dict:
    """Return `{path: shape}` of every leaf."""
    return {path: tuple(leaf.shape) for path, leaf in flat(tree).items()}
