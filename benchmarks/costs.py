"""Times train steps over the size of images, the size of batches and the depth of the network, and draws what an image costs.

    python -m benchmarks.costs --rounds=2 --folder=benchmarks/plots

One of the three varies, the others stay as they are for ViT-Ti/16: 224 pixels, batch 16, 12 blocks. All steps of a picture are
compiled first, then they take turns of three, the first of them not counted; pictures have medians. Temporary memory is what
the compiler plans for a step.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks import steps
from toast_jax.analysis import curves
from toast_jax.model.backbones import vit
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
    found = {what: _costs(what, args) for what in VARIED}
    for what, lines in found.items():
        for place, label in enumerate(("ms an image", "MB of temporary memory an image")):
            drawn = {name: (np.array(VARIED[what]), np.array(line)[:, place]) for name, line in lines.items()}
            path = args.folder / f"{label.split()[0].lower()}_{what.replace(' ', '_')}.svg"
            path.write_text(curves.svg(drawn, label, what))
    run_folder.write_json(args.folder / "costs.json", {"varied": VARIED, "found": found, **run_folder.circumstances()})


def _costs(what: str, args) -> dict[str, list[tuple[float, float]]]:
    """For each method, milliseconds and MB an image at every value of what varies."""
    settings = [{**USUAL, what: value} for value in VARIED[what]]
    batches = [steps.images(one["batch"], one["image size"]) for one in settings]
    cases = {}
    for name in args.methods:
        for place, one in enumerate(settings):
            size = dataclasses.replace(vit.SIZES["Ti"], depth=one["depth"])
            with mock.patch.dict(vit.SIZES, {"Ti": size}):
                cases[name, place] = steps.Case(name, "vit_ti16", batches[place])
    for _ in range(args.rounds):
        for (_, place), case in cases.items():
            case.time_in_a_row(batches[place], 2)
    return {
        name: [_of_an_image(cases[name, place], one["batch"]) for place, one in enumerate(settings)] for name in args.methods
    }


def _of_an_image(case, batch):
    return 1e3 * statistics.median(case.train_seconds) / batch, case.temporary / 2**20 / batch


if __name__ == "__main__":
    main()
