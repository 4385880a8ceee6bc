"""Time the three kinds of products of a linear layer separately, at the shapes of a ViT's block.

    python -m benchmarks.kinds --backbone=vit_b16 --batch=8 --rounds=20

A layer computes x W forward, dy W^T for the gradient of its input, and x^T dy for that of its kernel. A frozen kernel could be
kept a second time, transposed, which makes dy W^T a product like x W; the table says what that would gain.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from toast_jax.cli import set_environment
from toast_jax.model.backbones.vit import network as vit

KINDS = {
    "x W": lambda x, dy, w, t: x @ w,
    "dy W^T": lambda x, dy, w, t: dy @ w.T,
    "dy W^T, from a transposed copy": lambda x, dy, w, t: dy @ t,
    "x^T dy": lambda x, dy, w, t: x.T @ dy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_b16", choices=("vit_ti16", "vit_s16", "vit_b16", "vit_l16"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON file with every time")
    args = parser.parse_args()
    set_environment()
    rows, width = {}, vit.SIZES[args.backbone.removeprefix("vit_")[:-2].capitalize()].width
    for name, shape in {"q, k, v, proj": (width, width), "fc1": (width, 4 * width), "fc2": (4 * width, width)}.items():
        rows[name] = _timed(args.batch * 197, *shape, args.rounds)
    print(f"\n| layer | {' | '.join(f'{kind}, GFLOP/s' for kind in KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for name, row in rows.items():
        rates = [f"{row['flops'] / statistics.median(row[kind]) / 1e9:.0f}" for kind in KINDS]
        print(f"| {name} | {' | '.join(rates)} |")
    if args.out:
        machine.write_json(args.out, {**vars(args), "out": str(args.out), "rows": rows, **machine.facts()})


def _timed(tokens: int, inputs: int, outputs: int, rounds: int) -> dict:
    """Time every kind in turn; return the seconds of all rounds, and the FLOPs of one product."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, dy, w = draw(tokens, inputs), draw(tokens, outputs), draw(inputs, outputs)
    args = x, dy, w, jnp.array(w.T)
    programs = {name: jax.jit(kind) for name, kind in KINDS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for i in range(rounds + 2):
        for name, program in programs.items():
            started = time.perf_counter()
            for _ in range(5):
                product = program(*args)
            product.block_until_ready()
            if i > 1:
                seconds[name].append((time.perf_counter() - started) / 5)
    return {**seconds, "flops": 2 * tokens * inputs * outputs}


if __name__ == "__main__":
    main()
