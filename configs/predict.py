"""Classify new images with the network that a run has tuned.

    python main.py --config=configs/predict.py:run=runs/mine,images=data/new --workdir=predictions

run: the folder of the run. images: a folder, searched recursively, a table with the column path, a zip archive, one image, or
`-` for paths from standard input. attention: yes, no (draw where the network looks; for a ConvNeXt, what its top-down module
selects). weights: the backbone of the run, if its file has moved. A run of segmentation writes a mask for each image, and with
attention pictures of it.
"""

from toast_jax.config.arguments import arguments, yes_no
from toast_jax.config.task_fields import config_of


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, run="", images="", attention="yes", weights="")
    return config_of("predict", **values | {"attention": yes_no("attention", values["attention"])})
