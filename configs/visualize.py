"""Pictures of where tuned networks look, side by side on the same images.

    python main.py --config=configs/visualize.py:runs=runs/toast+runs/lora,images=test --workdir=pictures
    python main.py --config=configs/visualize.py:runs=runs/toast,images=data/new --workdir=pictures

runs: folders of runs with one image size and the same classes, joined by +. images: a split of the first run's data (train,
val, test), or folders, searched at every depth, and images, joined by +. most: of how many images, at even distances. weights:
the backbone of the runs, if its file has moved. docs/attention.md tells what the pictures show.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    given = common.arguments(text, runs="", images="test", most="12", weights="")
    return ConfigDict(
        {
            "name": "visualize",
            "task": "visualize",
            **given,
            "runs": common.joined(given["runs"]),
            "most": common.whole("most", given["most"]),
            "batch_size": 32,
        }
    )
