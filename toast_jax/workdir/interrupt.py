"""Stop a run on request: the first Ctrl-C or SIGTERM stops it after the current step, the second one at once.

With several processes a SIGTERM to any one of them stops all after the same step.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Turn the first signal into a request: the yielded function then returns True.

    The signal, or the end of the block, restores the earlier handlers. Nested blocks (a run in a sweep) share the request. With
    several processes, each has to call the function once per step: JAX then handles SIGTERM and agrees on the last step.
    """
    if jax.process_count() > 1:
        steps = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(steps))
        return
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield lambda: False
        return
    handler = _Handler()
    for number in _SIGNALS:
        signal.signal(number, handler)
    try:
        yield handler.asked
    finally:
        handler.restore()


class _Handler:
    """Records the first signal, restores the earlier handlers, and passes the signal to an outer block."""

    def __init__(self):
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        outer = self._before[signal.SIGINT]
        self._outer = outer if isinstance(outer, _Handler) else None
        self._has_come = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._has_come = True
        self.restore()
        if self._outer:
            self._outer(number, frame)

    def asked(self) -> bool:
        return self._has_come or (self._outer is not None and self._outer.asked())

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
