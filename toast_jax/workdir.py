"""The folder of a run: that it can be written, whose it is, and what it says about itself."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax
from ml_collections import ConfigDict

import toast_jax
from toast_jax.errors import InputError

# Fields that may differ between the parts of one run: they change when and how, not what is computed.
_FREE = {"task", "resume", "log_every", "data.workers", "data.verify"}


def claim(workdir: str | Path, config: ConfigDict) -> Path:
    """Creates the folder, or checks that it belongs to the same config, and saves the config in it.

    Raises:
      InputError: the folder cannot be written, holds another config (the differing fields are listed), or holds a run while
        `config.resume` is False.
    """
    folder = Path(workdir).expanduser()
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("permission denied")
        if path.exists():
            _check_same(path, config)
            if not config.resume:
                raise InputError(f"{folder} already holds a run; set --config.resume=True or give another --workdir.")
        else:
            write_json(path, config.to_dict())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"The folder {folder} cannot be written ({reason}); give another --workdir.") from error
    return folder


def _check_same(path, config):
    try:
        ours, theirs = _flat(json.loads(json.dumps(config.to_dict()))), _flat(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); give another --workdir.") from error
    fields = sorted((ours.keys() | theirs.keys()) - _FREE)
    pairs = [(name, theirs.get(name), ours.get(name)) for name in fields]
    if differing := [f"{name} {old!r} -> {new!r}" for name, old, new in pairs if old != new]:
        raise InputError(f"{path.parent} holds a run of another config ({'; '.join(differing)}); give another --workdir.")


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def write_json(path: Path, value: dict) -> None:
    """Writes a file that is either the old one or the new one, never half of it; only the first process does."""
    if jax.process_index():
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def circumstances() -> dict:
    """What a result has to state beside its config: versions and devices."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {"toast_jax": toast_jax.__version__, "python": platform.python_version(), **versions},
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
    }
