"""Pre-tune the top-down module on generic images, or on your own.

The loss is the cross-entropy of the second look plus the variational loss; the backbone stays frozen. ImageNet-1k, prepared by
TFDS as array_record, or in folders with --config.data.format=folder --config.data.splits.val=val:

    python main.py --config=configs/pretune.py:backbone=vit_b16_in1k --workdir=runs/pretune_vit_b16 \\
        --config.data.root=data/tfds

Your own images, with or without classes (folders train/CLASS/, or train/ with images anywhere in it):

    python main.py --config=configs/pretune.py:source=downstream,labels=no,backbone=vit_b16_in1k --config.data.root=data/mine

With a backbone whose file holds the classifier of the same classes (DeiT's of ImageNet-1k, say), keep that one as it is, by
`--config.head.start=classifier --config.head.tune=False`: on few images one that learns memorises them (docs/results.md).
The run leaves `top_down.safetensors` in its folder, for `--config.top_down=FILE` of a run that tunes.
source: imagenet, downstream, scenes (of the demo, with its backbone vit_mini8). labels: yes, no (the variational loss alone).
The release has no recipe for this stage. This one is ours: the predecessor's (AbSViT: AdamW, DeiT's augmentation) with fewer
epochs, as only the feedback layers learn; it has not been run on ImageNet-1k yet.
"""

from configs import common, pretrain
from toast_jax.errors import choose


def get_config(text: str | None = None):
    """The config of one backbone and source; `text` is what follows the colon of `--config`."""
    given = common.arguments(text, source="imagenet", labels="yes", backbone="vit_b16_in1k")
    labels = common.yes_no("labels", given["labels"])
    sources = {"imagenet": _imagenet, "downstream": _downstream, "scenes": _scenes}
    name = f"pretune_{given['source']}_{given['backbone']}"
    config = common.base(name=name, method="toast", backbone=given["backbone"], stage="pretune")
    config.data.labels = labels
    config.head.start = "zeros"
    config.task_weight = 1.0 if labels else 0.0
    config.data.splits.val = config.data.splits.test = ""

    config.batch_size = 1024
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "step"
    config.optimizer.lr = 5e-4
    config.optimizer.base_batch_size = 512
    config.optimizer.weight_decay = 0.05
    config.optimizer.no_decay = ("head/bias", "top_down/prior")
    config.optimizer.clip = 1.0
    config.backbone.drop_path = 0.0  # the signal is learned for the network as it is evaluated
    config.augment.min_crop_area = 0.08
    choose("The config argument source", given["source"], sources)(config)
    return config


def _imagenet(config):
    config.data.format, config.data.name, config.data.root = "tfds", "imagenet2012", "data/tfds"
    config.data.splits.val = "validation"
    config.data.verify = False  # 1.3 million images
    config.data.num_classes = 1000 if config.data.labels else 0
    config.epochs, config.warmup_epochs = 30, 5
    if config.data.labels:
        config.augment.randaugment_ops = 2
        config.augment.erasing = 0.25
        config.augment.mixup = 0.8
        config.augment.cutmix = 1.0
        config.augment.label_smoothing = 0.1


def _downstream(config):
    """Few images: small batches at the same rate, larger crops, and no mixing."""
    config.data.format = "folder"
    config.batch_size = 32
    config.optimizer.lr, config.optimizer.base_batch_size = 1e-3, 0
    config.epochs, config.warmup_epochs = 10, 1
    config.augment.min_crop_area = 0.3


def _scenes(config):
    """The task of the demo's backbone, with its own classifier."""
    pretrain.scenes(config, task="salient", train=10_000, val=1_000, test=2_000)
    config.backbone.weights = "assets/vit_mini8.safetensors"
    config.head.start, config.head.tune = "classifier", False
    config.batch_size = 128
    config.optimizer.lr, config.optimizer.base_batch_size = 1e-3, 0
    config.epochs, config.warmup_epochs = 4, 1
    config.eval_every = 1
    config.augment.min_crop_area = 1.0
