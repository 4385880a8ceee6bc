"""Pre-tune a method on generic images, or on your own.

The loss is the cross-entropy; with a top-down module, of the second look and plus the variational loss. On ImageNet-1k,
prepared by TFDS as array_record, or in folders with --config.data.format=folder --config.data.splits.val=val:

    python main.py --config=configs/pretune.py:backbone=vit_b16_in1k --workdir=runs/pretune_vit_b16 \\
        --config.data.root=data/tfds

On your own images, labeled (folders train/CLASS/) or not (images anywhere in train/):

    python main.py --config=configs/pretune.py:source=downstream,labels=no,backbone=vit_b16_in1k --config.data.root=data/mine

If the backbone's file holds a classifier of the same classes (such as DeiT's of ImageNet-1k), keep it frozen with
`--config.head.start=classifier --config.head.tune=False`: a tuned head memorizes a small set of images (docs/results.md).
The run writes `module.safetensors` to its folder, without the head, for `--config.module=FILE` of a tuning run of the same
method; that of toast is also named `top_down.safetensors`, for `--config.top_down=FILE`.
method: any but linear and the methods with a probe, all with one recipe. source: imagenet, downstream, scenes (the
demo's, with backbone vit_nano8). labels: yes, no (variational and distillation loss; the latter matches the classifier of the
backbone's file with --config.head.start=classifier, and its tokens without).
The release has no recipe for this stage. This one is ours: that of its predecessor (AbSViT: AdamW, DeiT's augmentation) with
fewer epochs, because only the feedback layers are tuned. It has not been run on ImageNet-1k yet.
"""

from toast_jax.config.arguments import arguments, yes_no
from toast_jax.config.paper_recipes import scenes
from toast_jax.config.run_fields import base
from toast_jax.errors import choose

_NO_DECAY = {"toast": ("top_down/prior",), "toast_lite": ("top_down/prior",)}


def get_config(text: str | None = None):
    """Return the config of one backbone and source; `text` is the config arguments."""
    defaults = {"source": "imagenet", "labels": "yes", "backbone": "vit_b16_in1k", "method": "toast"}
    values = arguments(text, **defaults)
    labels = yes_no("labels", values["labels"])
    sources = {"imagenet": _imagenet, "downstream": _downstream, "scenes": _scenes}
    method = values["method"]
    name = "_".join(["pretune", values["source"], values["backbone"], *{method} - {defaults["method"]}])
    config = base(name=name, method=method, backbone=values["backbone"], stage="pretune")
    config.data.labels = labels
    config.head.start = "zeros"
    config.task_weight, config.distillation_weight = (1.0, 0.0) if labels else (0.0, 1.0)
    config.data.splits.val = config.data.splits.test = ""

    config.batch_size = 1024
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "step"
    config.optimizer.lr = 5e-4
    config.optimizer.base_batch_size = 512
    config.optimizer.weight_decay = 0.05
    config.optimizer.no_decay = ("head/bias", *_NO_DECAY.get(method, ()))
    config.optimizer.clip = 1.0
    config.backbone.drop_path = 0.0  # tune the top-down signal for the network as it is evaluated
    config.augment.min_crop_area = 0.08
    choose("The config argument source", values["source"], sources)(config)
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
    """Adapt the recipe to few images: small batches at an unscaled learning rate, larger crops, no mixing."""
    config.data.format = "folder"
    config.data.exif_orientation = True
    config.batch_size = 32
    config.optimizer.lr, config.optimizer.base_batch_size = 1e-3, 0
    config.epochs, config.warmup_epochs = 10, 1
    config.augment.min_crop_area = 0.3


def _scenes(config):
    """Name the brightest of four digits, with the classifier of a backbone that was trained on scenes of one digit."""
    scenes(config, task="brightest", train=12_800, val=1_000, test=2_000)
    config.backbone.weights = "assets/vit_nano8.safetensors"
    config.head.start, config.head.tune = "classifier", False
    config.batch_size = 64
    config.optimizer.lr, config.optimizer.base_batch_size = 3e-3, 0
    config.optimizer.weight_decay = 0.01
    config.epochs, config.warmup_epochs = 4, 1
    config.eval_every = config.epochs
