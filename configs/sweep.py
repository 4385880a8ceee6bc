"""Sweep: all runs of a table: the paper's, few-shot, or segmentation.

    python main.py --config=configs/sweep.py:table=vtab,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/tfds --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/vtab
    python main.py --config=configs/sweep.py:table=fgvc,method=linear+lora+toast,task=cub+cars \\
        --config.data.root=data --config.top_down=weights/vit_b16_in1k_top_down.pth --workdir=runs/fgvc
    python main.py --config=configs/sweep.py:table=fewshot,method=linear+lora+toast,task=birds+cars,shots=1+4+all \\
        --config.data.root=data --workdir=runs/fewshot
    python main.py --config=configs/sweep.py:table=segmentation,method=linear+lora+toast,task=voc+mine \\
        --config.data.root=data --workdir=runs/segmentation

table: vtab, fgvc, fewshot or segmentation. method: those of configs/fgvc.py, joined by +, or all. task: tasks of
configs/vtab.py, or datasets of configs/fgvc.py or configs/segment.py, joined by +, or all; for fewshot and segmentation also
folders of data.root. head: for segmentation, upernet (the default) or linear. shots: for fewshot, how many training images of
each class, joined by +; all is no limit. recipe: for vtab, toast (the default, described below), paper (the grid and the
optimizer of each method's own paper: ssf, adapter_plus, ep, bias, ln) or fixed (no tuning per task: the recipe of Adapter+ for
every method and task, three seeds). Fields of a run apply to every run, except for those that the sweep sets itself.
vtab: each point of sweep.grid is trained on train800; the best on val200 after the last epoch (ties: the smaller learning rate,
then the smaller weight decay) is trained on train800val200 with each of sweep.seeds and tested once. A grid trains as one
program. fgvc: the recipe of the set, with each seed; its folder is data.root/NAME. fewshot: each learning rate of sweep.grid
is trained on the shots of the first seed; the best on val is trained on the shots of each seed and tested once. segmentation:
the recipe of configs/segment.py, with each seed, scored on the validation images: public sets have no other masks. Repeat the
command to resume. docs/sweeps.md explains how to use many devices, and configs/table.py makes the table.
"""

import math
import re
from collections.abc import Callable

from ml_collections import ConfigDict

from toast_jax.config import backbone_names, paper_recipes
from toast_jax.config.arguments import arguments, several
from toast_jax.config.run_fields import METHODS
from toast_jax.config.task_fields import SWEEP
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import InputError, choose
from toast_jax.fields import flat_fields, joined, nested


def get_config(text: str | None = None):
    """Return the config of a sweep; `text` is the config arguments."""
    values = arguments(text, table="vtab", method="toast", task="all", shots="", recipe="", head="", backbone="vit_b16_in1k")
    builders: dict[str, Callable] = {"vtab": _vtab, "fgvc": _fgvc, "fewshot": _few_shot, "segmentation": _segmentation}
    build = choose("The config argument table", values["table"], builders)
    methods = several("method", values["method"], _WITHOUT_PROBE if build is _segmentation else METHODS)
    if values["recipe"] and build is not _vtab:
        raise InputError(f"The config argument recipe is for table=vtab; a sweep of {values['table']} has one recipe.")
    axes = {"shots": values["shots"]} if build is _few_shot or values["shots"] else {}
    axes |= {"recipe": values["recipe"] or "toast"} if build is _vtab else {}
    axes |= {"head": values["head"] or "upernet"} if build is _segmentation else {}
    if values["head"] and build is not _segmentation:
        raise InputError(f"The config argument head is for table=segmentation; a sweep of {values['table']} classifies images.")
    if values["shots"] and build is not _few_shot:
        raise InputError(f"The config argument shots is for table=fewshot; {values['table']} has training splits of its own.")
    config, sweep = build(values["backbone"], methods, values["task"], **axes)
    config.task = "sweep"
    config.name = f"{values['table']}_{backbone_names.label(values['backbone'])}"
    defaults = {name.removeprefix("sweep."): field.default for name, field in SWEEP.items()}
    config.sweep = ConfigDict(defaults | sweep | {"table": values["table"], "backbone": values["backbone"]})
    # The sweep sets these for each run.
    own = (config, "method", "seed", "resume", "checkpoint", "confusion"), (config.data, "name", "num_classes", "splits")
    for section, *names in (*own, (config.optimizer, "lr", "weight_decay")):
        for name in names:
            if name in section:  # segmentation lacks some
                del section[name]
    return config


