"""Running a per-device step on groups of devices that share what is frozen, for networks larger than a device.

`Shared` offers what the module `parallel` does. Devices are a mesh `(data, fsdp)`. Of a batch, each gets its share; the step is
mapped over `data` alone, as `parallel.AXIS`, and the compiler splits its work over `fsdp`: it gathers the weights of one layer
at a time. The tuned parameters and all that belongs to them are the same on every device.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from toast_jax import trees
from toast_jax.devices import parallel


class Shared:
    """Placement and mapping over groups of `size` devices, which divides the number of devices of a host.

    `partition` says how parameters are split over a group: the first regex that matches a whole path decides (see `Family`).
    """

    def __init__(self, size: int, partition: Sequence[tuple[str, PartitionSpec]]):
        self._partition = partition
        self._mesh = Mesh(np.array(jax.devices()).reshape(-1, size), (parallel.AXIS, "fsdp"))

    def replicate(self, step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Callable:
        """Maps `step(*replicated, batch)`, see `parallel.replicate`; `replicated` may be spread over a group, too."""
        # Not `jax.shard_map` over "data" alone: the compiler refuses its collectives where that axis has one device.
        mapped = jax.vmap(
            step,
            in_axes=(None,) * num_replicated + (0,),
            out_axes=None,
            axis_name=parallel.AXIS,
            spmd_axis_name=parallel.AXIS,
        )
        return jax.jit(mapped, donate_argnums=donate, out_shardings=self._sharding(PartitionSpec()))

    def place(self, tree):
        """Puts a tree on every device."""
        return jax.device_put(tree, self._sharding(PartitionSpec()))

    def spread(self, tree: dict) -> dict:
        """Puts a tree of parameters on every group, each split as `partition` says."""
        flat = trees.flat(tree)
        return trees.nested({path: None if leaf is None else self.put(path, leaf) for path, leaf in flat.items()})

    def put(self, path: str, array: np.ndarray) -> jax.Array:
        """`spread` of one parameter."""
        return jax.device_put(array, self.sharding(path))

    def sharding(self, path: str) -> NamedSharding:
        """Where the parameter at a path is kept while it is frozen."""
        return self._sharding(next(spec for regex, spec in self._partition if re.fullmatch(regex, path)))

    def shard(self, batch: dict) -> dict:
        """Splits this host's batch: every array `[b, ...]` becomes `[groups, b / groups, ...]`, over groups and in them."""
        groups = self._mesh.shape[parallel.AXIS] // jax.process_count()
        split = self._sharding(PartitionSpec(parallel.AXIS, "fsdp"))

        def one(array):
            return jax.make_array_from_process_local_data(split, array.reshape(groups, -1, *array.shape[1:]))

        return jax.tree.map(one, batch)

    def sharded(self, batches: Generator[dict]) -> Iterator[dict]:
        """`shard`s each batch; see `parallel.sharded`."""
        with contextlib.closing(batches):
            yield from map(self.shard, batches)

    def _sharding(self, spec):
        return NamedSharding(self._mesh, spec)
