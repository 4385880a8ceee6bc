"""Running a per-device step on every device: data parallelism with replicated parameters."""

import contextlib
from collections.abc import Callable, Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def replicate(step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Callable:
    """Maps `step(*replicated, batch)` over all devices of all hosts with `jax.pmap`.

    The first `num_replicated` arguments and all results are the same on every device: the step has to make them so, with
    `lax.pmean` or `lax.psum` over the axis `parallel.AXIS`. Place the arguments with `place` beforehand; the call is slow else.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=(None,) * num_replicated + (0,), out_axes=None, donate_argnums=donate)


def place(tree):
    """Puts a tree on every local device, where `replicate`d steps want it.

    The result may share memory with `tree`: after it was donated to a step, `tree` is gone too.
    """
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def spread(tree):
    """`place` for parameters that no step changes; `fsdp` splits them."""
    return place(tree)


def put(path: str, array: np.ndarray) -> jax.Array:
    """Puts the parameter at a path on a device, from where `spread` takes it."""
    return jnp.asarray(array)


def shard(batch: dict) -> dict:
    """Splits this host's batch over its devices: every array `[b, ...]` becomes `[devices, b / devices, ...]`, on them."""
    mesh = _mesh()
    split = jax.tree.map(lambda array: array.reshape(mesh.size, -1, *array.shape[1:]), batch)
    return jax.device_put(split, NamedSharding(mesh, PartitionSpec(AXIS)))


def sharded(batches: Generator[dict]) -> Iterator[dict]:
    """`shard`s each batch; closes `batches`, which stops its threads, when this iterator ends or is dropped.

    A step returns before it is computed, so the next batch is made and copied while the device works.
    """
    with contextlib.closing(batches):
        yield from map(shard, batches)


def fetch(tree):
    """Brings a replicated tree to the host as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _mesh():
    return Mesh(np.array(jax.local_devices()), (AXIS,))
