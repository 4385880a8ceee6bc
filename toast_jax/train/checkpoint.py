"""Save and restore checkpoints: tuned parameters and training state, never the frozen backbone.

A checkpoint is a folder in `WORKDIR/checkpoints`, named by its step. Orbax writes it under a temporary name first, so
an incomplete checkpoint is never read. Its items are `tuned` (the parameters, or their moving average if the run has one),
`progress` (optimizer state, step, random key, and the parameters behind a moving average) and `meta` (JSON).
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.train.step import State
from toast_jax.workdir import run_folder

KEEP = 2
_DAMAGE = "Item .* was not found in the checkpoint|DATA_LOSS|NOT_FOUND|OUT_OF_RANGE"  # of Orbax, and of TensorStore


@contextlib.contextmanager
def manager(folder: str | Path, create: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Open `WORKDIR/checkpoints` inside the block, whose end waits for the last write.

    Raises:
      InputError: the folder does not exist and `create` is False, or its disk is full or fails.
    """
    # Orbax refuses relative paths, but only in its own thread after the save has returned.
    folder = Path(folder).expanduser().resolve() / "checkpoints"
    if not create and not folder.is_dir():
        near = run_folder.run_near(folder.parent)
        raise InputError(
            f"There are no checkpoints in {folder.parent}; give the --workdir of a run{f', such as {near}' if near else ''}."
        )
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=create)
    with _disk_faults(folder):
        opened = ocp.CheckpointManager(folder, item_names=("tuned", "progress", "meta"), options=options)
    try:
        yield opened
    finally:
        with _disk_faults(folder):
            opened.close()


@contextlib.contextmanager
def _disk_faults(folder):
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise many types for a disk error
        if reason := run_folder.disk_fault(error):
            raise InputError(
                f"No checkpoint can be written in {folder} ({reason}); those that are there are whole: free some space or mend "
                "the disk, and give the same command again, which goes on from the last one."
            ) from error
        raise


def save(checkpoints: ocp.CheckpointManager, state: State, meta: dict) -> None:
    """Write a checkpoint in the background. `state` holds NumPy arrays (`parallel.fetch`), `meta` JSON values.

    Raises:
      InputError: the disk is full or fails. Errors of the background write surface in the next `save`, in `check_written` or at
        the end of `manager`.
    """
    tuned, progress = _items(state)
    args = ocp.args.Composite(
        tuned=ocp.args.StandardSave(tuned), progress=ocp.args.StandardSave(progress), meta=ocp.args.JsonSave(meta)
    )
    with _disk_faults(checkpoints.directory):
        checkpoints.save(int(state.step), args=args)


def check_written(checkpoints: ocp.CheckpointManager) -> None:
    """Raise InputError if a background write has failed, without waiting for one in progress.

    With several processes this does nothing, as asking for the status synchronises them; `save` reports the error later.
    """
    if jax.process_count() == 1 and not checkpoints.is_saving_in_progress():
        with _disk_faults(checkpoints.directory):
            checkpoints.wait_until_finished()


def restore(checkpoints: ocp.CheckpointManager, like: State) -> State | None:
    """Read the latest checkpoint as a state of NumPy arrays, structured like `like`; None without a checkpoint."""
    step = checkpoints.latest_step()
    if step is None:
        return None
    tuned, progress = _items(like)
    items = _read(checkpoints, step, tuned=tuned, progress=progress)
    structure = jax.tree.structure(like.opt_state)
    leaves = [items.progress["opt_state"][name] for name in _numbered(like.opt_state)]
    result, latest = _fill(like.tuned, items.tuned), items.progress.get("latest")
    return State(
        step=items.progress["step"],
        tuned=result if latest is None else _fill(like.tuned, latest),
        opt_state=jax.tree.unflatten(structure, leaves),
        rng=items.progress["rng"],
        average=None if latest is None else result,
    )


def restore_tuned(checkpoints: ocp.CheckpointManager, like: dict) -> tuple[int, dict]:
    """Read the step and the tuned parameters of the latest checkpoint, with None where `like` has None.

    Raises:
      InputError: there is no checkpoint, or its parameters are not those of `like`.
    """
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {checkpoints.directory}; check --workdir.")
    return step, _fill(like, _read(checkpoints, step, tuned=trees.prune(like)).tuned)


def read_meta(checkpoints: ocp.CheckpointManager) -> dict:
    """Read the `config`, `classes` and fingerprints (`data` and `frozen`) that the latest checkpoint was made with.

    Raises:
      InputError: there is no checkpoint, or it is damaged.
    """
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {checkpoints.directory}; check the folder.")
    return _restored(checkpoints, step, meta=ocp.args.JsonRestore()).meta


def _items(state):
    """Return the two array items. Optimizer leaves are numbered, as optax's nesting may change and has empty nodes."""
    opt_state = dict(zip(_numbered(state.opt_state), jax.tree.leaves(state.opt_state), strict=True))
    progress = {"step": state.step, "rng": state.rng, "opt_state": opt_state}
    if state.average is not None:
        progress["latest"] = trees.prune(state.tuned)
    return trees.prune(state.result), progress


def _numbered(tree):
    return [f"{i:04}" for i in range(len(jax.tree.leaves(tree)))]


def _fill(like, pruned):
    leaves = trees.flat(pruned)
    return trees.nested({path: leaves.get(path) for path in trees.flat(like)})


def _read(checkpoints, step, **like):
    """Read items of a checkpoint, each with the structure and shapes that `like` has under its name."""
    # In NumPy arrays, which `parallel.place` can put on any number of devices.
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    return _restored(checkpoints, step, **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})


def _restored(checkpoints, step, **items):
    folder = checkpoints.directory / str(step)
    try:
        return checkpoints.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].strip("'")
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError)) or re.match(_DAMAGE, reason):
            raise InputError(
                f"Checkpoint {folder} is damaged ({reason}): remove this folder, and the same command goes on from the "
                "checkpoint before it, if there is one."
            ) from error
        raise InputError(
            f"Checkpoint {folder} does not hold this network ({reason}); use the config it was made with, or another --workdir."
        ) from error
