"""Convert weights to the names of the PyTorch release: `--config=configs/convert.py:from=...,to=...`."""

import json
import logging
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax import download, saved_run, trees
from toast_jax.errors import InputError, listed
from toast_jax.formats import timm_names
from toast_jax.rename import Arrays, rename, rename_back, table, unstack
from toast_jax.weight_files import check_writable, read, write

log = logging.getLogger(__name__)


def run(config: ConfigDict, folder: str) -> None:
    """Reads `config.source`, writes `config.target` and logs a table of what was mapped; `folder` is not used."""
    if not config.source or not config.target:
        raise InputError("Nothing to convert; write --config=configs/convert.py:from=SOURCE,to=FILE.")
    check_writable(config.target)
    source = download.local(config.source, config.sha256)
    arrays, ignored = _of_run(source) if source.is_dir() else _of_file(source)
    state = rename_back(arrays)
    tuned = "head.last_layer.weight" in state
    if tuned:  # the release wraps its network: an encoder and a head
        state = {name if name.startswith("head.") else f"enc.{name}": array for name, array in state.items()}
    key = "model_state_dict" if tuned else "model"
    write(config.target, state, {"toast_jax": json.dumps({"source": config.source})}, key=key)
    log.info("%s", table(arrays))
    if ignored:
        log.info("Left out: %s.", listed(ignored))
    log.info("%s -> %s: %d arrays, %s numbers.", config.source, config.target, len(state), f"{trees.count(state):,}")


def _of_file(path: Path) -> tuple[Arrays, list[str]]:
    try:
        arrays, unknown = rename(timm_names(read(str(path))))
    except ValueError as error:
        raise InputError(f"{path} cannot be used: {error}.") from error
    if not arrays:
        raise InputError(f"{path} holds nothing that a network here has ({listed(unknown)}); give another file.")
    return arrays, unknown


def _of_run(folder: Path) -> tuple[Arrays, list[str]]:
    saved = saved_run.load(folder)
    arrays = unstack({path: np.asarray(leaf) for path, leaf in trees.flat(saved.params).items()})
    if saved.config.stage == "pretune":
        arrays = {path: array for path, array in arrays.items() if not path.startswith("head/")}
    return arrays, []
