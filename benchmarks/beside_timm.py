"""Time the forward pass of published kinds of ViT here and in timm, on the same cores.

    python -m benchmarks.beside_timm --out=benchmarks/results/beside_timm.json

Needs torch and timm. timm creates each network at random and writes it as a folder, which is read here strictly; the pooled
outputs are compared first. Then the sides take turns, each in a process of its own that waits while the other computes: one
batch a turn, in float32, with as many threads as there are cores. The table has medians; the JSON file has every time.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import machine
from benchmarks.process import Process
from toast_jax import trees
from toast_jax.cli import set_environment
from toast_jax.config import config_files
from toast_jax.model import steered
from toast_jax.weights import initial_parameters

SIDE = 224
# By name: timm's architecture, its arguments, and images a batch.
NETWORKS: dict[str, tuple[str, dict, int]] = {
    "DINOv2_S": ("vit_small_patch14_reg4_dinov2", {"img_size": SIDE}, 8),
    "DINOv2_B": ("vit_base_patch14_reg4_dinov2", {"img_size": SIDE}, 4),
    "DINOv3_S": ("vit_small_patch16_dinov3_qkvb", {"img_size": SIDE, "global_pool": "token"}, 8),
    "DINOv3_B": ("vit_base_patch16_dinov3_qkvb", {"img_size": SIDE, "global_pool": "token"}, 4),
    "SigLIP_B": ("vit_base_patch16_siglip_224", {}, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7, help="turns per side, after one that is not counted")
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    set_environment()
    with contextlib.closing(Process(sys.executable, "timm_side")) as process:
        rows = {name: _compared(process, *NETWORKS[name], rounds=args.rounds) for name in args.networks}
    print("\n| network | timm, images/s | here, images/s | ratio | outputs differ by |\n|---|--:|--:|--:|--:|")
    for name, row in rows.items():
        rates = [row["batch"] / statistics.median(row[side]) for side in ("timm", "here")]
        print(f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[1] / rates[0]:.2f} | {row['difference']:.0e} |")
    if args.out:
        machine.write_json(args.out, {"side": SIDE, "rounds": args.rounds, "rows": rows, **machine.facts()})


def _compared(process: Process, architecture: str, arguments: dict, batch: int, rounds: int) -> dict:
    """Build a network on both sides, compare its outputs, and time it in turns; return the seconds of all turns."""
    with tempfile.TemporaryDirectory() as folder:
        facts = process.ask(json.dumps(["build", architecture, arguments, folder, batch, SIDE]))
        forward = _here(folder, batch)
    expected, outputs = np.array(process.ask(json.dumps(["outputs"]))), np.asarray(forward())
    seconds: dict[str, list[float]] = {"timm": [], "here": []}
    for _ in range(rounds + 1):
        seconds["timm"].append(process.ask(json.dumps(["run"])))
        started = time.perf_counter()
        jax.block_until_ready(forward())
        seconds["here"].append(time.perf_counter() - started)
    counted = {side: times[1:] for side, times in seconds.items()}
    difference = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    print(f"{architecture}: outputs differ by {difference:.1e}", flush=True)
    return {"architecture": architecture, "batch": batch, "difference": difference, **counted, "versions": facts}


def _here(folder: str, batch: int):
    """Return a function of no arguments that computes the pooled output of the network in a folder, for timm's images."""
    config = config_files.read_config(f"folder:method=linear,backbone={folder}")
    config.data.image_size = config.data.resize = SIDE
    model, method = steered.build(config, 1)
    params = initial_parameters.load(model, method, weights=config.backbone.weights)
    backbone, params = model.backbone, jax.device_put(trees.nested(dict(params))["backbone"])
    images = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE), np.float32).transpose(0, 2, 3, 1)
    images = jax.device_put(images)
    program = jax.jit(lambda params, images: backbone.apply({"params": params}, images, method="pooled"))
    return lambda: program(params, images)


if __name__ == "__main__":
    main()
