"""Recipes that several configs share: the paper's tables, FGVC and VTAB-1k; few-shot; the scenes of the demo."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from toast_jax.config.run_fields import base, masks
from toast_jax.data.images.statistics import IMAGENET
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose
from toast_jax.fields import nested

# The release trains each FGVC recipe once; the seeds of VTAB-1k give a mean and a deviation.
SEEDS = (42, 44, 82, 100, 800)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The release's recipe for one set of FGVC."""

    num_classes: int
    image_dir: str
    lr: float
    weight_decay: float


FGVC = {
    "cub": Dataset(200, "images", 0.03, 5e-4),
    "nabirds": Dataset(555, "images", 0.01, 1e-2),
    "flowers": Dataset(102, "", 0.01, 1e-4),
    "dogs": Dataset(120, "Images", 0.02, 1e-4),
    "cars": Dataset(196, "", 0.02, 1e-4),
}

# The release's grid; for linear, the grid of VPT's code. No grid of SGD is published for partial, bias, ln,
# ssf and adapter_plus, so they use the grid of lora.
_RATES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
_HIGH_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
VTAB_LR = {
    "linear": _HIGH_RATES,
    "ep": _RATES,
    "finetune": (5e-3, 1e-3, 5e-4, 1e-4),
    "partial": _RATES,
    "bias": _RATES,
    "ln": _RATES,
    "ssf": _RATES,
    "adapter_plus": _RATES,
    "vpt": _HIGH_RATES,
    "lora": _RATES,
    "toast": _RATES,
    "toast_lite": _RATES,
    "toast_ep": _RATES,
}
VTAB_WEIGHT_DECAY = (1e-2, 1e-3, 1e-4, 0.0)
# Learning rate of a single run; for other methods from the middle of the grid of toast and lora.
_VTAB_SINGLE_LR = {"vpt": 5.0, "finetune": 1e-3}
# Decay leaves out vectors, in the recipes with AdamW.
_VECTORS = {"ssf": ("ssf/.*",), "adapter_plus": ("adapter/.*(_bias|scaling)",)}
_VECTORS |= dict.fromkeys(("toast", "toast_lite", "toast_ep"), ("top_down/prior",))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How runs of one method on VTAB-1k are optimized.

    Attributes:
      lr, weight_decay: the grid; a single point is trained without a selection.
      fields: of the run, by dotted name, where they differ from TOAST's recipe.
      no_decay: value of `config.optimizer.no_decay`.
    """

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    no_decay: tuple[str, ...] = ("head/bias",)


_ADAMW = {"optimizer.name": "adamw", "optimizer.base_batch_size": 0, "batch_size": 64}
# Efficient Probing (arXiv 2506.10178), published for ImageNet-1k with batches of 4096; the rate scales with the batch.
_LARS = {"optimizer.name": "lars", "optimizer.base_batch_size": 256, "optimizer.schedule": "step", "epochs": 90}
# Of the methods' own papers; those of bias and ln are of ViT_PEFT_Vision. SSF states the range of rates, not its points.
_PAPERS = {
    "ssf": Recipe((1e-3, 5e-3, 1e-2, 5e-2), (5e-5, 5e-2), _ADAMW, ("head/bias", *_VECTORS["ssf"])),
    "adapter_plus": Recipe((1e-3,), (1e-4,), _ADAMW, ("head/bias", *_VECTORS["adapter_plus"])),
    "ep": Recipe((0.1,), (0.0,), _LARS),
    **dict.fromkeys(("bias", "ln"), Recipe((1e-3, 1e-2), (1e-4, 1e-3), _ADAMW)),
}
# Of the runs without tuning per task (Adapter+): one recipe for all tasks and methods.
FIXED_SEEDS = (18, 45, 25)


def vtab_recipe(name: str, method: str) -> Recipe:
    """Return a recipe for VTAB-1k.

    Args:
      name: toast (the grid of the release, with SGD), paper (of the method's own paper) or fixed (Adapter+'s for every
        method: one point, AdamW).
      method: of the runs.

    Raises:
      InputError: an unknown name, or a method without a recipe of its own.
    """
    recipes = {
        "toast": lambda: Recipe(VTAB_LR[method], VTAB_WEIGHT_DECAY),
        "paper": lambda: choose("With recipe=paper, the config argument method", method, _PAPERS),
        "fixed": lambda: Recipe((1e-3,), (1e-4,), _ADAMW, (".*/(bias|scale|gamma)", *_VECTORS.get(method, ()))),
    }
    return choose("The config argument recipe", name, recipes)()


VTAB_SPLITS = {
    "final": {"train": "train800val200", "val": "", "test": "test"},
    "selection": {"train": "train800", "val": "val200", "test": ""},
}


# SSF's rates and drop-path of FGVC, and the augmentation of Adapter+ and SSF.
_SSF_FGVC = {"cub": (1e-2, 0.0), "nabirds": (2e-4, 0.1), "flowers": (1e-2, 0.1), "dogs": (2.5e-4, 0.0), "cars": (2e-2, 0.0)}
_CROPS = {"augment.min_crop_area": 0.08}
_SSF_MIXING = {"augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.label_smoothing": 0.1, "augment.erasing": 0.25}


def _fgvc_of_papers(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the fields of the methods' own recipes, by method."""
    lr, drop_path = _SSF_FGVC[dataset]
    ssf = {"optimizer.lr": lr, "optimizer.weight_decay": 0.05, "backbone.drop_path": drop_path, **_SSF_MIXING}
    ssf |= {"ema": 0.999 if dataset == "flowers" else 0.9998}
    adapter_plus = {"optimizer.lr": 1e-3, "optimizer.weight_decay": 1e-4}
    ep = {"optimizer.lr": 0.1, "optimizer.weight_decay": 0.0}
    return {
        name: {**_PAPERS[name].fields, **_CROPS, **fields, "optimizer.no_decay": _PAPERS[name].no_decay}
        for name, fields in (("ssf", ssf), ("adapter_plus", adapter_plus), ("ep", ep))
    }


