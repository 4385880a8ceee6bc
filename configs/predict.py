"""Classes of new images, by a network that a run has tuned.

    python main.py --config=configs/predict.py:run=runs/mine,images=data/new --workdir=predictions

run: the folder of the run. images: a folder, searched at every depth, or one image. attention: yes, no (pictures of where the
network looks; of a ConvNeXt, what its top-down module selects). weights: the backbone of the run, if its file has moved.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    given = common.arguments(text, run="", images="", attention="yes", weights="")
    attention = common.yes_no("attention", given["attention"])
    return ConfigDict({"name": "predict", "task": "predict", **given, "attention": attention, "batch_size": 32})
