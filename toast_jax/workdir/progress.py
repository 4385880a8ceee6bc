"""What a run tells while it goes on: a bar on a terminal, plain lines anywhere else, and its speed."""

import contextlib
import logging
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger("toast_jax")


@contextlib.contextmanager
def told_in(path: str | Path, but: logging.Logger):
    """While it is open, what is logged goes to a file, and only what `but` logs to the console too."""
    file = logging.FileHandler(path)
    shown = lambda record: record.name == but.name  # noqa: E731
    consoles = list(log.handlers)
    log.addHandler(file)
    for console in consoles:
        console.addFilter(shown)
    try:
        yield
    finally:
        for console in consoles:
            console.removeFilter(shown)
        log.removeHandler(file)
        with contextlib.suppress(OSError):  # a full disk
            file.close()


class Progress:
    """Speed of the training steps alone: compilation, evaluation and checkpoints are left out.

    Args:
      batch_size: what a step counts for, in `unit`.
      unit: what the speed is told in, such as images.
      start, steps: the step the run goes on from, and its last one.
      started: `time.perf_counter()` when the run began.
    """

    def __init__(self, batch_size: int, unit: str, start: int, steps: int, started: float):
        self._batch_size, self._unit, self._steps, self._started = batch_size, unit, steps, started
        self._rates, self._since = [], started
        self.first_step = None  # seconds until the first step was done
        self._open = contextlib.ExitStack()
        self._bar = None
        if sys.stdout.isatty() and not jax.process_index():
            self._bar = self._open.enter_context(
                tqdm(total=steps, initial=start, unit="step", file=sys.stdout, dynamic_ncols=True, leave=False)
            )
            self._open.enter_context(logging_redirect_tqdm([log]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()

    def tick(self, steps: int) -> None:
        """Call after `steps` steps have ended."""
        now = time.perf_counter()
        if self.first_step is None:
            self.first_step = now - self._started
        else:
            self._rates.append(steps * self._batch_size / (now - self._since))
        self._since = now
        if self._bar is not None:
            self._bar.update(steps)

    def resume(self) -> None:
        """Call after something other than a step."""
        self._since = time.perf_counter()

    def tell(self, step: int, numbers: dict[str, float]) -> None:
        """Reports the numbers of a step, of which `loss` comes first, and the speed."""
        names = ["loss", *(name for name in numbers if name not in ("loss", "lr", "grad_norm"))]
        told = "  ".join(f"{name.replace('_', ' ')} {numbers[name]:.4f}" for name in names)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{told}  {self.rate:.1f} {self._unit}/s")
            return
        facts = f"lr {numbers['lr']:.2e}  {self.rate:.1f} {self._unit}/s  ETA {self._eta(step)}"
        log.info("step %d/%d  %s  %s", step, self._steps, told, facts)

    @property
    def rate(self) -> float:
        """Units per second since the last tick but one."""
        return self._rates[-1] if self._rates else 0.0

    @property
    def median_rate(self) -> float | None:
        return float(np.median(self._rates)) if self._rates else None

    def _eta(self, step):
        """Time left for the steps after `step`, as h:mm:ss."""
        if not self._rates:
            return "-"
        seconds = int((self._steps - step) * self._batch_size / np.median(self._rates))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
