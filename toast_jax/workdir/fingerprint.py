"""Fingerprints of the inputs that a run does not save: training data, frozen parameters and initial parameters."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.errors import InputError

_LARGE = 2**27  # elements; larger arrays are not converted to float32 as a whole
# Relative difference of moments: rounding to half precision stays below, another backbone is far above.
_TOLERANCE = 1e-2
_SAMPLE = 2**16  # least number of elements of a large array to project; at most twice as many are


def of_source(source) -> dict:
    """Count the examples of a source and hash its fields: file names, labels, classes, positions.

    File names are relative to the folder that contains all files, so that data may move. Pixels are not read. For prepared TFDS
    data, `dataset_info.json`, in which TFDS lists the files, is hashed. A source with a `digest` of its own is not read.
    """
    content = source.digest() if hasattr(source, "digest") else _hashed(source, _relative).hexdigest()
    return {"count": len(source), "content": content}


def _hashed(source, place: Callable) -> "hashlib._Hash":
    """Hash the fields of a source, and `place(...)` of those that name files and folders."""
    digest = hashlib.sha256()
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if field.name in ("paths", "masks", "directory"):
            value = place(value)
        if dataclasses.is_dataclass(value):
            digest.update(_hashed(value, place).digest())
        else:
            digest.update(np.ascontiguousarray(value).data if isinstance(value, np.ndarray) else repr(value).encode())
    if directory := getattr(source, "directory", None):
        digest.update((Path(directory) / "dataset_info.json").read_bytes())
    return digest


def _relative(place: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Make paths of files relative to the folder that contains all of them; a folder becomes \"\"."""
    if isinstance(place, str):
        return ""
    paths = [os.path.abspath(path) for path in place]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return tuple(path[len(folder) :].lstrip("/") for path in paths)


def _moved_back(place: str | tuple[str, ...], root: str, former_root: str) -> str | tuple[str, ...]:
    """Undo a move of paths from `former_root` to `root`."""
    here, there = (os.path.expanduser(folder).rstrip("/") for folder in (root, former_root))

    def back(path: str) -> str:
        return there + path[len(here) :] if path.startswith(f"{here}/") else path

    return back(place) if isinstance(place, str) else tuple(map(back, place))


def of_frozen(frozen: dict) -> dict[str, list[float]]:
    """Return the `moments` of every frozen parameter, by path."""
    return {path: moments(leaf) for path, leaf in trees.flat(trees.prune(frozen)).items()}


def of_start(tuned: dict) -> dict[str, list[float]]:
    """Return, by path, the `moments` of every tuned parameter before the first step, and a projection of it.

    The projection, on a fixed direction, differs between arrays of equal moments, such as those drawn from two seeds.
    """
    return {path: [*moments(leaf), _projection(leaf)] for path, leaf in trees.flat(trees.prune(tuned)).items()}


def _projection(leaf) -> float:
    sample = np.asarray(leaf.ravel()[:: max(1, leaf.size // _SAMPLE)], np.float32)
    return float(sample @ np.cos(np.arange(sample.size)) * np.sqrt(2 / sample.size))


def moments(leaf) -> list[float]:
    """Return the mean and the root mean square of an array, which stays on its accelerator."""
    if leaf.size > _LARGE or is_split(leaf) or not _is_on_host(leaf):
        return np.asarray(_moments_on_device(leaf), float).tolist()
    array = np.ravel(np.asarray(leaf, np.float32))
    return [float(array.mean()), float(np.sqrt(array @ array / array.size))]


def is_split(leaf) -> bool:
    """Return whether no device holds the whole array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


def _is_on_host(leaf):
    return not isinstance(leaf, jax.Array) or all(device.platform == "cpu" for device in leaf.devices())


@jax.jit
def _moments_on_device(leaf):
    leaf = leaf.astype(jnp.float32)
    return jnp.stack([jnp.mean(leaf), jnp.sqrt(jnp.mean(jnp.square(leaf)))])


def differing(current: dict, saved: dict) -> str | None:
    """Return the first path whose numbers differ by more than rounding or are missing on one side, or None.

    Args:
      current, saved: from `of_frozen` or `of_start`.
    """
    missing = [np.inf] * len(next(iter([*saved.values(), *current.values()]), ()))
    for path in sorted(current.keys() | saved.keys()):
        pair = np.array([saved.get(path, missing), current.get(path, missing)])
        if not np.abs(pair[0] - pair[1]).max() <= _TOLERANCE * pair[:, 1].max():
            return path
    return None


def check_source(source, saved: dict, folder: str | Path, root: str = "", former_root: str = "") -> None:
    """Raise InputError if the training data has changed since the run in `folder` began.

    Args:
      source: the training data.
      saved: `of_source` when the run began; version 0.1 hashed whole paths instead, as `sha256`.
      folder: of the run.
      root, former_root: folder of the data, now and when the run began.
    """
    current = of_source(source)
    if "content" not in saved:
        old = _hashed(source, lambda place: _moved_back(place, root, former_root))
        current = {"count": current["count"], "sha256": old.hexdigest()}
    if current != saved:
        raise InputError(
            f"The training data has changed since the run in {folder} began ({saved['count']:,} examples then, "
            f"{current['count']:,} now, or others): put it back as it was, or begin anew in another --workdir."
        )


def check_frozen(current: dict, saved: dict, folder: str | Path, weights: str) -> None:
    """Raise InputError if frozen parameters (see `of_frozen`) differ from those of the run by more than rounding."""
    if path := differing(current, saved):
        raise InputError(
            f"The run in {folder} was tuned on another backbone than {weights} holds now ({path} differs); name the file it "
            "began with in --config.backbone.weights, or put that file back."
        )


def check_start(current: dict, meta: dict, folder: str | Path, config: ConfigDict) -> None:
    """Raise InputError if a run that resumes, or is evaluated on the way from its start, would begin from other parameters.

    Args:
      current: `of_start` of this command.
      meta: of the checkpoint. Version 0.1 saved no `start`; then the places that the parameters came from must be the same.
      folder: of the run.
      config: of this command.
    """
    former = ConfigDict(meta["config"])
    if "start" in meta:
        path = differing(current, meta["start"])
    else:
        all_tuned = not meta["frozen"]
        path = "top_down" if former.top_down != config.top_down else ""
        path = "backbone" if all_tuned and former.backbone.weights != config.backbone.weights else path
    if path:
        field, module = ("module", former.module) if former.get("module") else ("top_down", former.top_down)
        raise InputError(
            f"The run in {folder} began from other parameters than --config.backbone.weights and --config.{field} hold now "
            f"({path} differs); it began with {former.backbone.weights} and {module or 'no module'}: name these, or "
            "give another --workdir."
        )
