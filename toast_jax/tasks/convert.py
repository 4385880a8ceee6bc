"""Convert weights to the parameter names of the PyTorch release: `--config=configs/convert.py:from=...,to=...`."""

import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.errors import InputError, listed, renaming
from toast_jax.model import families
from toast_jax.model.families import Family
from toast_jax.model.methods import BACKBONE, tuned_mask
from toast_jax.train import saved_run
from toast_jax.weights import download, module_file, places, pretrained
from toast_jax.weights.containers import check_writable, read_header, write
from toast_jax.weights.rename import Arrays, rename_back, stacked_depth, table, uneven_layers, unstack

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Convert `config.source` to `config.target` and log a table of the renamed arrays; `folder` is unused."""
    if not config.source or not config.target:
        raise InputError("Nothing to convert; write --config=configs/convert.py:from=SOURCE,to=FILE.")
    check_fields(config)
    check_writable(config.target)
    source = download.local(places.located(config.source, "source"), config.sha256)
    if not source.exists():
        raise InputError(f"There is nothing at {source}; correct from= in --config=configs/convert.py:from=...,to=...")
    family, arrays, header = _of_run(source, config) if source.is_dir() else _of_file(source)
    state, key = rename_back(arrays, family), family.export_key
    if "head.last_layer.weight" in state:  # it wraps its network: an encoder and a head
        state = {name if name.startswith("head.") else f"enc.{name}": array for name, array in state.items()}
        key = "model_state_dict"
    write(config.target, state, header, key=key)
    log.info("%s", table(arrays, family))
    log.info("%s -> %s: %d arrays, %s values.", config.source, config.target, len(state), f"{trees.count(state):,}")


def _of_file(path: Path) -> tuple[Family, Arrays, dict[str, str]]:
    family, arrays, ignored = pretrained.layers(str(path))
    if not arrays:
        raise InputError(f"{path} holds nothing that a network here has; give another file.")
    if uneven := uneven_layers(arrays):
        raise InputError(f"{path} lacks {listed(uneven)} in some of its layers; copy or download it again.")
    if ignored:
        log.info("Left out: %s.", listed(ignored))
    return family, arrays, read_header(str(path))


def _of_run(folder: Path, config: ConfigDict) -> tuple[Family, Arrays, dict[str, str]]:
    with renaming(OF_SAVED):
        saved = saved_run.load(folder, config.weights, config.top_down, config.module, dtype="float32")
    log.info("Read %s at step %d.", folder, saved.step)
    if saved.config.backbone.get("pool") == "mean":
        log.warning("This network uses mean pooling; the release would classify its class token.")
    header = module_file.header(saved.params, tuned_mask(saved.params, saved.method), saved.config)
    flat = trees.flat(saved.params)
    family = families.of_config(saved.config)
    depth = stacked_depth(flat, family)
    if family.layer_files and BACKBONE in saved.method.frozen:  # it is large, and as it was
        flat = {path: leaf for path, leaf in flat.items() if not path.startswith("backbone/")}
    arrays = unstack({path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}, family, depth)
    if saved.config.stage == "pretune":
        arrays = {path: array for path, array in arrays.items() if not path.startswith("head/")}
    return family, arrays, header
