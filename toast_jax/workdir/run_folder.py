"""Check and claim the folder of a run, write files in it, and explain disk errors."""

import contextlib
import errno
import importlib.metadata
import io
import json
import os
import platform
import re
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import toast_jax
from toast_jax import hub
from toast_jax.config import schema
from toast_jax.errors import InputError
from toast_jax.fields import TO_EVALUATE, TO_MOVE, TO_RESUME, flat_fields
from toast_jax.workdir import locks

SWEEP = "sweep.json"  # in the folder of every sweep
_CORRECT, PREDICTIONS = "test_correct.txt", "test_logits.npz"
# What runs write; some of it only at their end.
_FILES = ("running", "config.json", "metrics.jsonl", "result.json", "confusion.csv", _CORRECT, PREDICTIONS)
_FILES += ("module.safetensors", "top_down.safetensors")
_FOLDERS = ("checkpoints", "tensorboard", "held_out", "profile")


def claim(workdir: str | Path, config: ConfigDict) -> Path:
    """Create the folder, or check that it belongs to the same config.

    Any config can claim a folder without a checkpoint, so that a failed start can be corrected. The loop saves the config
    after it has checked the content of data and weights that have moved. Only the first of several processes checks.

    Raises:
      InputError: the folder cannot be written or checkpoints in it not be read, or it holds those of another config (the
        differing fields are listed), or of this config while `config.resume` is False.
    """
    if found := re.search(r"\[[^/]*\]|\\", place := Path(workdir).expanduser().resolve().as_posix()):
        # Orbax takes the path for a pattern, and would leave the parameters out of a checkpoint without a word.
        raise InputError(f"Checkpoints in {place} could not be read, as {found[0]} is a pattern; give another --workdir.")
    folder = _of_run(workdir)
    if jax.process_index():
        return folder
    if has_checkpoint(folder):
        _check_same(folder, config, TO_RESUME, TO_MOVE)
        if not config.resume:
            raise InputError(f"{folder} already holds a run; set --config.resume=True or give another --workdir.")
    return folder


def writable(workdir: str | Path, field: str = "--workdir") -> Path:
    """Create the folder if it is missing; raise InputError, which names `field`, if it cannot be written."""
    if "://" in str(workdir):
        raise InputError(
            f"{field}={workdir} is a remote address; give a folder of a disk with file locks, and copy it there afterwards."
        )
    folder = Path(workdir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written ({error.strerror}); give another {field}.") from error
    return folder


def _of_run(workdir):
    """Return the folder of a run, as from `writable`; InputError if something else has the name of what the run writes."""
    folder = writable(workdir)
    for names, number, is_in_the_way in ((_FILES, errno.EISDIR, Path.is_dir), (_FOLDERS, errno.EEXIST, Path.is_file)):
        for path in filter(is_in_the_way, map(folder.joinpath, names)):
            raise InputError(unwritable(path, OSError(number, os.strerror(number))))
    return folder


@contextlib.contextmanager
def used_alone(workdir: str | Path) -> Iterator[None]:
    """Lock a folder against other runs inside the block; a new folder that stays empty is removed.

    Raises:
      InputError: the folder cannot be written, another run has locked it, or it is that of a sweep.
    """
    is_new = not Path(workdir).expanduser().exists()
    folder = _of_run(workdir)
    if (folder / SWEEP).exists() and not has_checkpoint(folder):
        raise InputError(f"{folder} is the folder of a sweep, and a run needs one of its own; give another --workdir.")
    if jax.process_index():
        yield
        return
    with contextlib.ExitStack() as at_end:
        if is_new:
            at_end.callback(_remove_if_empty, folder)
        try:
            at_end.enter_context(locks.lock(folder / "running"))
        except locks.Held as holder:
            raise InputError(f"{folder} is in use: {holder}; wait for it, or give another --workdir.") from holder
        except OSError as error:
            raise InputError(unwritable(folder, error)) from error
        yield


def _remove_if_empty(folder):
    with contextlib.suppress(OSError):
        folder.rmdir()


def has_checkpoint(workdir: str | Path) -> bool:
    """Return whether the folder holds a finished checkpoint."""
    return any(path.name.isdigit() for path in (Path(workdir).expanduser() / "checkpoints").glob("*"))


def run_near(folder: Path) -> Path | None:
    """Return a run with checkpoints inside of a folder of runs or of a sweep; of a run of a selection, the final run."""
    places = [(folder, "*"), (folder, "final/*"), (folder, "*/final/*"), (folder, "*/*/final/*")]
    places += [(parent, "final/*") for parent in folder.parents[:2]]
    runs = (match.parent for place, pattern in places for match in sorted(place.glob(f"{pattern}/checkpoints")))
    return next(runs, None)


def finished(workdir: str | Path, config: ConfigDict) -> dict | None:
    """Return the result of a finished run of this config, if the folder holds one and the config resumes it."""
    return recorded(workdir, config) if config.resume and has_checkpoint(workdir) else None


def recorded(workdir: str | Path, config: ConfigDict, name: str = "result.json") -> dict | None:
    """Read a JSON file that a run of this config wrote; InputError if another config wrote it.

    Returns None if there is no such file, or if data or weights have moved: the run then has to resume to check their content.
    """
    folder = Path(workdir).expanduser()
    if not (folder / name).exists():
        return None
    _check_same(folder, config, TO_RESUME, TO_MOVE)
    if _differing(folder, config, TO_RESUME):
        return None
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} is damaged ({error}); remove it and give the same command again.") from error


