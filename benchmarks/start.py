"""Time a run from the command line to its first step.

    python -m benchmarks.start --backbone=vit_b16 --batch=8

Writes a small folder of images, runs `main.py` on it with random weights, and stops the process after the first step: once with
an empty compilation cache, once with a filled one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_ti16")
    parser.add_argument("--method", default="toast")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _images(Path(folder) / "data", args.batch)
        for cache in ("empty", "filled"):
            seconds = _first_step(args, Path(folder), cache)
            print(f"{args.backbone} {args.method}, batch {args.batch}, {cache} cache: first step after {seconds:.1f} s")


def _images(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"{i}.jpg")


def _first_step(args, folder: Path, cache: str) -> float:
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        f"--config={ROOT}/configs/folder.py:method={args.method},backbone={args.backbone}",
        f"--config.data.root={folder}/data",
        "--config.data.splits.val=",
        "--config.data.splits.test=",
        "--config.backbone.weights=random",
        f"--config.batch_size={args.batch}",
        f"--workdir={folder}/{cache}",
    ]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - started
                process.kill()
                return seconds
    raise SystemExit("The run ended before its first step; run its command by hand: " + " ".join(command))


if __name__ == "__main__":
    main()
