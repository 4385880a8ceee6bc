"""Time train steps by image size, batch size and depth, and draw them.

    python -m benchmarks.costs --rounds=2 --folder=benchmarks/plots

One of the three varies; the others keep the values of ViT-Ti/16: 224 pixels, batch 16, 12 blocks. All steps of a chart are
compiled first, then take turns of three steps, the first not counted; charts show medians. Temporary memory is the compiler's
plan for a step. Charts are per image.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import steps
from toast_jax.analysis import curves
from toast_jax.model.backbones.vit import network as vit
from toast_jax.workdir import run_folder

USUAL = {"image size": 224, "batch": 16, "depth": 12}
VARIED = {"image size": (96, 160, 224, 288, 384), "batch": (1, 4, 8, 16, 32), "depth": (2, 6, 12, 18, 24)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=["linear", "lora", "finetune", "toast"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/plots"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    costs = {varied: _costs(varied, args) for varied in VARIED}
    for varied, lines in costs.items():
        for column, label in enumerate(("ms per image", "MB of temporary memory per image")):
            drawn = {name: (np.array(VARIED[varied]), np.array(line)[:, column]) for name, line in lines.items()}
            path = args.folder / f"{label.split()[0].lower()}_{varied.replace(' ', '_')}.svg"
            path.write_text(curves.svg(drawn, label, varied))
    run_folder.write_json(args.folder / "costs.json", {"varied": VARIED, "found": costs, **run_folder.circumstances()})


def _costs(varied: str, args) -> dict[str, list[tuple[float, float]]]:
    """Measure milliseconds and MB per image, for each method at every value of `varied`."""
    settings = [{**USUAL, varied: value} for value in VARIED[varied]]
    batches = [steps.images(setting["batch"], setting["image size"]) for setting in settings]
    cases = {}
    for name in args.methods:
        for i, setting in enumerate(settings):
            size = dataclasses.replace(vit.SIZES["Ti"], depth=setting["depth"])
            with mock.patch.dict(vit.SIZES, {"Ti": size}):
                cases[name, i] = steps.Case(name, "vit_ti16", batches[i])
    for _ in range(args.rounds):
        for (_, i), case in cases.items():
            case.time_in_a_row(batches[i], 2)
    return {name: [_per_image(cases[name, i], setting["batch"]) for i, setting in enumerate(settings)] for name in args.methods}


def _per_image(case, batch):
    return 1e3 * statistics.median(case.train_seconds) / batch, case.temporary / 2**20 / batch


if __name__ == "__main__":
    main()
