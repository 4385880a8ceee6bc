"""Times a train and an evaluation step of the PyTorch release and of ours, side by side: same weights, batch and threads.

    python -m benchmarks.against_release --release=TOAST/visual_classification --methods toast lora --rounds=3

Needs a checkout of the release and what it imports (torch, timm 0.6, loralib, simplejson, termcolor, iopath). Each side is a
process of its own, computes in float32 with as many threads, and flushes denormal numbers. Logits are compared first; then the
sides take turns of four steps in a row, the first of them not counted, while the other one waits; the table has medians. (After
a pause a step is slower: memory that was free meanwhile has to be given anew, which no step of a run waits for.) Peak memory is
that of either process while it trains.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.recipe import CLASSES

METHODS = ("toast", "toast_lite", "lora", "linear", "finetune")
STEPS = {"train": "train step", "evaluate": "evaluation", "train_fixed": "train step, fixed views"}
THREADS = len(os.sched_getaffinity(0))  # what XLA takes, too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True, help="folder visual_classification of a checkout")
    parser.add_argument("--backbone", default="vit_b16", choices=("vit_b16", "vit_l16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="turns of either side")
    parser.add_argument("--methods", nargs="+", default=METHODS[:4], choices=METHODS)
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    network = args.release / "src/models/vit_models.py"
    if not network.is_file():
        parser.error(f"{network} is not there; --release is the folder visual_classification of a checkout of the release")
    rows = {method: _compared(args, method) for method in args.methods}
    print(f"\n{args.backbone}, batch {args.batch}, float32, {THREADS} threads, medians of {3 * args.rounds} steps")
    print("| method | | release, s | ours, s | times as fast |")
    print("|---|---|---|---|---|")
    for method, row in rows.items():
        for what, both in row["seconds"].items():
            theirs, ours = map(statistics.median, both)
            print(f"| {method} | {what} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |")
        theirs, ours = row["memory"]
        print(f"| {method} | peak memory while training, MB | {theirs >> 20} | {ours >> 20} | {ours / theirs:.2f} of it |")
    theirs, ours = (statistics.median(row["product_rates"][side] for row in rows.values()) for side in range(2))
    print(f"Products of an MLP: {theirs:.0f} GFLOP/s by PyTorch, {ours:.0f} by XLA.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {**vars(args), "release": "", "out": str(args.out), "cpu": _processor(), "threads": THREADS, "rows": rows}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


def _compared(args, method: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (_Side(name, args, method, folder) for name in ("ours", "release"))  # the weights are ours
        logits = [np.load(f"{folder}/{side}.npy") for side in ("release", "ours")]
        difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
        print(f"{method}: logits differ by {difference:.1e}", flush=True)
        assert difference < 1e-4
        seconds, memory = {}, None
        for step in STEPS:
            if step == "train_fixed" and not ours.ask("can_keep"):
                continue
            times = [], []
            for _ in range(args.rounds):
                times[0].extend(theirs.in_a_row("train" if step == "train_fixed" else step))
                times[1].extend(ours.in_a_row(step))
            seconds[STEPS[step]] = times
            memory = memory or (theirs.ask("peak_memory"), ours.ask("peak_memory"))
        rates = theirs.ask("product_rate"), ours.ask("product_rate")
        versions = theirs.ask("versions") | ours.ask("versions")
        for side in (theirs, ours):
            side.close()
    return {
        "seconds": seconds,
        "memory": memory,
        "logits_differ_by": float(difference),
        "product_rates": rates,
        "versions": versions,
    }


class _Side:
    """A process that makes steps when it is asked to: module `benchmarks.NAME`."""

    def __init__(self, name: str, args, method: str, folder: str):
        facts = {
            "method": method,
            "backbone": args.backbone,
            "batch": args.batch,
            "release": str(args.release),
            "folder": folder,
        }
        command = [sys.executable, "-m", f"benchmarks.{name}", json.dumps(facts)]
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.name, pipes = name, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, env=env)
        self.ask("ready")

    def ask(self, what: str):
        """What the side's method of that name returns."""
        print(what, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"The side {self.name} has ended; what it said is above.")
        return json.loads(line)

    def in_a_row(self, step: str) -> list[float]:
        """Seconds of the steps of a turn."""
        return [self.ask(step) for _ in range(4)][1:]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(side: type) -> None:
    """Answers the questions that come line by line; what else is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    one = side(**json.loads(sys.argv[1]))
    Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    for line in sys.stdin:
        print(json.dumps(True if line == "ready\n" else getattr(one, line.strip())()), file=answers, flush=True)


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 `[size, 224, 224, 3]`, normalised as it were, and labels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, 224, 224, 3)).astype(np.float32), rng.integers(0, CLASSES, size).astype(np.int32)


def operands(backbone: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What the largest product of a block has: tokens `[197 * batch, D]`, kernel `[D, 4 * D]`."""
    rng, width = np.random.default_rng(0), {"vit_b16": 768, "vit_l16": 1024}[backbone]
    return tuple(rng.normal(size=size).astype(np.float32) for size in ((197 * batch, width), (width, 4 * width)))


def peak_memory() -> int:
    """Bytes that this process has taken at most since it was ready."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
