"""Data parallelism with parameters and optimizer state sharded over groups of devices, for networks larger than a device.

Devices form a mesh `(data, fsdp)`, and a batch is split over both axes. The step is mapped over `data` alone, as
`parallel.AXIS`; the compiler splits its work over `fsdp` by the sharding of the batch (see `layers.batch`), and gathers the
weights of one layer at a time.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from toast_jax.data.loader import Batch
from toast_jax.devices import parallel
from toast_jax.devices.protocol import Mapped

_BATCH = PartitionSpec(parallel.AXIS, "fsdp")


class Shared:
    """Places arrays and maps steps over groups of `size` devices, as `devices.protocol.Devices`.

    Args:
      size: devices per group; a group may span processes.
      partition: regexes of paths and how a group splits the parameters there; the first match counts (see `Family`).
    """

    def __init__(self, size: int, partition: Sequence[tuple[str, PartitionSpec]]):
        self._partition = partition
        self._mesh = Mesh(np.array(jax.devices()).reshape(-1, size), (parallel.AXIS, "fsdp"))

    def replicate(self, step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Mapped:
        """Map `step(*replicated, batch)` over groups; results are sharded as `place` does."""
        # Not `jax.shard_map` over "data" alone: the compiler rejects its collectives where that axis has one device.
        mapped = jax.vmap(
            step,
            in_axes=(None,) * num_replicated + (0,),
            out_axes=None,
            axis_name=parallel.AXIS,
            spmd_axis_name=parallel.AXIS,
        )

        def on_mesh(*args):
            with jax.sharding.use_abstract_mesh(self._mesh.abstract_mesh):
                results = mapped(*args)
            return jax.lax.with_sharding_constraint(results, self._shardings(results))

        return jax.jit(on_mesh, donate_argnums=donate)

    def place(self, tree):
        """Place a tree on every group, each leaf split as the parameter whose path ends its own; others are copied."""
        return jax.tree.map(_put, tree, self._shardings(tree))

    def put(self, path: str, array: np.ndarray) -> jax.Array:
        """Place one parameter as `place` does."""
        return _put(array, self._sharding(path))

    def shard(self, batch: Batch) -> Batch:
        """Split this process's batch over groups and within them, each array `[b, ...]` to `[groups, b / groups, ...]`."""
        groups = max(1, self._mesh.shape[parallel.AXIS] // jax.process_count())
        split = NamedSharding(self._mesh, _BATCH)

        def split_array(array):
            return jax.make_array_from_process_local_data(split, array.reshape(groups, -1, *array.shape[1:]))

        return jax.tree.map(split_array, batch)

    def sharded(self, batches: Generator[Batch]) -> Iterator[dict]:
        """Split each batch with `shard`; see `parallel.sharded`."""
        with contextlib.closing(batches):
            yield from map(self.shard, batches)

    def placed_shapes(self, tree):
        """Return the shapes of a tree with the sharding that `place` gives, to compile a step without arrays."""
        return jax.tree.map(_shape, tree, self._shardings(tree))

    def split_shapes(self, batch: dict) -> dict:
        """Return the shapes of a batch `[groups, b / groups, ...]` with the sharding that `shard` gives."""
        return jax.tree.map(lambda leaf: _shape(leaf, NamedSharding(self._mesh, _BATCH)), batch)

    def _shardings(self, tree):
        return jax.tree_util.tree_map_with_path(lambda keys, _: self._sharding(_parameter(keys)), tree)

    def _sharding(self, path):
        """The sharding of the parameter at a path."""
        return NamedSharding(self._mesh, next(spec for regex, spec in self._partition if re.fullmatch(regex, path)))


def _parameter(keys):
    """The path of the parameter that a leaf belongs to: the dictionaries it lies in, inside of any other container."""
    names = []
    for key in reversed(keys):
        if not isinstance(key, DictKey):
            break
        names.append(key.key)
    return "/".join(reversed(names))


def _put(array, sharding):
    if sharding.is_fully_addressable or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, sharding)
    array = np.asarray(array)  # `device_put` would compare it across processes first
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _shape(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
