"""Semantic segmentation: VOC2012, ADE20K, Cityscapes, or your own masks.

    python main.py --config=configs/segment.py:dataset=voc,method=toast,backbone=vit_b16_in1k \\
        --config.data.root=data/VOCdevkit/VOC2012 --config.top_down=weights/vit_b16_in1k_top_down.pth

dataset: voc, ade20k, cityscapes, folder (docs/segmentation.md says where their files are). method: a row of
toast_jax/model/methods.py that has no probe. head: upernet, or linear, a linear probe of the last map.
The recipe is that of AbSViT's segmentation, which tunes everything: AdamW at 6e-5, 1,500 steps of warm-up, then linearly to
zero. The linear head has no published recipe here; its learning rate is 1e-3.
"""

from toast_jax.config import paper_recipes
from toast_jax.config.arguments import arguments


def get_config(text: str | None = None):
    """Return the config of one dataset and method; `text` is the config arguments."""
    return paper_recipes.segment(**arguments(text, dataset="folder", method="toast", backbone="vit_b16_in1k", head="upernet"))
