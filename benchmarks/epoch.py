"""Time whole epochs of a run, from JPEG files to checkpoints, and its steps alone.

    python -m benchmarks.epoch --backbone=vit_ti16 --methods linear lora toast

Writes photo-sized JPEG files (500 x 375) and runs `main.py` on them with random weights. Steps on a batch in memory are timed
before and after the run; the difference from training is the cost of the input pipeline. An epoch is timed from the end of one
evaluation to the end of the next.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import pipeline, steps

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_ti16")
    parser.add_argument("--methods", nargs="*", default=["linear", "lora", "toast"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=512, help="training images; an eighth as many are evaluated")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs, after one that is not timed")
    args = parser.parse_args()
    batch, rows = steps.images(args.batch), []
    with tempfile.TemporaryDirectory() as folder:
        for split, count in {"train": args.images, "val": args.images // 8}.items():
            pipeline.write(Path(folder) / "data" / split, count)
        for name in args.methods:
            case = steps.Case(name, args.backbone, batch)
            case.time_in_a_row(batch, 4)
            rate, seconds = _run(args, name, Path(folder))
            case.time_in_a_row(batch, 4)
            alone = args.batch / statistics.median(case.train_seconds)
            cells = f"{alone:.1f} | {rate:.1f} | {rate / alone:.0%} | {seconds:.1f} | {args.images / rate / seconds:.0%}"
            rows.append(f"| {name} | {cells} |")
    print("\n| method | steps alone, images/s | training, images/s | its share | an epoch, s | training in it |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


def _run(args, method: str, folder: Path) -> tuple[float, float]:
    """Run training; return images per second of its steps, and the median seconds of an epoch."""
    config = f"--config={ROOT}/configs/folder.py:method={method},backbone={args.backbone}"
    fields = {"data.root": folder / "data", "data.splits.test": "", "backbone.weights": "random", "batch_size": args.batch}
    fields |= {"epochs": args.epochs + 1, "eval_every": 1, "checkpoint_every": 1, "warmup_epochs": 0, "confusion": False}
    changes = (f"--config.{field}={value}" for field, value in fields.items())
    command = [sys.executable, str(ROOT / "main.py"), config, *changes, f"--workdir={folder}/{method}"]
    ends = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "  val " in line:
                ends.append(time.perf_counter())
    if process.returncode:
        raise SystemExit(f"The run of {method} ended with status {process.returncode}.")
    result = json.loads((folder / method / "result.json").read_text())
    return result["images_per_second"], statistics.median(after - before for before, after in zip(ends, ends[1:], strict=False))


if __name__ == "__main__":
    main()
