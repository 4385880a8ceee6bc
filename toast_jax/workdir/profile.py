"""Profile some steps of a run, for TensorBoard's profiler or Perfetto."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

log = logging.getLogger(__name__)

_UNTRACED = 3  # steps of a run, in which programs are compiled and queues fill


@contextlib.contextmanager
def traced(folder: Path, steps: int) -> Iterator[Callable]:
    """Trace `steps` steps of a loop, from the fourth on, to `folder/profile`.

    Args:
      folder: of the run.
      steps: 0 traces nothing.

    Yields:
      a function to call after each step was dispatched, with its results.
    """
    seen = 0

    def dispatched(results) -> None:
        nonlocal seen
        seen += 1
        if steps and seen == _UNTRACED:
            jax.block_until_ready(results)
            jax.profiler.start_trace(folder / "profile")
        elif steps and seen == _UNTRACED + steps:
            jax.block_until_ready(results)
            stop()

    def stop() -> None:
        jax.profiler.stop_trace()
        log.info("Traced %d steps; open %s with TensorBoard's profiler or Perfetto.", seen - _UNTRACED, folder / "profile")

    try:
        yield dispatched
    finally:
        if steps and _UNTRACED <= seen < _UNTRACED + steps:  # the run has ended before
            stop()
