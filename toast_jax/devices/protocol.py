"""What a run asks of its devices: to hold arrays, to split batches and to compute steps."""

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import jax
import numpy as np


class Mapped(Protocol):
    """A step mapped over devices, compiled at its first call unless `programs.compile_ahead` has."""

    def __call__(self, *args) -> Any: ...

    def lower(self, *args) -> jax.stages.Lowered:
        """Trace the step for arguments, or for their shapes, to compile it ahead of its first call."""


class Devices(Protocol):
    """Places arrays and maps steps over devices.

    The module `parallel` keeps parameters whole on every device; `fsdp.Shared` splits them. Both split batches by example.
    """

    def replicate(self, step: Callable, num_replicated: int, donate: tuple[int, ...] = ()) -> Mapped:
        """Map `step(*replicated, batch)` over all devices of all processes.

        Args:
          step: it makes its results the same on the whole axis `parallel.AXIS` with `lax.pmean` or `lax.psum`.
          num_replicated: number of leading arguments, parameters and states; put them on devices with `place` first.
          donate: indices of arguments whose memory the results may reuse.

        Returns:
          the mapped step, whose last argument comes from `shard`. Its results are placed as by `place`.
        """

    def place(self, tree):
        """Put parameters, or a state that contains some, on the devices; may share memory with `tree`."""

    def put(self, path: str, array: np.ndarray) -> jax.Array:
        """Put the parameter at a path on its devices as it is read from a file."""

    def shard(self, batch: dict) -> dict:
        """Split this process's batch by example, each array `[b, ...]` to `[shards, b / shards, ...]`."""

    def sharded(self, batches: Generator[dict]) -> Iterator[dict]:
        """Split each batch with `shard`; close `batches` at the end, which stops its threads."""
