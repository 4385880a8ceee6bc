"""Time the input pipeline alone: images per second from files to training batches.

    python -m benchmarks.pipeline --workers 0 1 2

Writes photo-sized JPEG files (500 x 375) and loads batches as fast as possible: with the FGVC recipe (resize, crop, flip) and
with RandAugment, on the threads of one process (0 workers) and on worker processes.
"""

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from configs import folder
from toast_jax.data.images import sources
from toast_jax.train import image_runs

RECIPES = {"resize, crop, flip": {}, "and two operations of RandAugment": {"randaugment_ops": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="turns per case")
    parser.add_argument("--batches", type=int, default=16, help="timed batches per round, after two that are not timed")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # worker processes read absl flags
    cases = list(itertools.product(RECIPES, args.workers))
    rates: dict[tuple, list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as root:
        write(Path(root) / "train", args.images)
        for _ in range(args.rounds):
            for recipe, workers in cases:
                rates[recipe, workers].append(_rate(root, args, RECIPES[recipe], workers))
    print("| | " + " | ".join("threads" if not workers else f"{workers} processes" for workers in args.workers) + " |")
    print("|---|" + "---|" * len(args.workers))
    for recipe in RECIPES:
        medians = (statistics.median(rates[recipe, workers]) for workers in args.workers)
        print(f"| {recipe} | " + " | ".join(f"{median:,.0f}" for median in medians) + " |")


def write(root: Path, count: int) -> None:
    """Write photo-sized JPEG files to two class folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)


def _rate(root: str, args, changes: dict, workers: int) -> float:
    config = folder.get_config("method=linear,backbone=vit_b16")
    config.data.update({"root": root, "workers": workers, "splits": {"train": "train", "val": "", "test": ""}})
    config.augment.update(changes)
    config.batch_size, config.epochs = args.batch, 1 + args.batch * (args.batches + 2) // args.images
    source = sources.open_split(config.data, "train")
    with contextlib.closing(image_runs.train_batches(config, source, 0)) as loader:
        for _ in range(2):
            next(loader)
        started = time.perf_counter()
        for _ in range(args.batches):
            next(loader)
        return args.batches * args.batch / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
