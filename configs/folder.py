"""Your own images, in class folders or in a table.

    python main.py --config=configs/folder.py:method=toast,backbone=vit_b16_in1k --config.data.root=FOLDER \\
        --config.backbone.weights=weights/vit_b16_in1k.pth --config.data.held_out=0.2

held_out takes a share of each class for validation, from train/ or, without split folders, from FOLDER/CLASS/. Without it, set
the splits that you do not have to "". With --config.data.format=table, data.root is a CSV or Parquet file (docs/data.md). At
the end the log lists the pairs of classes that are confused most. The recipe is that of the fine-grained sets, except for the
head, which starts at zero.
"""

from toast_jax.config.arguments import arguments
from toast_jax.config.run_fields import base


def get_config(text: str | None = None):
    """Return the config of one method; `text` is the config arguments."""
    values = arguments(text, method="toast", backbone="vit_b16_in1k")
    config = base(name=f"folder_{values['method']}_{values['backbone']}", **values)
    config.data.format = "folder"
    config.data.exif_orientation = True
    config.head.start = "zeros"  # a random head of few classes is large, and its first gradients spoil pre-tuned parameters
    config.warmup_epochs = config.get_oneway_ref("epochs") // 10  # 10 of 100, as in the recipe
    config.confusion = True
    return config
