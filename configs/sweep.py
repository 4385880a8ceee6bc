"""Sweep: all runs of a table of the paper, from the grid to five seeds.

    python main.py --config=configs/sweep.py:table=vtab,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/tfds --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/vtab
    python main.py --config=configs/sweep.py:table=fgvc,method=linear+lora+toast,task=cub+cars \\
        --config.data.root=data --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/fgvc

table: vtab or fgvc. method: those of configs/fgvc.py, joined by +, or all. task: tasks of configs/vtab.py or datasets of
configs/fgvc.py, joined by +, or all. Fields of a run apply to every run, except for those that the sweep sets itself.
vtab: each point of sweep.grid is trained on train800; the best on val200 after the last epoch (ties: the smaller learning rate,
then the smaller weight decay) is trained on train800val200 with each of sweep.seeds and tested once. A grid trains as one
program. fgvc: the recipe of the set, with each seed; its folder is data.root/NAME. Repeat the command to resume. docs/sweeps.md
explains how to use many devices, and configs/table.py makes the table.
"""

from ml_collections import ConfigDict

from toast_jax.config import backbone_names, paper_recipes
from toast_jax.config.arguments import arguments, several
from toast_jax.config.run_fields import METHODS
from toast_jax.config.task_fields import SWEEP
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose


def get_config(text: str | None = None):
    """Return the config of a sweep; `text` is the config arguments."""
    values = arguments(text, table="vtab", method="toast", task="all", backbone="vit_b16_in1k")
    build = choose("The config argument table", values["table"], {"vtab": _vtab, "fgvc": _fgvc})
    config, sweep = build(values["backbone"], several("method", values["method"], METHODS), values["task"])
    config.task = "sweep"
    config.name = f"{values['table']}_{backbone_names.label(values['backbone'])}"
    defaults = {name.removeprefix("sweep."): field.default for name, field in SWEEP.items()}
    config.sweep = ConfigDict(defaults | sweep | {"table": values["table"], "backbone": values["backbone"]})
    # The sweep sets these for each run.
    for name in ("method", "seed", "resume", "checkpoint", "confusion"):
        del config[name]
    for name in ("name", "num_classes", "splits"):
        del config.data[name]
    del config.optimizer["lr"], config.optimizer["weight_decay"]
    return config


def _vtab(backbone: str, methods: tuple[str, ...], task: str) -> tuple[ConfigDict, dict]:
    config = paper_recipes.vtab("cifar100", "toast", backbone, "final")
    tasks = several("task", task, TASKS)
    return config, {
        "methods": methods,
        "tasks": tasks,
        "recipes": {name: {"data": {"name": name, "num_classes": TASKS[name].num_classes}} for name in tasks},
        "grid": {
            name: {"lr": paper_recipes.VTAB_LR[name], "weight_decay": paper_recipes.VTAB_WEIGHT_DECAY} for name in methods
        },
        "splits": paper_recipes.VTAB_SPLITS,
    }


def _fgvc(backbone: str, methods: tuple[str, ...], task: str) -> tuple[ConfigDict, dict]:
    config = paper_recipes.fgvc("cub", "toast", backbone)
    config.data.root = "data"
    del config.data["image_dir"]
    datasets = {name: paper_recipes.FGVC[name] for name in several("task", task, paper_recipes.FGVC)}
    final = {"train": "train", "val": "val", "test": "test"}
    return config, {
        "methods": methods,
        "tasks": tuple(datasets),
        "recipes": {
            name: {
                "data": {"root": name, "image_dir": dataset.image_dir, "num_classes": dataset.num_classes},  # under data.root
                "optimizer": {"lr": dataset.lr, "weight_decay": dataset.weight_decay},
            }
            for name, dataset in datasets.items()
        },
        # An empty axis takes the value of the recipe. With several points, the best on val is selected.
        "grid": {name: {"lr": (), "weight_decay": ()} for name in methods},
        "splits": {"selection": {**final, "test": ""}, "final": final},
    }
