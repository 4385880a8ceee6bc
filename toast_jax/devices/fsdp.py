"""Data parallelism with frozen parameters sharded over groups of devices, for networks larger than a device.

`Shared` has the functions of the module `parallel`. Devices form a mesh `(data, fsdp)`, and a batch is split over all of them.
The step is mapped over `data` alone, as `parallel.AXIS`; the compiler splits its work over `fsdp` and gathers the weights of
one layer at a time. Tuned parameters and their optimizer state are replicated.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from toast_jax import trees
from toast_jax.data.loader import Batch
from toast_jax.devices import parallel


class Shared:
    """Places arrays and maps steps over groups of `size` devices.

    Args:
      size: devices per group; divides the number of devices of a host.
      partition: regexes of paths and how a group splits the parameters there; the first match counts (see `Family`).
    """

    def __init__(self, size: int, partition: Sequence[tuple[str, PartitionSpec]]):
        self._partition = partition
        self._mesh = Mesh(np.array(jax.devices()).reshape(-1, size), (parallel.AXIS, "fsdp"))

    def replicate(self, step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Callable:
        """Map `step(*replicated, batch)`, see `parallel.replicate`; parameters may also come from `spread`."""
        # Not `jax.shard_map` over "data" alone: the compiler rejects its collectives where that axis has one device.
        mapped = jax.vmap(
            step,
            in_axes=(None,) * num_replicated + (0,),
            out_axes=None,
            axis_name=parallel.AXIS,
            spmd_axis_name=parallel.AXIS,
        )
        return jax.jit(mapped, donate_argnums=donate, out_shardings=self._sharding(PartitionSpec()))

    def place(self, tree):
        """Copy a tree to every device."""
        return jax.device_put(tree, self._sharding(PartitionSpec()))

    def spread(self, tree: dict) -> dict:
        """Place a tree of frozen parameters on every group, split as `partition` says."""
        flat = trees.flat(tree)
        return trees.nested({path: None if leaf is None else self.put(path, leaf) for path, leaf in flat.items()})

    def put(self, path: str, array: np.ndarray) -> jax.Array:
        """Place one parameter as `spread` does."""
        return jax.device_put(array, self.sharding(path))

    def sharding(self, path: str) -> NamedSharding:
        """Return the sharding of the frozen parameter at a path."""
        return self._sharding(next(spec for regex, spec in self._partition if re.fullmatch(regex, path)))

    def shard(self, batch: dict) -> dict:
        """Split this host's batch over groups and within them, each array `[b, ...]` to `[groups, b / groups, ...]`."""
        groups = self._mesh.shape[parallel.AXIS] // jax.process_count()
        split = self._sharding(PartitionSpec(parallel.AXIS, "fsdp"))

        def split_array(array):
            return jax.make_array_from_process_local_data(split, array.reshape(groups, -1, *array.shape[1:]))

        return jax.tree.map(split_array, batch)

    def sharded(self, batches: Generator[Batch]) -> Iterator[dict]:
        """Split each batch with `shard`; see `parallel.sharded`."""
        with contextlib.closing(batches):
            yield from map(self.shard, batches)

    def _sharding(self, spec):
        return NamedSharding(self._mesh, spec)
