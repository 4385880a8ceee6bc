"""VTAB-1k: one run of one of its 19 tasks (the recipe of the release).

    python main.py --config=configs/vtab.py:task=cifar100,method=toast,backbone=vit_b16_in1k,split=selection \\
        --config.optimizer.lr=0.5 --config.optimizer.weight_decay=0.001 --workdir=runs/cifar100_0.5_0.001
    python main.py --config=configs/vtab.py:task=cifar100,method=toast,backbone=vit_b16_in1k,split=final \\
        --config.top_down=weights/vit_b16_in1k_top_down.pth

task: a row of toast_jax/data/images/vtab/tasks.py. method: as in configs/fgvc.py. split: final (trains on train800val200,
test) or selection (train800, val200; no test image is opened). configs/prepare.py prepares the data, once.
configs/sweep.py runs the whole protocol: it tries the learning rates of LR, meant for batches of 256, with the weight decays of
WEIGHT_DECAY, takes the best on val200 and runs the seeds of SEEDS with it. The defaults here are in the middle.
The paper's mean top-1 with ViT-B/16 (ImageNet-1k) for toast: natural 76.4, specialized 84.6, structured 56.2, all 69.6; its row
is quoted from a public review of a later version of the paper.
"""

from configs import common
from toast_jax.data.images.vtab.tasks import TASKS
from toast_jax.errors import choose

# The grid of the release; for linear, that of VPT's code. None is published for partial and bias: theirs is ours.
_RATES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
_HIGH_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
LR = {
    "linear": _HIGH_RATES,
    "finetune": (5e-3, 1e-3, 5e-4, 1e-4),
    "partial": _RATES,
    "bias": _RATES,
    "vpt": _HIGH_RATES,
    "lora": _RATES,
    "toast": _RATES,
    "toast_lite": _RATES,
}
WEIGHT_DECAY = (1e-2, 1e-3, 1e-4, 0.0)
SEEDS = (42, 44, 82, 100, 800)

# Where a single run starts; other methods from the middle of the grid of toast and lora.
_LR = {"vpt": 5.0, "finetune": 1e-3}
SPLITS = {
    "final": {"train": "train800val200", "val": "", "test": "test"},
    "selection": {"train": "train800", "val": "val200", "test": ""},
}


def get_config(text: str | None = None):
    """The config of one task, method and split; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, task="cifar100", method="toast", backbone="vit_b16_in1k", split="final")
    task = choose("The config argument task", given["task"], TASKS)
    splits = choose("The config argument split", given["split"], SPLITS)
    name = f"vtab_{given['task']}_{given['method']}_{given['backbone']}_{given['split']}"
    config = common.base(name=name, method=given["method"], backbone=given["backbone"])
    config.prompts.dropout = 0.1
    config.data.format, config.data.name, config.data.root = "vtab", given["task"], "data/tfds"
    config.data.splits.update(splits)
    config.data.num_classes = task.num_classes
    config.data.resize = config.data.image_size = 224
    config.data.verify = False  # opening reads every image that is trained on
    config.augment.flip = False
    config.batch_size = 32
    config.optimizer.lr = _LR.get(given["method"], 0.1)
    config.optimizer.base_batch_size = 256
    config.optimizer.weight_decay = 1e-3
    config.eval_every = config.epochs  # once, after the last epoch
    return config
