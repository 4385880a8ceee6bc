"""What a run rests on but does not save: its training data and its frozen parameters, told from others by a few numbers."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from toast_jax import trees
from toast_jax.errors import InputError

_LARGE = 2**27  # numbers of an array that are not brought to the host
# Relative difference of an array's moments that half precision may cause, and another backbone exceeds by far.
_TOLERANCE = 1e-2


def of_source(source) -> dict:
    """How many examples a source has, and a hash of what it says of them: names, labels, classes, where they are.

    Pixels are not read. Of prepared TFDS data what TFDS has noted about its files counts.
    """
    return {"count": len(source), "sha256": _hashed(source).hexdigest()}


def _hashed(source) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for field in dataclasses.fields(source):
        value = getattr(source, field.name)
        if dataclasses.is_dataclass(value):
            digest.update(_hashed(value).digest())
        else:
            digest.update(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else repr(value).encode())
    if directory := getattr(source, "directory", None):
        digest.update((Path(directory) / "dataset_info.json").read_bytes())
    return digest


def of_frozen(frozen: dict) -> dict[str, list[float]]:
    """Mean and root mean square of every frozen parameter, by path."""
    return {path: moments(leaf) for path, leaf in trees.flat(trees.prune(frozen)).items()}


def moments(leaf) -> list[float]:
    """Mean and root mean square of an array."""
    if leaf.size > _LARGE:
        return np.asarray(_moments_on_device(leaf), float).tolist()
    array = np.ravel(np.asarray(leaf, np.float32))
    return [float(array.mean()), float(np.sqrt(array @ array / array.size))]


@jax.jit
def _moments_on_device(leaf):
    leaf = leaf.astype(jnp.float32)
    return jnp.stack([jnp.mean(leaf), jnp.sqrt(jnp.mean(jnp.square(leaf)))])


def differing(ours: dict, theirs: dict) -> str | None:
    """The first path whose `moments` differ by more than rounding, or that one side lacks; None if there is none."""
    for path in sorted(ours.keys() | theirs.keys()):
        pair = np.array([theirs.get(path, (np.inf, np.inf)), ours.get(path, (np.inf, np.inf))])
        if not np.abs(pair[0] - pair[1]).max() <= _TOLERANCE * pair[:, 1].max():
            return path
    return None


def check_source(ours: dict, theirs: dict, folder: str | Path) -> None:
    """Raises InputError unless the training data (see `of_source`) is what it was when the run in `folder` began."""
    if ours != theirs:
        raise InputError(
            f"The training data has changed since the run in {folder} began ({theirs['count']:,} examples then, "
            f"{ours['count']:,} now, or others): put it back as it was, or begin anew in another --workdir."
        )


def check_frozen(ours: dict, theirs: dict, folder: str | Path, weights: str) -> None:
    """Raises InputError unless the frozen parameters (see `of_frozen`) are those of the run in `folder`, but for rounding."""
    if path := differing(ours, theirs):
        raise InputError(
            f"The run in {folder} was tuned on another backbone than {weights} holds now ({path} differs); name the file it "
            "began with in --config.backbone.weights, or put that file back."
        )
