"""Prepare the data of VTAB-1k; needs TensorFlow.

    python main.py --config=configs/prepare.py:task=cifar100 --config.root=data/tfds
    python main.py --config=configs/prepare.py:task=all --config.root=data/tfds

task: a task of configs/vtab.py, or all. root: where the datasets go; 210 GB for all. manual: the folder with what has to be
downloaded by hand, root/downloads/manual by default. Give the same command again after a failure: what is prepared is skipped.
It needs `pip install -r requirements-tfds.txt`; reading what it made does not. docs/vtab.md lists the datasets.
"""

from ml_collections import ConfigDict

from configs import common
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    task = common.arguments(text, task="all")["task"]
    tasks = tuple(TASKS) if task == "all" else (task,)
    builders = [choose("The config argument task", name, TASKS).builder for name in tasks]
    return ConfigDict(
        {
            "name": "prepare",
            "task": "prepare_data",
            "datasets": tuple(dict.fromkeys(builders)),  # two tasks may share one
            "root": "data/tfds",
            "manual": "",
            "check_disk": True,  # refuse to start a dataset that the disk has no room for
        }
    )
