"""Sweep: all runs of a table of the paper, from the grid to five seeds.

    python main.py --config=configs/sweep.py:table=vtab,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/tfds --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/vtab
    python main.py --config=configs/sweep.py:table=fgvc,method=linear+lora+toast,task=cub+cars \\
        --config.data.root=data --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/fgvc

table: vtab or fgvc. method: those of configs/fgvc.py, joined by +, or all. task: tasks of configs/vtab.py or datasets of
configs/fgvc.py, joined by +, or all. Fields of a run hold for every run of the sweep, but for those the sweep sets itself.
vtab: each point of sweep.grid is trained on train800; the best on val200 after the last epoch (ties: the smaller rate, then
the smaller weight decay) is trained on train800val200 with each of sweep.seeds and tested once. A grid trains as one program.
fgvc: the recipe of the set, with each seed; its folder is data.root/NAME. Give the same command again to go on; docs/sweeps.md
tells how to use many devices. configs/table.py makes the table.
"""

from ml_collections import ConfigDict

from configs import common, fgvc, vtab
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose
from toast_jax.model.methods import METHODS


def get_config(text: str | None = None):
    """The config of a sweep; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, table="vtab", method="toast", task="all", backbone="vit_b16_in1k")
    build = choose("The config argument table", given["table"], {"vtab": _vtab, "fgvc": _fgvc})
    config = build(given["backbone"], _several("method", given["method"], METHODS), given["task"])
    config.task = "sweep"
    config.name = f"{given['table']}_{given['backbone']}"
    config.sweep.table = given["table"]
    config.sweep.backbone = given["backbone"]
    config.sweep.shard = "0/1"  # which share of the pairs of method and task this process has
    config.sweep.together = 0  # points of a grid that train as one program; 0: all | 1: each on its own
    config.sweep.at_once = 0  # of those, how many are computed side by side; 0: as many as fit in memory, on a CPU 1
    # What the sweep sets for each run is no field of it.
    for name in ("method", "seed", "resume", "checkpoint", "confusion"):
        del config[name]
    for name in ("name", "num_classes", "splits"):
        del config.data[name]
    del config.optimizer["lr"], config.optimizer["weight_decay"]
    return config


def _vtab(backbone: str, methods: tuple[str, ...], task: str) -> ConfigDict:
    config = vtab.get_config(f"backbone={backbone}")
    tasks = _several("task", task, TASKS)
    config.sweep = ConfigDict(
        {
            "methods": methods,
            "tasks": tasks,
            "recipes": {name: {"data": {"name": name, "num_classes": TASKS[name].num_classes}} for name in tasks},
            "grid": {name: {"lr": vtab.LR[name], "weight_decay": vtab.WEIGHT_DECAY} for name in methods},
            "seeds": vtab.SEEDS,
            "splits": vtab.SPLITS,
        }
    )
    return config


def _fgvc(backbone: str, methods: tuple[str, ...], task: str) -> ConfigDict:
    config = fgvc.get_config(f"backbone={backbone}")
    tasks = {name: fgvc.DATASETS[name] for name in _several("task", task, fgvc.DATASETS)}
    final = {"train": "train", "val": "val", "test": "test"}
    config.sweep = ConfigDict(
        {
            "methods": methods,
            "tasks": tuple(tasks),
            "recipes": {
                name: {
                    "data": {"root": name, "image_dir": one.image_dir, "num_classes": one.num_classes},  # root: under data.root
                    "optimizer": {"lr": one.lr, "weight_decay": one.weight_decay},
                }
                for name, one in tasks.items()
            },
            # Nothing: the set's own recipe. With several points, the best on val is selected.
            "grid": {name: {"lr": (), "weight_decay": ()} for name in methods},
            "seeds": fgvc.SEEDS,
            "splits": {"selection": {**final, "test": ""}, "final": final},
        }
    )
    config.data.root = "data"
    del config.data["image_dir"]
    return config


def _several(key: str, text: str, options: dict) -> tuple[str, ...]:
    """Reads NAME+NAME or all; the order is that of `options`."""
    names = tuple(options) if text == "all" else text.split("+")
    for name in names:
        choose(f"The config argument {key}", name, options)
    return tuple(name for name in options if name in names)
