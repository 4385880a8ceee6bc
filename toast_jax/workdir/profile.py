"""Profile some steps of a run, for TensorBoard's profiler or Perfetto."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from toast_jax.errors import InputError

log = logging.getLogger(__name__)

_UNTRACED = 3  # first steps, in which programs are compiled and queues fill


@contextlib.contextmanager
def traced(folder: Path, steps: int) -> Iterator[Callable]:
    """Trace `steps` steps of a loop, from the fourth on, to `folder/profile`.

    Args:
      folder: of the run.
      steps: 0 traces nothing.

    Yields:
      a function to call with the results of each step after it was dispatched.

    Raises:
      InputError: this process is being traced already.
    """
    seen, tracing = 0, False

    def dispatched(results) -> None:
        nonlocal seen, tracing
        seen += 1
        if steps and seen == _UNTRACED:
            jax.block_until_ready(results)
            try:
                jax.profiler.start_trace(folder / "profile")
            except RuntimeError as error:
                raise InputError(f"config.profile cannot be used here ({error}); set it to 0.") from error
            tracing = True
        elif steps and seen == _UNTRACED + steps:
            jax.block_until_ready(results)
            stop()

    def stop() -> None:
        nonlocal tracing
        tracing = False
        jax.profiler.stop_trace()
        log.info("Traced %d steps; open %s with TensorBoard's profiler or Perfetto.", seen - _UNTRACED, folder / "profile")

    try:
        yield dispatched
    finally:
        if tracing:  # the run ended earlier
            stop()
