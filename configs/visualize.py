"""Draw where tuned networks look, side by side on the same images.

    python main.py --config=configs/visualize.py:runs=runs/toast+runs/lora,images=test --workdir=pictures
    python main.py --config=configs/visualize.py:runs=runs/toast,images=data/new --workdir=pictures

runs: folders of runs with the same image size and classes, joined by +. images: a split of the first run's data (train, val,
test), or folders, searched recursively, and images, joined by +. most: the maximum number of images, evenly spaced. weights:
the backbone of the runs, if its file has moved. docs/attention.md explains the pictures.
"""

from toast_jax.config.arguments import arguments, whole
from toast_jax.config.task_fields import config_of
from toast_jax.fields import joined


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, runs="", images="test", most="12", weights="")
    return config_of("visualize", **values | {"runs": joined(values["runs"]), "most": whole("most", values["most"])})
