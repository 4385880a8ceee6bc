"""Convert weights to the release's names, or export a run: `--config=configs/convert.py:from=...,to=...,as=...`."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check_fields
from toast_jax.config.task_fields import OF_SAVED
from toast_jax.errors import InputError, listed, renaming
from toast_jax.export import card, exported, folder, plain
from toast_jax.model import families
from toast_jax.model.families import Family
from toast_jax.model.methods import BACKBONE, tuned_mask
from toast_jax.train import saved_run
from toast_jax.train.saved_run import SavedRun
from toast_jax.weights import download, llama_files, module_file, places, pretrained
from toast_jax.weights.containers import check_writable, read_header, write
from toast_jax.weights.rename import Arrays, published, rename_back, stacked_depth, table, uneven_layers, unstack
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

# The kinds of an exported folder.
_KINDS: dict[str, Callable[[SavedRun], folder.Files]] = {
    "timm": lambda run: plain.files(run, "timm"),
    "hf": lambda run: plain.files(run, "hf"),
    "stablehlo": exported.files,
}


def run(config: ConfigDict, workdir: str) -> None:
    """Convert `config.source` to `config.target`; `workdir` is unused.

    As "release" it becomes a file, and a table of the renamed arrays is logged; as anything else, a folder (see `_export`).
    """
    if not config.source or not config.target:
        raise InputError("Nothing to convert; write --config=configs/convert.py:from=SOURCE,to=FILE.")
    check_fields(config)
    if config.format != "release":
        _export(config)
        return
    check_writable(config.target)
    source = download.local(places.located(config.source, "source"), config.sha256)
    if not source.exists():
        raise _nothing_at(source)
    family, arrays, header = _of_run(source, config) if _is_run(source) else _of_file(source, config)
    if config.names and (classifier := {path for path in arrays if path.startswith("classifier/")}):
        log.info("Left out: %s, as names=%s is for a backbone alone.", listed(sorted(classifier)), config.names)
        arrays = {path: array for path, array in arrays.items() if path not in classifier}
    state, key = published(arrays, config.names) if config.names else rename_back(arrays, family), family.export_key
    if "head.last_layer.weight" in state:  # it wraps its network: an encoder and a head
        state = {name if name.startswith("head.") else f"enc.{name}": array for name, array in state.items()}
        key = "model_state_dict"
    write(config.target, state, header, key=key)
    log.info("%s", table(arrays, family))
    log.info("%s -> %s: %d arrays, %s values.", config.source, config.target, len(state), f"{trees.count(state):,}")


def _export(config: ConfigDict) -> None:
    """Write the folder that another library, or JAX alone, loads, with a model card, and log the command that uploads it.

    Raises:
      InputError: the source is not the folder of a finished run that has tuned, the target exists, or the network cannot be
        written as `config.format`.
    """
    if ignored := [name for name in ("names", "sha256") if config[name]]:
        raise InputError(f"{' and '.join(ignored)} in --config=configs/convert.py:... is for as=release; leave it out.")
    target, source = folder.check_new(config.target), Path(config.source).expanduser()
    if not _is_run(source):
        if not source.exists() and not places.is_remote(config.source):
            raise _nothing_at(source)
        raise InputError(
            f"as={config.format} is written from the folder of a run, and {config.source} is not one; give a run in from=, or "
            "write as=release."
        )
    result = _result(source)
    saved = _loaded(source, config)
    if saved.config.stage == "pretune":
        raise InputError(f"The run in {source} has pre-tuned a module; give one that tuned with it, or write as=release.")
    kind, files = _files(saved, config.format)
    files["README.md"] = card.card(saved, result, kind, target.resolve().name, sorted(files))
    folder.write(target, files)
    log.info("%s -> %s, as=%s: %s.", source, target, kind, ", ".join(sorted(files)))
    log.info("To upload it: %s", card.upload(target.resolve().name, target))


def _is_run(source: Path) -> bool:
    """Return whether to read a folder as that of a run, and not as one of weights."""
    return source.is_dir() and (run_folder.has_checkpoint(source) or not llama_files.file_in(source))


def _nothing_at(source: Path) -> InputError:
    return InputError(f"There is nothing at {source}; correct from= in --config=configs/convert.py:from=...,to=...")


def _result(source: Path) -> dict:
    """Read the `result.json` of a run."""
    file = source / "result.json"
    if run_folder.has_checkpoint(source) and not file.exists():
        raise InputError(
            f"The run in {source} has not finished, as it has no result.json; give its command again to finish it."
        )
    try:
        return json.loads(file.read_text()) if file.exists() else {}  # without a checkpoint, reading the run says so
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error}); remove it and give the command of the run again.") from error


def _files(run: SavedRun, kind: str) -> tuple[str, folder.Files]:
    """Return the kind and the files of a folder; "hub" is the first kind of the family that can hold the network."""
    if kind != "hub":
        return kind, _KINDS[kind](run)
    family = families.of_config(run.config)
    *kinds, last = (*family.plain, *(["stablehlo"] if family.reads == "images" else []))
    for name in kinds:
        try:
            return name, _KINDS[name](run)
        except InputError as error:
            log.info("Not as=%s: %s", name, error)
    return last, _KINDS[last](run)


def _of_file(path: Path, config: ConfigDict) -> tuple[Family, Arrays, dict[str, str]]:
    if ignored := [f"--config.{name}" for name in ("weights", "top_down", "module") if config[name]]:
        raise InputError(f"{' and '.join(ignored)} is for a run, and from={path} has weights alone; leave it out.")
    if (file := llama_files.file_in(path)) or path.suffix == ".json" or llama_files.is_llama2c(path):
        tensors = llama_files.stored(file or path)
        in_file = {name: np.asarray(tensor.read(), np.float32) for name, tensor in tensors.items()}
        family, arrays, ignored = pretrained.named(str(path), in_file)
    else:
        family, arrays, ignored = pretrained.layers(str(path))
    if not arrays:
        raise InputError(f"{path} holds nothing that a network here has; give another file.")
    if uneven := uneven_layers(arrays):
        raise InputError(f"{path} lacks {listed(uneven)} in some of its layers; copy or download it again.")
    if ignored:
        log.info("Left out: %s.", listed(ignored))
    return family, arrays, read_header(str(path))


def _loaded(source: Path, config: ConfigDict) -> SavedRun:
    with renaming(OF_SAVED):
        saved = saved_run.load(source, config.weights, config.top_down, config.module, dtype="float32")
    if families.reads(saved.config) == "masks":
        raise InputError(f"The run in {source} segments images, and no format here holds its head; give a run that classifies.")
    return saved


def _of_run(source: Path, config: ConfigDict) -> tuple[Family, Arrays, dict[str, str]]:
    saved = _loaded(source, config)
    log.info("Read %s at step %d.", source, saved.step)
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
