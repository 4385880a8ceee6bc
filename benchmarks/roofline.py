"""Bound the speed of train steps on accelerators by their matrix products.

    python -m benchmarks.roofline --backbone=vit_b16 --batch=128

Each product of the compiled program takes the longer of two times: its operations at peak, or reading its operands and writing
its result once, in bfloat16. Everything else (norms, softmax, GELU, the optimizer) counts as fused and free, so these are
bounds, not predictions. Nothing is timed.
"""

import argparse

from benchmarks import products, scaling
from benchmarks.chips import CHIPS, Chip

DRAWN = {name: CHIPS[name] for name in ("TPU v4", "TPU v5e", "H100 SXM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_b16")
    parser.add_argument("--batch", type=int, default=128, help="images per step on one chip")
    parser.add_argument("--methods", nargs="*", default=["linear", "toast", "toast_lite", "lora", "finetune"])
    args = parser.parse_args()
    print("| method | | FLOP a byte |" + "".join(f" {name}, images/s | of its peak |" for name in DRAWN))
    print("|---|---|---|" + "---|---|" * len(DRAWN))
    for name in args.methods:
        _, program = scaling.compiled(name, args.backbone, args.batch)
        counts = products.listed(program)
        flops = sum(product.flops * times for product, times in counts.items())
        for fused in (False, True):
            cells = [
                name,
                "attention fused" if fused else "",
                f"{flops / sum(_bytes(p, fused) * n for p, n in counts.items()):,.0f}",
            ]
            for chip in DRAWN.values():
                seconds = least_seconds(counts, chip, fused)
                cells += [f"{args.batch / seconds:,.0f}", f"{flops / chip.flops / seconds:.0%}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def least_seconds(counts: dict[products.Product, int], chip: Chip, fused: bool = False) -> float:
    """Sum the seconds of products on a chip, each bound by compute or by memory.

    Args:
      counts: of `products.listed`.
      fused: whether attention keeps its weights on the chip, as in FlashAttention (arXiv 2205.14135).
    """
    return sum(
        times * max(product.flops / chip.flops, _bytes(product, fused) / chip.bandwidth) for product, times in counts.items()
    )


def _bytes(product, fused):
    first, second, largest = sorted(product.numbers)
    is_weights = product.batched and first == second < largest  # the others are queries and keys, or values and outputs
    return 2 * (first + second + (0 if fused and is_weights else largest))


if __name__ == "__main__":
    main()
