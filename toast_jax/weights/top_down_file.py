"""Files of pre-tuned top-down modules, which record the config and the backbone they were made with.

Arrays have the release's names, so that PyTorch code can read them too; the record is in the header of the safetensors file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.weights.containers import read_header, write
from toast_jax.weights.rename import kind, stacked_depth, to_torch, unstack
from toast_jax.workdir import run_folder
from toast_jax.workdir.fingerprint import differing, is_split, moments


def save(path: str | Path, params: dict, config: ConfigDict) -> None:
    """Write `params["top_down"]`, from the first process alone; other parameters may be split over processes."""
    flat, facts = trees.flat(params), header(params, config)
    if jax.process_index():
        return
    module = {name: np.asarray(array, np.float32) for name, array in flat.items() if name.startswith("top_down/")}
    family = kind(flat)
    write(path, to_torch(module, family, stacked_depth(flat, family)), facts)


def header(params: dict, config: ConfigDict) -> dict[str, str]:
    """Build the header: config, versions, device, and a fingerprint of `params["backbone"]`.

    `check_backbone` compares the fingerprint with the backbone that the module is used with.
    """
    facts = {"config": config.to_dict(), "backbone": fingerprint(trees.flat(params)), **run_folder.circumstances()}
    return {"toast_jax": json.dumps(facts)}


def fingerprint(params: Mapping[str, ArrayLike]) -> dict[str, list[float]]:
    """Compute mean and root mean square of every backbone parameter, except resized position embeddings."""
    backbone: dict[str, Any] = {name: array for name, array in params.items() if name.startswith("backbone/")}
    layers = unstack({name: array if is_split(array) else np.asarray(array) for name, array in backbone.items()})
    return {name: moments(array) for name, array in layers.items() if not name.endswith("/pos_embed")}


def check_backbone(path: str, params: Mapping[str, ArrayLike]) -> None:
    """Check a module's recorded backbone against the one in `params`.

    Raises:
      InputError: they differ, or the header is damaged.
    """
    try:
        recorded = json.loads(read_header(path).get("toast_jax", "{}")).get("backbone", {})
        recorded = {name: (float(mean), float(rms)) for name, (mean, rms) in recorded.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"The header of {path} is damaged; copy the file again, or leave its header out.") from error
    if not recorded:
        return
    if name := differing(fingerprint(params), recorded):
        raise other_backbone(path, name)


def other_backbone(path: str, name: str) -> InputError:
    """Return the error for a module whose backbone differs in the parameter `name` from the one it is used with."""
    return InputError(
        f"The top-down module in {path} was made for another backbone ({name} differs); give the one it belongs to in "
        "--config.backbone.weights."
    )
