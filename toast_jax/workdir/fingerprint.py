"""Fingerprints of what a run needs but does not save: its training data and its frozen parameters."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.errors import InputError

_LARGE = 2**27  # elements from which on an array is reduced on the device instead of the host, as split arrays are
# Relative difference of moments: half precision stays below, another backbone is far above.
_TOLERANCE = 1e-2


def of_source(source) -> dict:
    """Count the examples of a source and hash its fields: file names, labels, classes, positions.

    Pixels are not read. For prepared TFDS data the hash covers `dataset_info.json`, where TFDS lists the files.
    """
    return {"count": len(source), "sha256": _hashed(source).hexdigest()}


def _hashed(source) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if dataclasses.is_dataclass(value):
            digest.update(_hashed(value).digest())
        else:
            digest.update(np.ascontiguousarray(value).data if isinstance(value, np.ndarray) else repr(value).encode())
    if directory := getattr(source, "directory", None):
        digest.update((Path(directory) / "dataset_info.json").read_bytes())
    return digest


def of_frozen(frozen: dict) -> dict[str, list[float]]:
    """Return the `moments` of every frozen parameter, by path."""
    return {path: moments(leaf) for path, leaf in trees.flat(trees.prune(frozen)).items()}


def moments(leaf) -> list[float]:
    """Returns the mean and the root mean square of an array."""
    if leaf.size > _LARGE or is_split(leaf):
        return np.asarray(_moments_on_device(leaf), float).tolist()
    array = np.ravel(np.asarray(leaf, np.float32))
    return [float(array.mean()), float(np.sqrt(array @ array / array.size))]


def is_split(leaf) -> bool:
    """Returns whether no device holds the whole array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


@jax.jit
def _moments_on_device(leaf):
    leaf = leaf.astype(jnp.float32)
    return jnp.stack([jnp.mean(leaf), jnp.sqrt(jnp.mean(jnp.square(leaf)))])


def differing(current: dict, saved: dict) -> str | None:
    """Return the first path whose `moments` differ by more than rounding or are missing on one side, or None."""
    missing = (np.inf, np.inf)
    for path in sorted(current.keys() | saved.keys()):
        pair = np.array([saved.get(path, missing), current.get(path, missing)])
        if not np.abs(pair[0] - pair[1]).max() <= _TOLERANCE * pair[:, 1].max():
            return path
    return None


def check_source(current: dict, saved: dict, folder: str | Path) -> None:
    """Raise InputError if the training data (see `of_source`) has changed since the run in `folder` began."""
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
