"""Your own images: folders train/CLASS/*.jpg, and val/ and test/ alike.

    python main.py --config=configs/folder.py:method=toast,backbone=vit_b16_in1k --config.data.root=FOLDER \\
        --config.backbone.weights=weights/vit_b16_in1k.pth --config.data.splits.test=""

Set the splits that you do not have to "". At the end it tells which classes are confused with which. The recipe is the one of
the fine-grained sets, but for the head, which starts at zero.
"""

from configs import common


def get_config(text: str | None = None):
    """The config of one method; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, method="toast", backbone="vit_b16_in1k")
    name = f"folder_{given['method']}_{given['backbone']}"
    config = common.base(name=name, method=given["method"], backbone=given["backbone"])
    config.data.format = "folder"
    config.head.start = "zeros"  # a random head of few classes is large, and its first gradients spoil what was pre-tuned
    config.confusion = True
    return config
