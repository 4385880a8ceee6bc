"""Measure how much attention of tuned networks is on the object.

    python main.py --config=configs/attention.py:runs=runs/toast+runs/lora,objects=boxes.json --workdir=metrics
    python main.py --config=configs/attention.py:runs=runs/toast+runs/lora --workdir=metrics

runs: folders of runs with the same image size and classes, joined by +. images: a split of the first run's data (train, val,
test), or folders and images, joined by +. objects: a JSON file of boxes, a folder of masks, or the name of a TFDS feature
(bbox, segmentation_mask); without it, deletion and insertion. weights: the backbone of the runs, if its file has moved.
docs/attention.md describes the metrics and the file formats.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import config_of
from toast_jax.fields import joined


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, runs="", images="test", objects="", weights="")
    return config_of("attention_metrics", **values | {"runs": joined(values["runs"])})
