"""Prepare the data of VTAB-1k; needs TensorFlow.

    python main.py --config=configs/prepare.py:task=cifar100 --config.root=data/tfds
    python main.py --config=configs/prepare.py:task=all --config.root=data/tfds

task: a task of configs/vtab.py, or all. --config.root: the folder for the datasets, 210 GB for all. --config.manual: the folder
of files downloaded by hand, by default root/downloads/manual. After a failure, repeat the command: prepared datasets are
skipped. It needs `pip install -r requirements-tfds.txt`; reading the prepared data does not. docs/vtab.md lists the datasets.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.task_fields import config_of
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose


def get_config(text: str | None = None):
    """Return the config; `text` is the config arguments."""
    task = arguments(text, task="all")["task"]
    tasks = tuple(TASKS) if task == "all" else (task,)
    builders = [choose("The config argument task", name, TASKS).builder for name in tasks]
    return config_of("prepare_data", datasets=tuple(dict.fromkeys(builders)))  # two tasks may share one
