"""Accuracy on images under 15 corruptions, of 5 severities each.

    python main.py --config=configs/corrupt.py:runs=runs/toast+runs/lora --workdir=robustness

runs: folders of runs with one image size and the same classes, joined by +. images: a split of the first run's data (train,
val, test). kinds: corruptions, joined by +, or all; toast_jax/data/images/corruptions.py lists them,
and says how they differ from those of ImageNet-C. weights: the backbone of the runs, if its file has moved.
"""

from ml_collections import ConfigDict

from configs import common
from toast_jax.data.images.corruptions import CORRUPTIONS, SEVERITIES


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    given = common.arguments(text, runs="", images="test", kinds="all", weights="")
    return ConfigDict(
        {
            "name": "corruptions",
            "task": "corruptions",
            **given,
            "runs": common.joined(given["runs"]),
            "kinds": tuple(CORRUPTIONS) if given["kinds"] == "all" else common.joined(given["kinds"]),
            "severities": SEVERITIES,
            "most": 0,  # evaluate at most so many images, at even distances; 0: all
            "seed": 0,  # of the corruptions, and of the bootstrap
            "batch_size": 32,
        }
    )
