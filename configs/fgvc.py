"""FGVC: five fine-grained sets (paper, table 1; the release's recipes).

    python main.py --config=configs/fgvc.py:dataset=cub,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/cub --config.top_down=weights/vit_b16_in1k_top_down.pth

dataset: cub, nabirds, flowers, dogs, cars. method: linear, finetune, partial, bias, vpt, lora, toast, toast_lite.
backbone: a ViT, or a ConvNeXt such as convnext_b_in21k, for every method but vpt.
`data.root` holds train.json, val.json and test.json (image path -> class) as released by VPT, and the images.
configs/sweep.py runs all five, with the seeds of SEEDS.
The paper's top-1 with ViT-B/16 (ImageNet-1k): CUB 85.0, NABirds 75.2, Flowers 88.7, Dogs 97.4, Cars 84.5 for toast.
"""

import dataclasses

from configs import common
from toast_jax.errors import choose


@dataclasses.dataclass(frozen=True)
class Dataset:
    num_classes: int
    image_dir: str
    lr: float
    weight_decay: float


DATASETS = {
    "cub": Dataset(200, "images", 0.03, 5e-4),
    "nabirds": Dataset(555, "images", 0.01, 1e-2),
    "flowers": Dataset(102, "", 0.01, 1e-4),
    "dogs": Dataset(120, "Images", 0.02, 1e-4),
    "cars": Dataset(196, "", 0.02, 1e-4),
}
# The release runs each recipe once; with these seeds a mean and a deviation can be told, as on VTAB-1k.
SEEDS = (42, 44, 82, 100, 800)


def get_config(text: str | None = None):
    """The config of one dataset and method; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, dataset="cub", method="toast", backbone="vit_b16_in1k")
    dataset = choose("The config argument dataset", given["dataset"], DATASETS)
    name = f"fgvc_{given['dataset']}_{given['method']}_{given['backbone']}"
    config = common.base(name=name, method=given["method"], backbone=given["backbone"])
    config.data.root = f"data/{given['dataset']}"
    config.data.image_dir = dataset.image_dir
    config.data.num_classes = dataset.num_classes
    config.optimizer.lr = dataset.lr
    config.optimizer.weight_decay = dataset.weight_decay
    return config
