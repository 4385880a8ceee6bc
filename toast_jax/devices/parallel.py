"""Data parallelism: a step mapped over all devices, with replicated parameters; see `protocol.Devices`."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from toast_jax.devices.protocol import Mapped
from toast_jax.model.layers.batch_norm import AXIS


def replicate(step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Mapped:
    """Map `step(*replicated, batch)` over all devices of all hosts with `jax.pmap`; see `protocol.Devices`."""
    return jax.pmap(step, axis_name=AXIS, in_axes=(None,) * num_replicated + (0,), out_axes=None, donate_argnums=donate)


def place(tree):
    """Copy a tree to every local device, as `replicate`d steps expect it.

    The result may share memory with `tree`, so donating it to a step deletes `tree` too.
    """
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def put(path: str, array: np.ndarray) -> jax.Array:
    """Put the parameter at a path on one device; `place` copies it to the others."""
    return jnp.asarray(array)


def shard(batch: dict) -> dict:
    """Split this host's batch over its devices, each array `[b, ...]` to `[devices, b / devices, ...]`."""
    mesh = _mesh()
    split = jax.tree.map(lambda array: array.reshape(mesh.size, -1, *array.shape[1:]), batch)
    return jax.device_put(split, NamedSharding(mesh, PartitionSpec(AXIS)))


def split(array: jax.Array | np.ndarray) -> jax.Array:
    """Split an array by its leading axis over this host's devices, for programs that JAX partitions by their arguments."""
    return jax.device_put(array, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def placed_shapes(tree):
    """Return the shapes of a tree with the sharding that `place` gives, to compile a step before its arrays exist."""
    return _shapes(tree, PartitionSpec())


def split_shapes(batch: dict) -> dict:
    """Return the shapes of this host's batch `[b, ...]` with the split and the sharding that `shard` gives."""
    devices = _mesh().size
    split = lambda leaf: jax.ShapeDtypeStruct((devices, leaf.shape[0] // devices, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    return _shapes(jax.tree.map(split, batch), PartitionSpec(AXIS))


def _shapes(tree, spec):
    sharding = NamedSharding(_mesh(), spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def take(arrays: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """Gather rows of arrays that `place` has put on every device.

    Args:
      arrays: each `[n, ...]`.
      rows: indices of a batch, from `shard`, `[devices, b]`.

    Returns:
      arrays `[devices, b, ...]`, split as from `shard`.
    """
    return _take(_mesh())(dict(arrays), rows)


@functools.cache
def _take(mesh):
    gather = lambda arrays, rows: jax.tree.map(lambda array: array[rows], arrays)  # noqa: E731
    return jax.jit(gather, out_shardings=NamedSharding(mesh, PartitionSpec(AXIS)))


def sharded(batches: Generator[dict]) -> Iterator[dict]:
    """Split each batch with `shard`; close `batches`, which stops its threads, at the end.

    Dispatch is asynchronous, so the next batch is made and copied while the devices compute.
    """
    with contextlib.closing(batches):
        yield from map(shard, batches)


def fetch(tree):
    """Copy a tree to the host as NumPy arrays; all processes have to call it if leaves are split over processes."""
    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(_whole, tree)))


def _whole(leaf):
    """Gather a leaf of which this process has only a part."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def _mesh():
    return Mesh(np.array(jax.local_devices()), (AXIS,))
