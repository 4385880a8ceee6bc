"""Stopping a run from outside: a first Ctrl-C or SIGTERM asks for an end between two steps, a second one ends at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Inside the block the first signal only makes the yielded function return True; the handlers are put back after it."""
    signals = []
    # Handlers can be set in the main thread only. Several processes would stop at different steps, so they end at once.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield lambda: False
        return

    def handler(number, frame):
        signals.append(number)
        for one in _SIGNALS:
            signal.signal(one, before[one])

    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield lambda: bool(signals)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