def fgvc(dataset: str, method: str, backbone: str, recipe: str = "toast") -> ConfigDict:
    """Return the config of one run on a set of FGVC, by the recipe of the release or (paper) of the method's own paper."""
    choose("The config argument recipe", recipe, dict.fromkeys(("toast", "paper")))
    of_release = choose("The config argument dataset", dataset, FGVC)
    config = base(name=f"fgvc_{dataset}_{method}_{backbone}", method=method, backbone=backbone)
    config.data.root = f"data/{dataset}"
    config.data.image_dir = of_release.image_dir
    config.data.num_classes = of_release.num_classes
    config.data.normalize = IMAGENET  # as in the release, also for backbones that were trained with other statistics
    config.optimizer.lr = of_release.lr
    config.optimizer.weight_decay = of_release.weight_decay
    if recipe == "paper":
        of_papers = _fgvc_of_papers(dataset)
        config.update(nested(choose("With recipe=paper, the config argument method", method, of_papers)))
    return config


def vtab(task: str, method: str, backbone: str, split: str, recipe: str = "toast") -> ConfigDict:
    """Return the config of one run on one task of VTAB-1k, in the middle of the grid of its `vtab_recipe`."""
    classes = choose("The config argument task", task, TASKS).num_classes
    splits = choose("The config argument split", split, VTAB_SPLITS)
    config = base(name=f"vtab_{task}_{method}_{backbone}_{split}", method=method, backbone=backbone)
    config.prompts.dropout = 0.1
    config.data.format, config.data.name, config.data.root = "vtab", task, "data/tfds"
    config.data.splits.update(splits)
    config.data.num_classes = classes
    config.data.resize = config.data.image_size  # the whole image, 224 pixels for the backbones of the paper
    config.data.normalize = IMAGENET
    config.data.verify = False  # opening the data decodes every training image
    config.augment.flip = False
    config.batch_size = 32
    config.optimizer.lr = _VTAB_SINGLE_LR.get(method, 0.1)
    config.optimizer.base_batch_size = 256
    config.optimizer.weight_decay = 1e-3
    config.eval_every = config.epochs  # once, after the last epoch
    if recipe != "toast":
        of_method = vtab_recipe(recipe, method)
        config.update(nested({**of_method.fields, "optimizer.no_decay": of_method.no_decay}))
        config.optimizer.lr = of_method.lr[len(of_method.lr) // 2]
        config.optimizer.weight_decay = of_method.weight_decay[-1]
    return config


# Every other rate of VTAB-1k's grid.
FEW_SHOT_LR = {method: rates[::2] for method, rates in VTAB_LR.items()}
FEW_SHOT_WEIGHT_DECAY = (1e-3,)


def few_shot(backbone: str) -> ConfigDict:
    """Return the config that few-shot runs of all methods share: the optimization of VTAB-1k, on crops and flips.

    Each image has four fixed views and drop-path is off, so the first look is computed once (`config.keep_known`).
    """
    config = base(name=f"few_shot_{backbone}", method="toast", backbone=backbone)
    config.backbone.drop_path = 0.0
    config.head.start = "zeros"  # a random head of few classes is large, and its first gradients spoil pre-tuned parameters
    config.prompts.dropout = 0.1
    config.data.image_dir = "images"
    config.data.views = 4
    config.optimizer.base_batch_size = 256
    config.eval_every = config.epochs  # once, after the last epoch
    return config


def few_shot_batch_size(shots: int) -> int:
    """Return the batch size for so many images of each class, 0 for all; a task of eight classes fills a batch."""
    return min(8 * shots or 32, 32)


def scenes(config: ConfigDict, *, task: str, train: int, val: int, test: int) -> None:
    """Set the data of a config to scenes of one task (see toast_jax/data/images/synthetic_scenes.py)."""
    config.data.format, config.data.name = "scenes", task
    config.data.splits.update({"train": f"train[:{train}]", "val": f"val[:{val}]", "test": f"test[:{test}]"})
    config.data.resize = config.data.image_size = 64
    config.data.verify = False
    config.data.views = 1  # the scene as it is, so that the first look is computed once
    config.augment.flip, config.augment.min_crop_area = False, 1.0


def masked_scenes(config: ConfigDict, *, train: int, val: int, test: int) -> None:
    """Set the data of a config of segmentation to scenes as they are (see toast_jax/data/images/segmentation/scenes.py)."""
    config.data.format, config.data.verify, config.data.image_size = "scenes", False, 64
    config.data.splits.update({"train": f"train[:{train}]", "val": f"val[:{val}]", "test": f"test[:{test}]"})
    config.data.scale = config.data.crop = (64, 64)
    config.augment.factors, config.augment.flip, config.augment.distortion = (1.0, 1.0), False, False


# Folder, splits and what differs from VOC in AbSViT's recipe for each set.
_SEGMENTED: dict[str, dict[str, Any]] = {
    "folder": {"data.root": "data/mine"},
    "voc": {"data.root": "data/VOCdevkit/VOC2012"},
    "ade20k": {
        "data.root": "data/ADEChallengeData2016",
        **{"data.splits.train": "training", "data.splits.val": "validation"},
        **{"steps": 160_000, "eval_every": 16_000, "checkpoint_every": 4_000},
    },
    "cityscapes": {
        "data.root": "data/cityscapes",
        **{"data.scale": (2048, 1024), "data.crop": (512, 1024)},
        **{"steps": 40_000, "eval_every": 4_000},
    },
}


def segment(*, dataset: str, method: str, backbone: str, head: str) -> ConfigDict:
    """Return a run of semantic segmentation, with AbSViT's recipe (Shi et al., arXiv 2303.13043)."""
    values = choose("The config argument dataset", dataset, _SEGMENTED)
    config = masks(name=f"segment_{dataset}_{method}_{backbone}", method=method, backbone=backbone)
    config.data.format, config.data.splits.test, config.segmentation.head = dataset, "", head
    if head == "linear":
        config.optimizer.lr = 1e-3
    config.update_from_flattened_dict(values)
    return config


SEGMENTED = tuple(name for name in _SEGMENTED if name != "folder")


def segmentation_task(name: str, head: str) -> dict[str, Any]:
    """Return what the runs on a set of `SEGMENTED`, or on a folder of `data.root`, do not share with other sets."""
    is_public = name in SEGMENTED
    config = segment(dataset=name if is_public else "folder", method="linear", backbone="vit_b16_in1k", head=head)
    train, val = config.data.splits.train, config.data.splits.val
    return {
        "data": {
            "root": config.data.root.removeprefix("data/") if is_public else name,  # under data.root
            **{field: config.data[field] for field in ("format", "scale", "crop")},
        },
        "splits": {
            "selection": {"train": train, "val": val, "test": ""},
            "final": {"train": train, "val": "", "test": val},
        },
        "optimizer": {field: config.optimizer[field] for field in ("lr", "weight_decay")},
        **{field: config[field] for field in ("steps", "eval_every", "checkpoint_every")},
    }
