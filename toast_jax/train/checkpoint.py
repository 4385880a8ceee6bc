"""Checkpoints: the tuned parameters and what is needed to go on, never the frozen backbone.

A checkpoint is a folder named after its step in `WORKDIR/checkpoints`, written by Orbax under another name first and then
renamed, so that a half-written one is never read. It has the items `tuned` (parameters; their moving average if the run keeps
one), `progress` (optimizer state, step, random key, and the parameters behind a moving average) and `meta` (JSON).
"""

import contextlib
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


@contextlib.contextmanager
def manager(folder: str | Path, create: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Opens `WORKDIR/checkpoints` inside the block; at its end the last write is waited for.

    Raises:
      InputError: the folder is not there, and is not to be created; its disk is full or fails.
    """
    # Orbax reports a relative path only in its own thread, after the save has returned.
    folder = Path(folder).expanduser().resolve() / "checkpoints"
    if not create and not folder.is_dir():
        raise InputError(f"There are no checkpoints in {folder.parent}; give the --workdir of a run.")
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
    except Exception as error:  # Orbax and TensorStore tell of a disk in many ways
        if reason := run_folder.disk_fault(error):
            raise InputError(
                f"No checkpoint can be written in {folder} ({reason}); those that are there are whole: free some space or mend "
                "the disk, and give the same command again, which goes on from the last one."
            ) from error
        raise


def save(checkpoints: ocp.CheckpointManager, state: State, meta: dict) -> None:
    """Writes a checkpoint in the background. `state` holds NumPy arrays (`parallel.fetch`), `meta` JSON values.

    Raises:
      InputError: the disk is full or fails; what happens to this checkpoint is told by the next one, `check_written` or at the
        end of `manager`.
    """
    tuned, progress = _items(state)
    args = ocp.args.Composite(
        tuned=ocp.args.StandardSave(tuned), progress=ocp.args.StandardSave(progress), meta=ocp.args.JsonSave(meta)
    )
    with _disk_faults(checkpoints.directory):
        checkpoints.save(int(state.step), args=args)


def check_written(checkpoints: ocp.CheckpointManager) -> None:
    """Raises InputError if writing has failed in the background; does not wait for it.

    Of several processes each asks all others whether they are done, so they learn of it when they save again.
    """
    if jax.process_count() == 1 and not checkpoints.is_saving_in_progress():
        with _disk_faults(checkpoints.directory):
            checkpoints.wait_until_finished()


def restore(checkpoints: ocp.CheckpointManager, like: State) -> State | None:
    """The latest checkpoint as a state with the structure and shapes of `like`, in NumPy arrays; None if there is none."""
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
    """The step and the tuned parameters alone of the latest checkpoint, with the gaps (None) of `like`.

    Raises:
      InputError: there is no checkpoint, or it is of other parameters than `like`.
    """
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {checkpoints.directory}; check --workdir.")
    return step, _fill(like, _read(checkpoints, step, tuned=trees.prune(like)).tuned)


def read_meta(checkpoints: ocp.CheckpointManager) -> dict:
    """What the latest checkpoint was made with: `config`, `classes`, and `data` and `frozen` of `identity`.

    Raises:
      InputError: there is no checkpoint.
    """
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"There is no checkpoint in {checkpoints.directory}; check the folder.")
    return checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta


def _items(state):
    """The two array items. Optimizer leaves go by number: their nesting is optax's business, and holds empty nodes."""
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
    """Items of a checkpoint, each with the structure and shapes of its namesake in `like`."""
    # As NumPy: placement on devices is `parallel.place`'s, so a checkpoint fits any number of devices.
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})
    try:
        return checkpoints.restore(step, args=args)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise InputError(
            f"Checkpoint {checkpoints.directory / str(step)} does not hold this network ({str(error).splitlines()[0]}); "
            "use the config it was made with, or another --workdir."
        ) from error
