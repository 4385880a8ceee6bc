"""Replay arrays of a backbone alone, recorded from timm or from Hugging Face transformers.

A recording holds images, parameters by their names in published files, embeddings, the output of every block, tokens, the
pooled output, and gradients of its product with a probe. Where it has `other_size/*`, the same parameters see images of another
shape.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.errors import InputError, listed
from toast_jax.model import families
from toast_jax.model.backbones.rename_rules import Layout, Rename
from toast_jax.model.families import FAMILIES, Family
from toast_jax.testing.comparison import Check, relative_error
from toast_jax.testing.recording import group
from toast_jax.weights import rename
from toast_jax.weights.containers import Arrays
from toast_jax.weights.other_projects import unwrapped
from toast_jax.weights.pretrained import resize_pos_embed

TOKENS, BLOCKS, GRADIENTS = 3e-5, 2e-4, 1e-4  # bounds; the values of blocks are large
_POOLS = {"cls": "cls", "mean_patch": "mean", "attention": "attention"}


def is_recording(arrays: Arrays) -> bool:
    """Return whether arrays are a recording of a backbone alone."""
    return "config/library" in arrays


def replay(path: str, arrays: Arrays) -> list[Check]:
    """Compare every quantity of a recording.

    Args:
      path: of the file, for messages.
      arrays: of the file, by key.

    Raises:
      InputError: no network here has these parameters.
    """
    inner, table = parameters(path, arrays)
    layers, _ = rename.rename(inner, table)
    params = rename.stack(layers, last_blocks=1)
    family = rename.kind(params)
    model = _network(family, params, arrays)
    checks = [Check("config/eps", relative_error(model.features.eps, arrays["config/eps"]), 1e-6)]
    checks += _forward(model, params, arrays, "")
    if "other_size/input/images_nchw" in arrays:
        rows, columns = (side // model.patch for side in arrays["other_size/input/images_nchw"].shape[2:])
        other, resized = dataclasses.replace(model, grid=(rows, columns)), dict(params)
        if (name := "backbone/pos_embed") in params:
            tokens = params[name].shape[1] + rows * columns - model.num_patches
            resized[name] = resize_pos_embed(params[name], tokens, **families.of_backbone(other).positions(other))
            if (key := "other_size/position") in arrays:
                recorded = arrays[key].reshape(-1, model.width)
                checks.append(Check(key, relative_error(resized[name][0, -len(recorded) :], recorded), TOKENS))
        checks += _forward(other, resized, arrays, "other_size/")
    return checks + _gradients(model, params, arrays, inner, table, family)


def parameters(path: str, arrays: Arrays) -> tuple[Arrays, tuple[Rename, ...]]:
    """Return the parameters of a recording by their names in the network, and the rename table of these names.

    Raises:
      InputError: no network here has these parameters.
    """
    state = unwrapped(group(arrays, "params/"), [])
    return state, _table(path, state, bool(arrays["config/mlp_gated"]))


def _table(path: str, state: Arrays, gated: bool) -> tuple[Rename, ...]:
    """Choose the layout that names all parameters: the one with a gate for a gated MLP."""
    left: dict[tuple[int, bool], Layout] = {}
    for family in FAMILIES.values():
        for layout in family.names.layouts:
            gates = any("gate" in name for row in layout.table for name in row.paths)
            left[len(rename.unnamed(state, layout.table)), gates != gated] = layout
    (count, _), layout = min(left.items(), key=lambda item: item[0])
    if count:
        names = listed(sorted(rename.unnamed(state, layout.table)), most=3)
        raise InputError(f"{path} is of a network that no family here has; it has {names}.")
    if reason := layout.refusal(state):
        raise InputError(f"{path} cannot be replayed: {reason}.")
    return layout.table


def _network(family: Family, params: Arrays, arrays: Arrays) -> Any:
    model: Any = family.sized(params, int(arrays["config/head_width"]))
    features: dict[str, Any] = {"antialias": bool(arrays.get("config/position_interpolation_antialias", False))}
    if not arrays["config/mlp_gated"]:
        features["mlp"] = str(arrays["config/activation"])
    if "config/rope_base" in arrays:
        features["rotary"] = float(arrays["config/rope_base"])
    rows, columns = (side // model.patch for side in arrays["input/images_nchw"].shape[2:])
    return dataclasses.replace(
        model,
        grid=(rows, columns),
        pool=_POOLS[str(arrays["config/pool"])],
        features=dataclasses.replace(model.features, **features),
    )


def _nested(params):
    return trees.nested({path.removeprefix("backbone/"): jnp.asarray(array) for path, array in params.items()})


def _forward(model, params, arrays, prefix) -> list[Check]:
    images = arrays[f"{prefix}input/images_nchw"].transpose(0, 2, 3, 1)
    pooled, out = jax.jit(lambda params, images: model.apply({"params": params}, images))(_nested(params), images)
    special = out["tokens"].shape[1] - model.num_patches
    values = {
        "mid/embeddings": (out["hidden"][0], TOKENS),
        **{f"mid/block_{i}": (hidden, BLOCKS) for i, hidden in enumerate(out["hidden"][1:])},
        "mid/tokens": (out["tokens"], TOKENS),
        "out/pooled": (pooled, TOKENS),
        "out/mean_patch": (out["tokens"][:, special:].mean(axis=1), TOKENS),
    }
    if special:
        values["out/cls"] = (out["tokens"][:, 0], TOKENS)
    if model.rotary:
        angles = model.rotary.angles()
        values |= {"mid/rope_cos": (np.cos(angles), TOKENS), "mid/rope_sin": (np.sin(angles), TOKENS)}
    checks = []
    for name, (value, bound) in values.items():
        if (key := prefix + name) in arrays:
            checks.append(Check(key, relative_error(value, arrays[key]), bound))
    if (key := f"{prefix}out/loss") in arrays:
        products = np.asarray(pooled) * arrays.get(f"{prefix}input/probe", arrays["input/probe"])
        checks.append(Check(key, abs(float(products.sum() - arrays[key])) / float(np.abs(products).sum()), TOKENS))
    recorded = {key for key in arrays if key.startswith((f"{prefix}mid/", f"{prefix}out/"))}
    missing = recorded - {check.name for check in checks}
    assert not missing, f"recorded, but not compared: {missing}"
    return checks


def _gradients(model, params, arrays, state, table, family) -> list[Check]:
    """Compare gradients with respect to the arrays of the file, which the rows of the table convert to parameters."""
    images = arrays["input/images_nchw"].transpose(0, 2, 3, 1)

    def loss(params):
        pooled = model.apply({"params": params}, images, method="pooled")
        return (pooled * arrays["input/probe"]).sum(), pooled

    gradients, pooled = jax.jit(jax.grad(loss, has_aux=True))(_nested(params))
    gradients = {f"backbone/{path}": leaf for path, leaf in trees.flat(gradients).items()}
    layers = rename.unstack(gradients, family)
    of_state: Arrays = {}
    for row, i, values in rename.taken(table, "torch", dict(state)):
        outputs = tuple(layers[path.format(i=i)] for path in row.paths)
        _, pull_back = jax.vjp(row.forward, *map(jnp.asarray, values))
        of_state |= dict(zip((name.format(i=i) for name in row.torch), pull_back(outputs), strict=True))
    checks = [Check("out/pooled (alone)", relative_error(pooled, arrays["out/pooled"]), TOKENS)]
    for name, array in group(arrays, "grad/").items():
        bare = max((bare for bare in of_state if name.endswith(bare)), key=len)  # without modules around the network
        checks.append(Check(f"grad/{name}", relative_error(of_state[bare], array), GRADIENTS))
    return checks
