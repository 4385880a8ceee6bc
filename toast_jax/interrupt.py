"""Stopping a run from outside: a first Ctrl-C or SIGTERM asks for an end between two steps, a second one ends at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Inside the block the first signal only makes the yielded function return True; the handlers are put back after it.

    A block inside another, such as a run of a sweep, tells the outer one, and heeds what the outer one was told before.
    """
    signals = []
    # Handlers can be set in the main thread only. Several processes would stop at different steps, so they end at once.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
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
