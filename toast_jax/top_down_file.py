"""A pre-tuned top-down module as a file of its own, with what it was made on and for.

The arrays have the release's names, so every reader of this project and of PyTorch's world can read the file; what it was made
with travels in the header of the safetensors format.
"""

import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees, workdir
from toast_jax.errors import InputError
from toast_jax.rename import Arrays, to_torch, unstack
from toast_jax.weight_files import read_header, write

# Relative difference of a backbone's statistics that half precision may cause, and another backbone exceeds by far.
_TOLERANCE = 1e-2


def save(path: str | Path, params: dict, config: ConfigDict) -> None:
    """Writes `params["top_down"]`; only the first process does.

    The header holds the config, versions and device, and a fingerprint of `params["backbone"]`, against which `check_backbone`
    compares the one that the module is used with.
    """
    if jax.process_index():
        return
    flat = trees.flat(params)
    module = to_torch({name: array for name, array in flat.items() if name.startswith("top_down/")})
    facts = {"config": config.to_dict(), "backbone": fingerprint(flat), **workdir.circumstances()}
    write(path, module, {"toast_jax": json.dumps(facts)})


def fingerprint(params: Arrays) -> dict[str, list[float]]:
    """Mean and root mean square of every backbone parameter, by path; position embeddings, which are resized, left out."""
    layers = unstack({name: np.asarray(array) for name, array in params.items() if name.startswith("backbone/")})
    return {
        name: [float(np.mean(array, dtype=np.float64)), float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))]
        for name, array in layers.items()
        if not name.endswith("/pos_embed")
    }


def check_backbone(path: str, params: Arrays) -> None:
    """Raises InputError if the file says that its module was made for another backbone than the one in `params`."""
    theirs = json.loads(read_header(path).get("toast_jax", "{}")).get("backbone")
    if not theirs:
        return
    ours = fingerprint(params)
    for name in sorted(theirs.keys() | ours.keys()):
        pair = np.array([theirs.get(name, [np.inf, np.inf]), ours.get(name, [np.inf, np.inf])])
        if not np.abs(pair[0] - pair[1]).max() <= _TOLERANCE * pair[:, 1].max():
            raise InputError(
                f"The top-down module in {path} was made for another backbone ({name} differs); give the one it belongs to in "
                "--config.backbone.weights."
            )