def check_evaluates(workdir: str | Path, config: ConfigDict) -> None:
    """Raise InputError unless the config builds the network whose checkpoint the folder holds."""
    _check_same(Path(workdir).expanduser(), config, TO_EVALUATE, TO_RESUME, TO_MOVE)


def _check_same(folder, config, *changeable):
    """Raise InputError if a config differs from the saved one."""
    if differing := _differing(folder, config, *changeable):
        raise InputError(f"{folder} holds a run of another config ({'; '.join(differing)}); give another --workdir.")


def _differing(folder, config, *changeable):
    """List the fields that differ from the saved config; fields that it lacks have their defaults."""
    path = folder / "config.json"
    fields = schema.of_run(config)
    defaults = {name: field.default for name, field in fields.items()}
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); give another --workdir.") from error
    # Through JSON, which turns tuples into lists.
    old, new = (json.loads(json.dumps(defaults | flat_fields(tree))) for tree in (saved, config.to_dict()))
    fixed = (old.keys() | new.keys()) - {name for name, field in fields.items() if field.may_change in changeable}
    pairs = [(name, old.get(name), new.get(name)) for name in sorted(fixed)]
    as_before = {name: f", set --config.{name}={old[name]}" for name in old.keys() - flat_fields(saved).keys()}
    return [
        f"{name} {before!r} -> {now!r}{as_before.get(name, '')}" for name, before, now in pairs if not _is_same(before, now)
    ]


def _is_same(before, now):
    """Return whether two values are the same, or the new one is a place on the Hub whose commit the run has recorded."""
    return before == now or (isinstance(before, str) and isinstance(now, str) and hub.covers(now, before))


def write_json(path: Path, value: dict) -> None:
    """Write JSON with `replace_file`, in the first process only."""
    if not jax.process_index():
        replace_file(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_correct(folder: Path, correct: np.ndarray) -> None:
    """Write which test images a run classifies correctly, bool `[n]`: a 1 or a 0 for each, in the order of the split."""
    if not jax.process_index():
        replace_file(folder / _CORRECT, "".join("01"[value] for value in correct.astype(int)) + "\n")


def read_correct(folder: Path) -> np.ndarray | None:
    """Read what `write_correct` wrote, bool `[n]`; None for a run of a version that did not."""
    with contextlib.suppress(OSError):
        return np.array([value == "1" for value in (folder / _CORRECT).read_text().strip()])
    return None


def write_predictions(folder: Path, *, logits: np.ndarray, label: np.ndarray, split: str = "") -> None:
    """Write the logits `[n, C]` and labels `[n]` of a split, in its order.

    Args:
      folder: of the run.
      logits, label: of the split.
      split: its name, unless it is the test split of the run (see `is_tested_on`), whose file stays.
    """
    if not jax.process_index():
        content = io.BytesIO()
        np.savez(content, logits=logits, label=label)
        replace_file(folder / (f"logits_{split.replace('/', '_')}.npz" if split else PREDICTIONS), content.getvalue())


def is_tested_on(folder: Path, data: ConfigDict) -> bool:
    """Return whether the test split of some data is that of the run in a folder, or the folder holds no run.

    Data at another place counts as other data: a degraded copy has the same file names.
    """
    try:
        of_run = json.loads((folder / "config.json").read_text())["data"]
    except (OSError, ValueError, KeyError):  # no config of a run
        return True
    return _place(of_run) == _place(data)


def _place(data):
    root = os.path.abspath(os.path.expanduser(data["root"]))
    return root, data.get("image_dir", ""), data["splits"]["test"]


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """Read what `write_predictions` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    path = folder / PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("logits", "label")}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read ({error}); remove it, or evaluate its run again with save_predictions."
        ) from error


def replace_file(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: readers see the old or the new content, never a part, also of several that write at once.

    Raises:
      InputError: the disk is full, or fails.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(unwritable(path, error)) from error


def remove_pictures(folder: Path) -> None:
    """Remove the numbered pictures that an earlier call wrote, `00001_NAME.png` and so on."""
    for picture in folder.glob(f"{'[0-9]' * 5}*_*.png"):
        picture.unlink()


# Errors of the disk rather than of the request.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
# Their texts, as libraries quote them in other exceptions.
_DISK_WORDS = "|".join(re.escape(os.strerror(number)) for number in _DISK)


def disk_fault(error: BaseException | None) -> str | None:
    """Return the text of the disk error that caused an exception, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error.strerror
        if match := re.search(_DISK_WORDS, str(error)):
            return match[0]
        error = error.__cause__ or error.__context__
    return None


# Errors of a path where something else is, by how their sentence goes on.
_IN_THE_WAY = {
    errno.EISDIR: "is a folder, where a file is needed",
    errno.EEXIST: "is a file, where a folder is needed",
    errno.ENOTDIR: "is in no folder, as a part of it is a file",
}


def is_in_the_way(error: OSError) -> bool:
    """Return whether the path of an error is a folder where a file is needed, or a file where a folder is."""
    is_folder = bool(error.filename) and Path(error.filename).is_dir()
    return error.errno in _IN_THE_WAY and is_folder == (error.errno == errno.EISDIR)


def unwritable(path: str | Path, error: OSError) -> str:
    """Return the error message for a file that cannot be written."""
    if error.errno in _IN_THE_WAY:
        return f"{path} {_IN_THE_WAY[error.errno]}: move it away, or give another place."
    return (
        f"{path} cannot be written ({error.strerror}): free some space or mend the disk, and give the same command again; "
        "a run goes on from its last checkpoint."
    )


def circumstances() -> dict:
    """Return the versions, devices and `XLA_FLAGS` that a result states beside its config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {"toast_jax": toast_jax.__version__, "python": platform.python_version(), **versions},
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
