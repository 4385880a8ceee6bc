"""Stopping a run from outside: a first Ctrl-C or SIGTERM asks for an end between two steps, a second one ends at once.

Of several processes any one may be asked, by SIGTERM, and all end after the same step.
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
    """Inside the block the first signal only makes the yielded function return True; the handlers are put back after it.

    Several processes call it once a step each; JAX, which has SIGTERM then, agrees with all on the step to end after.

    A block inside another, such as a run of a sweep, tells the outer one, and heeds what the outer one was told before.
    """
    signals = []
    if jax.process_count() > 1:
        steps = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(steps))
        return
    if threading.current_thread() is not threading.main_thread():  # handlers can be set in that one only
        yield lambda: False
        return

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    outer = before[signal.SIGINT]

    def handler(number, frame):
        signals.append(number)
        for one in _SIGNALS:
            signal.signal(one, before[one])
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
