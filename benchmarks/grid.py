"""Time the grid of a VTAB-1k task: its runs one by one, and as one program (toast_jax/train/grid.py).

    python -m benchmarks.grid --root=data/tfds --task=dsprites_location --method=toast --image-size=64 --epochs=2

The runs are those of a sweep's selection: train800, then val200. Each way has its own process. Weights are random unless a file
is named, and no compilation cache is read. Start-up lasts until the first step is done: opening the data, loading weights,
compilation. With `--drop-path=0` views are fixed; the grid then caches their frozen features, the single runs do not.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from configs import sweep as config_of
from toast_jax.errors import Diverged
from toast_jax.tables import plan
from toast_jax.tables.plan import Cell
from toast_jax.train.loop import fit, fit_grid
from toast_jax.workdir import run_folder

WAYS = ("one by one", "together")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the prepared datasets")
    parser.add_argument("--task", default="dsprites_location")
    parser.add_argument("--method", default="toast")
    parser.add_argument("--backbone", default="vit_ti16")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--points", type=int, help="how many of the grid's first points to run")
    parser.add_argument("--at-once", type=int, default=0)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, help="JSON file with every number")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measured(args)))
        return
    rows = {way: _in_a_process(way) for way in args.ways}
    print(f"\n{args.method}, {args.backbone} at {args.image_size} pixels, {args.task}, drop-path {args.drop_path}")
    print("| | points | all, s | start-up, s | a step of a point, s | peak memory, MB | val accuracy of the best |")
    print("|---|---|---|---|---|---|---|")
    for way, row in rows.items():
        print(
            f"| {way} | {row['points']} | {row['seconds']:.0f} | {row['start']:.1f} | {row['step']:.4f} "
            f"| {row['memory'] >> 20} | {max(row['accuracy']):.3f} |"
        )
    if len(rows) == 2:
        alone, grid = rows.values()
        worst = np.max(np.abs(np.array(alone["loss"]) / np.array(grid["loss"]) - 1))
        print(f"speedup of a step: {alone['step'] / grid['step']:.2f}; val losses differ by at most {worst:.1e}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(args.out, {**vars(args), "out": str(args.out), "rows": rows, **run_folder.circumstances()})


def _in_a_process(way: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.grid", *sys.argv[1:], "--measure", way]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _measured(args) -> dict:
    config = config_of.get_config(f"table=vtab,method={args.method},task={args.task},backbone={args.backbone}")
    config.backbone.update({"weights": args.weights, "drop_path": args.drop_path})
    config.data.update({"root": args.root, "image_size": args.image_size, "resize": args.image_size})
    config.epochs = config.eval_every = args.epochs
    config.warmup_epochs, config.log_every = 0, 1
    config.keep_known = args.measure == "together"
    with tempfile.TemporaryDirectory() as folder:
        units = list(plan.selection(config, Cell(args.method, args.task), Path(folder)).values())[: args.points]
        configs, folders = [unit.config for unit in units], [unit.folder for unit in units]
        started = time.perf_counter()
        if args.measure == "together":
            all_results = fit_grid(configs, folders, Path(folder) / "all", args.at_once)
        else:
            all_results = list(map(_fit, configs, folders))
        seconds = time.perf_counter() - started
    results = [result for result in all_results if not isinstance(result, Diverged)]
    starts = [result["seconds_to_first_step"] for result in results]
    return {
        "points": len(units),
        "seconds": seconds,
        "start": starts[0] if args.measure == "together" else sum(starts),
        "step": config.batch_size / float(np.median([result["images_per_second"] for result in results])),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "accuracy": [result["val"]["accuracy"] for result in results],
        "loss": [result["val"]["loss"] for result in results],
    }


def _fit(config, folder) -> dict | Diverged:
    try:
        return fit(config, folder)
    except Diverged as error:
        return error


if __name__ == "__main__":
    main()
