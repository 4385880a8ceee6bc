"""Time steps of the PyTorch release and of this package side by side.

    python -m benchmarks.against_release --release=TOAST/visual_classification --methods toast lora --rounds=3

Needs a checkout of the release and its imports (torch, timm 0.6, loralib, simplejson, termcolor, iopath). Each side is a
process with the same weights, batch and number of threads; it computes in float32 and flushes denormal numbers. This side has
the XLA flags of a run. Logits are compared first. Then the sides take turns of four consecutive steps, the first not counted,
while the other waits; the table has medians. (The first step after a pause is slow, as freed memory has to be allocated again;
no step of a run waits for that.) Peak memory is that of each process while it trains. `toast:6` steers the last six blocks
alone here and all of them in the release, which has no such variant; its logits are not compared.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.process import Process
from benchmarks.recipe import CLASSES
from toast_jax.cli import set_environment

METHODS = ("toast", "toast:6", "toast:4", "toast_lite", "lora", "linear", "finetune")
STEPS = {"train": "train step", "evaluate": "evaluation", "train_fixed": "train step, fixed views"}
THREADS = len(os.sched_getaffinity(0))  # XLA uses as many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True, help="folder visual_classification of a checkout")
    parser.add_argument("--backbone", default="vit_b16", choices=("vit_b16", "vit_l16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="turns per side")
    parser.add_argument("--methods", nargs="+", default=METHODS[:6], choices=METHODS)
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    network = args.release / "src/models/vit_models.py"
    if not network.is_file():
        parser.error(f"{network} does not exist; --release is the folder visual_classification of a checkout of the release")
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}  # compiling takes memory
    set_environment()
    rows = {method: _compared(args, method) for method in args.methods}
    print(f"\n{args.backbone}, batch {args.batch}, float32, {THREADS} threads, medians of {3 * args.rounds} steps")
    print("| method | | release, s | ours, s | times as fast |")
    print("|---|---|---|---|---|")
    for method, row in rows.items():
        for step, times in row["seconds"].items():
            release, here = map(statistics.median, times)
            print(f"| {method} | {step} | {release:.3f} | {here:.3f} | {release / here:.2f} |")
        release, here = row["memory"]
        print(f"| {method} | peak memory while training, MB | {release >> 20} | {here >> 20} | {here / release:.2f} of it |")
    release, here = (statistics.median(row["product_rates"][side] for row in rows.values()) for side in range(2))
    facts = machine.processor()
    print(f"{facts['cpu']}, {facts['instruction_set']}, XLA_FLAGS {os.environ.get('XLA_FLAGS', '')!r}.")
    print(f"Matrix products of an MLP: {release:.0f} GFLOP/s in PyTorch, {here:.0f} in XLA.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            **vars(args),
            "release": "",
            "out": str(args.out),
            **machine.processor(),
            "threads": THREADS,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "rows": rows,
        }
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


def _compared(args, method: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        # The first one saves the weights that the other one loads.
        here, release = (_side(name, args, method, folder) for name in ("jax_side", "release_side"))
        logits = [np.load(f"{folder}/{name}.npy") for name in ("release", "jax")]
        difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
        print(f"{method}: logits differ by {difference:.1e}", flush=True)
        assert difference < 1e-4 or ":" in method
        here.ask("compile")  # its memory counts
        seconds: dict[str, tuple[list[float], list[float]]] = {}
        memory = None
        for step in STEPS:
            if step == "train_fixed" and not here.ask("has_fixed_features"):
                continue
            times: tuple[list[float], list[float]] = [], []
            for _ in range(args.rounds):
                times[0].extend(_in_a_row(release, "train" if step == "train_fixed" else step))
                times[1].extend(_in_a_row(here, step))
            seconds[STEPS[step]] = times
            memory = memory or (release.ask("peak_memory"), here.ask("peak_memory"))
        rates = release.ask("product_rate"), here.ask("product_rate")
        versions = release.ask("versions") | here.ask("versions")
        for side in (release, here):
            side.close()
    return {
        "seconds": seconds,
        "memory": memory,
        "logits_differ_by": float(difference),
        "product_rates": rates,
        "versions": versions,
    }


def _side(name: str, args, method: str, folder: str) -> Process:
    """Start a side, which runs the steps whose names it is asked for."""
    facts = {
        "method": method.split(":")[0],
        "steered_blocks": int(method.partition(":")[2] or 0),
        "backbone": args.backbone,
        "batch": args.batch,
        "release": str(args.release),
        "folder": folder,
    }
    side = Process(sys.executable, name, json.dumps(facts))
    side.ask("ready")
    return side


def _in_a_row(side: Process, step: str) -> list[float]:
    """Time the steps of a turn, in seconds."""
    return [side.ask(step) for _ in range(4)][1:]


def serve(side: type) -> None:
    """Serve requests on stdin, one method name a line; everything else printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    instance = side(**json.loads(sys.argv[1]))
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
    for line in sys.stdin:
        print(json.dumps(True if line == "ready\n" else getattr(instance, line.strip())()), file=answers, flush=True)


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images float32 `[size, 224, 224, 3]`, as if normalized, and labels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, 224, 224, 3)).astype(np.float32), rng.integers(0, CLASSES, size).astype(np.int32)


def operands(backbone: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the operands of a block's largest matrix product: tokens `[197 * batch, D]` and kernel `[D, 4 * D]`."""
    rng, width = np.random.default_rng(0), {"vit_b16": 768, "vit_l16": 1024}[backbone]
    tokens, kernel = (rng.normal(size=size).astype(np.float32) for size in ((197 * batch, width), (width, 4 * width)))
    return tokens, kernel


def peak_memory() -> int:
    """Read the peak memory of this process since it was ready, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