_WITHOUT_PROBE = tuple(name for name in METHODS if name not in ("ep", "toast_ep"))  # for segmentation, which pools no tokens


def _segmentation(backbone: str, methods: tuple[str, ...], task: str, head: str) -> tuple[ConfigDict, dict]:
    names = tuple(paper_recipes.SEGMENTED) if task == "all" else _folders(task)
    config = paper_recipes.segment(dataset="voc", method="toast", backbone=backbone, head=head)
    config.data.root = "data"
    recipes = {name: paper_recipes.segmentation_task(name, head) for name in names}
    for name in ("steps", "eval_every", "checkpoint_every"):
        del config[name]
    for name in ("format", "scale", "crop"):
        del config.data[name]
    return config, {
        "methods": methods,
        "tasks": names,
        "recipes": recipes,
        "grid": {name: {"lr": (), "weight_decay": ()} for name in methods},
        "together": 1,  # a grid of one program is of classification
    }


def _few_shot(backbone: str, methods: tuple[str, ...], task: str, shots: str) -> tuple[ConfigDict, dict]:
    config = paper_recipes.few_shot(backbone)
    config.data.root = "data"
    del config.data["shots"], config.batch_size
    splits = {"train": "train", "val": "val", "test": "test"}
    recipes = {
        f"{name}_{_shots_named(number)}": {
            "data": {"root": name, "num_classes": 0, "shots": number},  # under data.root
            "batch_size": paper_recipes.few_shot_batch_size(number),
        }
        for name in _folders(task)
        for number in _shots(shots or "1+4+16+all")
    }
    return config, {
        "methods": methods,
        "tasks": tuple(recipes),
        "recipes": recipes,
        "grid": {
            name: {"lr": paper_recipes.FEW_SHOT_LR[name], "weight_decay": paper_recipes.FEW_SHOT_WEIGHT_DECAY}
            for name in methods
        },
        "splits": {"selection": {**splits, "test": ""}, "final": {**splits, "val": ""}},
    }


def _folders(task: str) -> tuple[str, ...]:
    """Parse the names of few-shot tasks, which are also names of fields and of folders of runs."""
    for name in (names := tuple(dict.fromkeys(joined(task)))):
        if name == "all" or not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"The config argument task is {name!r}; for table=fewshot name folders of data.root, joined by +, in letters, "
                "digits, _ and -."
            )
    return names


def _shots(text: str) -> list[int]:
    """Parse numbers of images of each class, in ascending order; 0 for all of them, which is last."""
    for shots in joined(text):
        if shots != "all" and not (shots.isdecimal() and int(shots)):
            raise InputError(
                f"The config argument shots is {shots!r}; write numbers of images of each class from 1 on, or all, joined by +."
            )
    return sorted({0 if shots == "all" else int(shots) for shots in joined(text)}, key=lambda shots: shots or math.inf)


def _shots_named(shots: int) -> str:
    return f"{shots}shot" if shots else "all"


def _vtab(backbone: str, methods: tuple[str, ...], task: str, recipe: str) -> tuple[ConfigDict, dict]:
    config = paper_recipes.vtab("cifar100", "toast", backbone, "final")
    tasks = several("task", task, TASKS)
    recipes = {name: paper_recipes.vtab_recipe(recipe, name) for name in methods}
    seeds = {"seeds": paper_recipes.FIXED_SEEDS} if recipe == "fixed" else {}
    # TOAST's recipe is that of `config`, so that its fields can be set there for every method.
    changes = {
        name: {**of_method.fields, "optimizer.no_decay": of_method.no_decay}
        for name, of_method in recipes.items()
        if recipe != "toast"
    }
    of_toast = flat_fields(config.to_dict())
    for field in {field for fields in changes.values() for field in fields}:
        changes = {name: {field: of_toast[field], **fields} for name, fields in changes.items()}
        section, _, name = field.rpartition(".")
        del (config[section] if section else config)[name]
    return config, {
        **seeds,
        "recipe": recipe,
        "methods": methods,
        "tasks": tasks,
        "recipes": {name: {"data": {"name": name, "num_classes": TASKS[name].num_classes}} for name in tasks},
        "grid": {name: {"lr": of_method.lr, "weight_decay": of_method.weight_decay} for name, of_method in recipes.items()},
        "changes": {name: nested(fields) for name, fields in changes.items()},
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
