"""Where the numbers of a run go: the console, `metrics.jsonl` and TensorBoard, all from the first process."""

import contextlib
import json
import logging
import math
import time
from pathlib import Path

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary

from toast_jax.workdir.run_folder import replace_file

log = logging.getLogger(__name__)


class Writer:
    """Appends one line of JSON per call to `WORKDIR/metrics.jsonl`, and the same numbers to `WORKDIR/tensorboard`.

    A disk that fails while a run goes on does not end it: that is told once, and what is written later may be there again.

    Args:
      workdir: the run's folder.
      start_step: lines of later steps, left by a run that was killed after its last checkpoint, are dropped first.

    Raises:
      InputError: nothing can be written from the start.
    """

    def __init__(self, workdir: str | Path, start_step: int):
        self._open, self._file, self._has_failed = contextlib.ExitStack(), None, False
        if jax.process_index():
            return
        path, board = Path(workdir) / "metrics.jsonl", Path(workdir) / "tensorboard"
        kept = [line for line in _lines(path) if line["step"] <= start_step]
        replace_file(path, "".join(json.dumps(line) + "\n" for line in kept))
        # A run that was killed between its last checkpoint and its result is evaluated again.
        self._there = {(start_step, frozenset(line)) for line in kept if line["step"] == start_step}
        board.mkdir(exist_ok=True)
        self._file = path.open("a", buffering=1)
        # Not its `SummaryWriter`, whose thread dies of a full disk and leaves the run waiting for it.
        self._board = EventsWriter(str(board / "events"))
        for file in (self._file, self._board):
            self._open.callback(file.close)
        # TensorBoard forgets what is later than this.
        self._board.write_event(_event(start_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Records `numbers` of a step; numbers that are not finite become null, as JSON has none."""
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line = {"step": step, **finite}
        if (step, frozenset(line)) in self._there:
            return
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        with self._told():
            self._file.write(json.dumps(line) + "\n")
        with self._told():
            self._board.write_event(_event(step, summary=Summary(value=values)))
            self._board.flush()

    @contextlib.contextmanager
    def _told(self):
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                log.warning("The numbers of the run cannot be written (%s); it goes on without.", error.strerror)
            self._has_failed = True

    def close(self) -> None:
        with self._told():
            self._open.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _event(step, **what):
    return Event(wall_time=time.time(), step=step, **what)


def _lines(path: Path) -> list[dict]:
    """The complete lines of a file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
