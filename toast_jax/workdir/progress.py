"""Report the progress of a run: its speed, in a bar on a terminal or in plain log lines."""

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
def log_to_file(path: str | Path, but: logging.Logger):
    """Send log messages to a file inside the block; only those of the logger `but` also go to the console."""
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
    """Measures the speed of training steps, without compilation, evaluation and checkpoints, and reports it.

    Args:
      batch_size: how many units a step processes.
      unit: of the speed, such as images.
      start, steps: the step from which the run starts or resumes, and its last step.
      started: `time.perf_counter()` when the run began.
    """

    def __init__(self, batch_size: int, unit: str, start: int, steps: int, started: float):
        self._batch_size, self._unit, self._steps, self._started = batch_size, unit, steps, started
        self._rates: list[float] = []
        self._since = started
        self.first_step: float | None = None  # seconds from the start of the run to the end of its first step
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
        """Count `steps` finished steps; call this as soon as the device has finished them."""
        now = time.perf_counter()
        if self.first_step is None:
            self.first_step = now - self._started
        else:
            self._rates.append(steps * self._batch_size / (now - self._since))
        self._since = now
        if self._bar is not None:
            self._bar.update(steps)

    def resume(self) -> None:
        """Restart the clock; call this after an evaluation or a checkpoint."""
        self._since = time.perf_counter()

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Report the metrics of a step, the loss first, and the speed."""
        names = ["loss", *(name for name in metrics if name not in ("loss", "lr", "grad_norm"))]
        shown = "  ".join(f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in names)
        speed = f"{f'{self._rates[-1]:.1f}' if self._rates else '-'} {self._unit}/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{shown}  {speed}")
        else:
            eta = self._eta(step)
            log.info("step %d/%d  %s  lr %.2e  %s  ETA %s", step, self._steps, shown, metrics["lr"], speed, eta)

    @property
    def median_rate(self) -> float | None:
        """Median of all rates; None before the second tick."""
        return float(np.median(self._rates)) if self._rates else None

    def _eta(self, step):
        """Return the estimated time after `step`, as h:mm:ss."""
        if not self._rates:
            return "-"
        seconds = int((self._steps - step) * self._batch_size / np.median(self._rates))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
