"""FGVC: five fine-grained sets (paper, table 1; the release's recipes).

    python main.py --config=configs/fgvc.py:dataset=cub,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/cub --config.top_down=weights/vit_b16_in1k_top_down.pth

dataset: cub, nabirds, flowers, dogs, cars. method: a row of toast_jax/model/methods.py.
backbone: a ViT, or a ConvNeXt such as convnext_b_in21k, which supports every method but vpt.
`data.root` holds the images, and train.json, val.json and test.json (image path -> class) as released by VPT.
recipe: toast (the release's), or paper (that of the method's own paper: ssf, adapter_plus, ep).
configs/sweep.py runs all five sets with five seeds each.
The paper's top-1 with ViT-B/16 (ImageNet-1k): CUB 85.0, NABirds 75.2, Flowers 88.7, Dogs 97.4, Cars 84.5 for toast.
"""

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments


def get_config(text: str | None = None):
    """Return the config of one dataset and method; `text` is the config arguments."""
    return paper_recipes.fgvc(**arguments(text, dataset="cub", method="toast", backbone="vit_b16_in1k", recipe="toast"))
