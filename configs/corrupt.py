"""Measure accuracy under 15 image corruptions, at 5 severities each.

    python main.py --config=configs/corrupt.py:runs=runs/toast+runs/lora --workdir=robustness

runs: folders of runs with the same image size and classes, joined by +. images: a split of the first run's data (train, val,
test). kinds: corruptions, joined by +, or all; toast_jax/data/images/corruptions.py lists them and how they differ from
ImageNet-C. weights: the backbone of the runs, if its file has moved.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import config_of
from toast_jax.data.images.corruptions import CORRUPTIONS
from toast_jax.fields import joined


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    values = arguments(text, runs="", images="test", kinds="all", weights="")
    kinds = tuple(CORRUPTIONS) if values["kinds"] == "all" else joined(values["kinds"])
    return config_of("corruptions", **values | {"runs": joined(values["runs"]), "kinds": kinds})
