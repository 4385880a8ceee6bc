"""How much of the attention of tuned networks is on the object, in numbers.

    python main.py --config=configs/attention.py:runs=runs/toast+runs/lora,objects=boxes.json --workdir=metrics
    python main.py --config=configs/attention.py:runs=runs/toast+runs/lora --workdir=metrics

runs: folders of runs with one image size and the same classes, joined by +. images: a split of the first run's data (train,
val, test), or folders and images, joined by +. objects: a JSON file of boxes, a folder of masks, or the name of a TFDS feature
(bbox, segmentation_mask); without them, deletion and insertion. weights: the backbone of the runs, if its file has moved.
docs/attention.md tells what is measured, and what the files hold.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(text: str | None = None):
    """`text` is what follows the colon of `--config`."""
    given = common.arguments(text, runs="", images="test", objects="", weights="")
    return ConfigDict(
        {
            "name": "attention_metrics",
            "task": "attention_metrics",
            **given,
            "runs": common.joined(given["runs"]),
            "only_annotated": False,  # leave out images without a box or a mask
            "threshold_split": "val",  # where the best single threshold is picked; "": on the images that are measured
            "shares": (0.1, 0.25, 0.5),  # of the pixels, the highest, whose IoU is measured
            "steps": 16,  # of deletion and insertion
            "most": 0,  # measure at most so many images, at even distances; 0: all
            "seed": 0,  # of the bootstrap, and of the order of equal cells
            "batch_size": 32,
        }
    )
