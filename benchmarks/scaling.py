"""Count a step's matrix products and all-reduced bytes on 1 to 8 devices. Nothing is timed.

    python -m benchmarks.scaling --backbone=vit_b16 --methods toast lora finetune

Steps are compiled from shapes for virtual CPU devices, one process per number of devices, and the compiled programs are read:
with a batch of 64 over all devices (strong scaling), and with 8 images per device (weak scaling).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp

from benchmarks import products
from benchmarks.steps import timed
from toast_jax import trees
from toast_jax.devices import parallel
from toast_jax.model import steered
from toast_jax.train.step import init_state

DEVICES = (1, 2, 4, 8)
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--methods", nargs="*", default=["linear", "toast", "toast_lite", "lora", "finetune"])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps({name: _rows(name, args.backbone) for name in args.methods}))
        return
    counted = {devices: _counted(devices) for devices in DEVICES}
    print(f"\n{args.backbone}; per step and device: GFLOP of matrix products, MB all-reduced")
    print("| method | tuned, MB | scaling |" + "".join(f" {devices} |" for devices in DEVICES))
    print("|---|---|---|" + "---|" * len(DEVICES))
    for name in args.methods:
        for kind in ("strong", "weak"):
            cells = [counted[devices][name][kind] for devices in DEVICES]
            line = "".join(f" {flops / 1e9:,.0f}, {reduced / 1e6:,.2f} |" for flops, reduced in cells)
            print(f"| {name} | {counted[1][name]['tuned'] * 4 / 1e6:,.2f} | {kind} |{line}")


def _counted(devices: int) -> dict:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:], "--alone"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    return json.loads(output.splitlines()[-1])


def _rows(name: str, backbone: str) -> dict:
    devices = jax.device_count()
    tuned, strong = compiled(name, backbone, 64)
    _, weak = compiled(name, backbone, 8 * devices)
    both = {"strong": strong, "weak": weak}
    return {"tuned": tuned, **{kind: (products.flops(text), reduced_bytes(text)) for kind, text in both.items()}}


def compiled(name: str, backbone: str, batch_size: int) -> tuple[int, str]:
    """Compile a train step from shapes; return the number of tuned parameters and the optimized program."""
    network, method, mask, tx, step = timed(name, backbone)
    tuned, frozen = trees.split(jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0))), mask)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tuned), tx, seed=0))
    share = (jax.device_count(), batch_size // jax.device_count())
    batch = {
        "image": jax.ShapeDtypeStruct((*share, 224, 224, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(share, jnp.int32),
    }
    text = parallel.replicate(step, num_replicated=2, donate=(0,)).lower(state, frozen, batch).compile().as_text()
    assert text is not None
    return trees.count(tuned), text


def reduced_bytes(program: str) -> int:
    """Sum the bytes that one device contributes to all-reduces."""
    kinds = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    shapes = (shape for kind in kinds for shape in re.findall(r"(\w+)\[([\d,]*)\]", kind))
    return sum(_BYTES[dtype] * math.prod(int(size) for size in sizes.split(",") if size) for dtype, sizes in shapes)


if __name__ == "__main__":
    main()
