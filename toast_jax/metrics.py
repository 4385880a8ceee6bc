"""Where the numbers of a run go: the console, `metrics.jsonl` and TensorBoard, all from the first process."""

import json
import math
from pathlib import Path

import jax
from tensorboardX import SummaryWriter


class Writer:
    """Appends one line of JSON per call to `WORKDIR/metrics.jsonl`, and the same numbers to `WORKDIR/tensorboard`.

    Args:
      workdir: the run's folder.
      start_step: lines of later steps, left by a run that was killed after its last checkpoint, are dropped first.
    """

    def __init__(self, workdir: str | Path, start_step: int):
        self._file = self._board = None
        if jax.process_index():
            return
        path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= start_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Records `numbers` of a step; numbers that are not finite become null, as JSON has none."""
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


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
