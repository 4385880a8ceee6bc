"""Stops a run on request: the first Ctrl-C or SIGTERM stops it after the current step, the second one at once.

With several processes a SIGTERM to any one of them stops all after the same step.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Turns the first signal into a request: inside the block the yielded function returns True once it came.

    That signal, or the end of the block, restores the earlier handlers. Nested blocks (a run in a sweep) share the request.
    Each of several processes has to call the function once a step: JAX then handles SIGTERM and agrees on the last step.
    """
    signals = []
    if jax.process_count() > 1:
        steps = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(steps))
        return
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield lambda: False
        return

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    outer = before[signal.SIGINT]

    def handler(number, frame):
        signals.append(number)
        for caught, old in before.items():
            signal.signal(caught, old)
        if hasattr(outer, "asked"):
            outer(number, frame)

    handler.asked = lambda: bool(signals) or (hasattr(outer, "asked") and outer.asked())
    for number in _SIGNALS:
        signal.signal(number, handler)
    try:
        yield handler.asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)
