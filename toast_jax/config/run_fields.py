"""The fields of a run, on images or on text: one row each. The base configs are the defaults of these rows.

Rows that depend on the family of the backbone (its name, sizes, methods and own fields) are completed by `schema.py`.
Reading a config must not import JAX or Pillow, so nothing here does; a test checks that choices written out here are complete.
"""

import dataclasses

from ml_collections import ConfigDict

from toast_jax.config import backbone_names
from toast_jax.data.images.statistics import IMAGENET
from toast_jax.data.text import chat
from toast_jax.data.text.documents import FORMATS
from toast_jax.fields import (
    COUNT,
    FLAG,
    SEED,
    SHARE,
    TEXT,
    TO_EVALUATE,
    TO_MOVE,
    TO_RESUME,
    Choice,
    Field,
    PerChannel,
    Regex,
    Several,
    Text,
    nested,
    real,
    whole,
)

TEMPLATES = (chat.OWN, *chat.NAMED)
MASK_FORMATS = ("folder", "voc", "ade20k", "cityscapes", "scenes")
_AS_FILES = "write its images and masks to a folder (docs/segmentation.md has the lines), and set --config.data.format=folder"
IMAGE_FORMATS = ("json", "folder", "tfds", "vtab", "scenes", "table")
METHODS = (
    *("linear", "ep", "finetune", "partial", "bias", "ln", "ssf", "adapter_plus", "vpt", "lora"),
    *("toast", "toast_lite", "toast_ep"),
)

# Upper bounds far beyond practical values keep a typo from exhausting memory.
_RUN = {
    "name": Field("mine", Text("mine"), "name of the run; without --workdir its folder is runs/NAME"),
    "task": Field("train", Choice(("train", "evaluate")), "train a run, or evaluate its checkpoint", TO_RESUME),
    "stage": Field("tune", Choice(("tune", "pretune")), "tune the downstream task, or pre-tune a module for it"),
    "method": Field("toast", Choice(METHODS), "transfer method; a row of toast_jax/model/methods.py"),
    "seed": Field(42, SEED, "seed of initialization, data order, augmentation and dropout"),
    "resume": Field(True, FLAG, "resume from the last checkpoint in --workdir", TO_RESUME),
    "backbone.family": Field("vit", TEXT, "family of the backbone; a record of toast_jax/model/families.py"),
    "backbone.size": Field("B", TEXT, "size of the backbone, within its family"),
    "backbone.weights": Field(
        "weights/vit_b16_in1k.pth",
        Text("weights/vit_b16_in1k.pth"),
        f"file or folder of pre-trained weights, a name, or hf:OWNER/NAME; {backbone_names.RANDOM} for none",
        TO_MOVE,
    ),
    "backbone.dtype": Field(
        "float32", Choice(("float32", "bfloat16")), "dtype to compute in and, for a LLaMA, to store frozen weights in"
    ),
    "backbone.remat": Field(False, FLAG, "recompute activations in the backward pass, which saves memory"),
    "backbone.unroll": Field(
        False, FLAG, "compile every block for itself: faster steps on GPUs, slower start; on CPUs more memory"
    ),
    # Every device has these; JAX's names of algorithms, such as TF32_TF32_F32, fail on some when the step is compiled.
    "precision": Field(
        "default",
        Choice(("default", "high", "highest")),
        "precision of float32 products; highest: float32; default: TF32 on GPUs, bfloat16 passes on TPUs",
        TO_EVALUATE,
    ),
    "module": Field("", TEXT, "what the method has pre-tuned: module.safetensors or hf:OWNER/NAME; '' for none", TO_MOVE),
    "top_down": Field(
        "",
        TEXT,
        "methods that steer: pre-tuned module: a file, a name, or hf:OWNER/NAME; '' for none",
        TO_MOVE,
    ),
    "steered_blocks": Field(
        0,
        whole(0),
        "methods that steer: how many of the last blocks (ConvNeXt: stages) look again, steered; 0: all",
    ),
    "tune_transform": Field(False, FLAG, "toast: also tune the transform of the selected tokens; the release does not"),
    "tune_back": Field(False, FLAG, "toast of a LLaMA: also tune the layers A_l, as the release's first version did"),
    "checkpoint": Field("", TEXT, "task evaluate: a file tuned by the PyTorch release, instead of the checkpoint of --workdir"),
    "lora.rank": Field(4, whole(1, 4096), "rank of the low-rank deltas"),
    "lora.alpha": Field(1.0, real(above=0.0), "deltas are scaled by alpha / rank"),
    "task_weight": Field(1.0, real(0.0), "pretune: weight of the cross-entropy"),
    "variational_weight": Field(0.01, real(0.0), "pretune: weight of the variational loss"),
    "distillation_weight": Field(
        0.0, real(0.0), "pretune: weight of the distillation loss, which needs no labels; images only"
    ),
    "data.format": Field("json", TEXT, "format of the data"),
    "data.splits.train": Field("train", Text("train"), "training split", TO_EVALUATE),
    "data.splits.val": Field("val", TEXT, "validation split; '' for none", TO_EVALUATE),
    "data.splits.test": Field("test", TEXT, "test split; '' for none", TO_EVALUATE),
    "data.workers": Field(0, whole(0, 1024), "processes that load data; 0: threads", TO_RESUME),
    "batch_size": Field(32, COUNT, "examples per step, over all devices", TO_EVALUATE),
    "epochs": Field(100, whole(1, 1_000_000), "epochs to train", TO_EVALUATE),
    "warmup_epochs": Field(10, whole(0), "epochs of linear warmup of the learning rate"),
    "optimizer.name": Field("sgd", Choice(("sgd", "adamw", "lars")), "optimizer"),
    "optimizer.lr": Field(0.02, real(0.0), "peak learning rate"),
    "optimizer.lr_scale": Field(1.0, real(above=0.0), "factor of the learning rate for the parameters of lr_scaled"),
    "optimizer.lr_scaled": Field((), Several(Regex()), "paths of parameters with a learning rate of lr * lr_scale"),
    "optimizer.base_batch_size": Field(0, whole(0), "batch size that lr is for; lr scales with batch_size; 0: no scaling"),
    "optimizer.schedule": Field(
        "epoch", Choice(("epoch", "step", "poly")), "cosine by epoch or by step, or poly: linear to zero by step"
    ),
    "optimizer.momentum": Field(0.9, SHARE, "momentum of sgd and lars"),
    "optimizer.weight_decay": Field(1e-4, real(0.0), "weight decay"),
    "optimizer.no_decay": Field(("head/bias",), Several(Regex()), "paths of parameters without weight decay"),
    "optimizer.clip": Field(0.0, real(0.0), "maximum global norm of the gradients; 0: no clipping"),
    "ema": Field(0.0, SHARE, "decay of a moving average of the tuned parameters, used for evaluation; 0: no average"),
    "skip_nonfinite": Field(0, whole(0), "how many consecutive non-finite steps to skip before stopping"),
    "profile": Field(0, whole(0, 10_000), "trace so many steps, from the fourth on, to profile/ in the workdir", TO_RESUME),
    "log_every": Field(10, COUNT, "steps between log lines", TO_RESUME),
    "eval_every": Field(10, COUNT, "epochs between evaluations", TO_RESUME),
    "checkpoint_every": Field(5, COUNT, "epochs between checkpoints", TO_RESUME),
}


IMAGES = _RUN | {
    "data.format": Field(
        "json",
        Choice(IMAGE_FORMATS),
        "json: VPT's; folder: SPLIT/CLASS/IMAGE; tfds, vtab: TFDS; scenes: the demo; table: CSV, Parquet",
    ),
    "backbone.drop_path": Field(0.0, SHARE, "stochastic depth: rate of the last block; the base config of a ViT has 0.1"),
    "tuned_blocks": Field(1, COUNT, "partial: number of last blocks to tune"),
    "head.start": Field(
        "random",
        Choice(("random", "zeros", "classifier")),
        "initial head: random as in the release, zeros, or the classifier of the backbone's file",
    ),
    "head.tune": Field(True, FLAG, "tune the head"),
    "probe.queries": Field(32, whole(1, 100_000), "ep, toast_ep: number of queries"),
    "probe.reduction": Field(1, whole(1, 4096), "ep, toast_ep: width of the tokens divided by that of their values"),
    "probe.tokens": Field("patches", Choice(("patches", "all")), "ep, toast_ep: tokens to pool; all: the class token too"),
    "adapter.rank": Field(8, whole(1, 4096), "adapter_plus: width of the bottleneck after each block"),
    "prompts.num": Field(100, whole(1, 100_000), "vpt: number of prompt tokens"),
    "prompts.deep": Field(True, FLAG, "vpt: add prompts to every layer, not only to the first"),
    "prompts.dropout": Field(0.0, SHARE, "vpt: dropout of the prompts"),
    "data.root": Field("", TEXT, "folder of the data, or a table", TO_MOVE),
    "data.image_dir": Field(
        "", TEXT, "json, table: folder or zip archive of the images under data.root, or a folder in a zip", TO_MOVE
    ),
    "data.name": Field("", TEXT, "tfds: name of the dataset; vtab, scenes: name of the task"),
    "data.split_file": Field("", TEXT, "vtab: published list of images to check the splits against; '' for no check"),
    "data.num_classes": Field(0, whole(0), "number of classes; 0: as many as the data has"),
    "data.held_out": Field(0.0, SHARE, "share of each class of train to hold out as val, drawn by seed; 0: val is a split"),
    "data.class_names": Field("", TEXT, "file of class names: lines or JSON; '' for those in the data", TO_MOVE),
    "data.shots": Field(0, whole(0), "few-shot: train on so many images of each class, drawn by seed; 0: all"),
    "data.labels": Field(True, FLAG, "read labels; False: pre-tune on unlabeled images"),
    "data.resize": Field(256, whole(1, 16_384), "shorter side of the image before the crop, in pixels"),
    "data.image_size": Field(224, whole(1, 16_384), "side of the crop, in pixels"),
    "data.normalize": Field(IMAGENET, PerChannel(), "mean and standard deviation to normalize pixels with"),
    "data.views": Field(0, whole(0, 1_000_000), "random views per training image, repeated in turn; 0: a new one every epoch"),
    "data.verify": Field(True, FLAG, "decode every image once before the first step", TO_RESUME),
    "data.exif_orientation": Field(False, FLAG, "turn photographs as their EXIF orientation says, as viewers do"),
    "data.skip_corrupt": Field(False, FLAG, "leave out images that cannot be decoded"),
    "augment.flip": Field(True, FLAG, "flip half of the images horizontally"),
    "augment.min_crop_area": Field(1.0, real(0.01, 1.0), "smallest area of a random resized crop; 1: random square crops"),
    "augment.randaugment_ops": Field(0, whole(0, 100), "RandAugment: operations per image"),
    "augment.randaugment_magnitude": Field(9.0, real(0.0, 10.0), "RandAugment: magnitude, of 10"),
    "augment.erasing": Field(0.0, real(0.0, 1.0), "probability of random erasing"),
    "augment.mixup": Field(0.0, real(0.0), "alpha of mixup; 0: no mixup"),
    "augment.cutmix": Field(0.0, real(0.0), "alpha of CutMix; 0: no CutMix"),
    "augment.label_smoothing": Field(0.0, SHARE, "label smoothing"),
    "augment.degradation": Field(0.5, real(0.0, 1.0), "distillation loss: how much the second look's image is degraded"),
    "keep_known": Field(True, FLAG, "cache the frozen features if views repeat (VTAB, data.views) and drop-path is off"),
    "save_predictions": Field(False, FLAG, "at the end, write the logits of the test images to test_logits.npz", TO_RESUME),
    "interpolation": Field(
        1.0,
        real(0.0, 1.0),
        "task evaluate: evaluate so far along the line from the first to the tuned parameters (WiSE-FT)",
        TO_RESUME,
    ),
    "confusion": Field(False, FLAG, "at the end, log the confused classes and write confusion.csv", TO_RESUME),
}
_TEXT_DEFAULTS = {
    "backbone.family": "llama",
    "backbone.size": "llama1_7b",
    "backbone.weights": "weights/llama1_7b",
    "epochs": 3,
    "optimizer.name": "adamw",
    "optimizer.lr": 2e-5,
    "optimizer.schedule": "step",
    "optimizer.weight_decay": 0.0,
    "optimizer.no_decay": (),
    "optimizer.clip": 1.0,  # default of Hugging Face's trainer
    "eval_every": 1,
    "checkpoint_every": 1,
}
TEXTS = (
    _RUN
    | {name: dataclasses.replace(_RUN[name], default=default) for name, default in _TEXT_DEFAULTS.items()}
    | {
        "data.format": Field(
            "text",
            Choice(FORMATS),
            "text: packed; instructions: Alpaca; prompts: as they are; conversations: ShareGPT; messages: chats",
        ),
        "data.splits.train": Field("", Text("train"), "training file: .txt, .json, .jsonl or .parquet", TO_MOVE),
        "data.splits.val": Field("", TEXT, "validation file; '' for none", TO_MOVE),
        "data.splits.test": Field("", TEXT, "test file; '' for none", TO_MOVE),
        "batch_size": Field(144, COUNT, "sequences per step, over all devices", TO_EVALUATE),
        "warmup_epochs": Field(0.09, real(0.0), "epochs of linear warmup of the learning rate"),  # 3 % of the run
        "data.tokenizer": Field(
            "weights/llama1_7b",
            Text("weights/llama1_7b"),
            "tokenizer.model or tokenizer.json, its folder or a place on the Hub",
            TO_MOVE,
        ),
        "data.end": Field("end", Choice(("end", "begin")), "token after an answer; networks of llama2.c use begin alone"),
        "data.template": Field(
            TEMPLATES[0], Choice(TEMPLATES), "messages: chat template; tokenizer: the one beside the tokenizer"
        ),
        "data.too_long": Field("cut", Choice(("cut", "refuse")), "cut or refuse texts of more tokens than a sequence"),
        "show": Field(0, whole(0), "print so many training examples, what is learned in [[ ]], and stop", TO_RESUME),
        "data.length": Field(512, whole(2, 1_000_000), "tokens of a sequence"),
        "data.documents": Field(0, whole(0), "read only the first so many documents; 0: all"),
        "data.held_out": Field(0.0, SHARE, "share of the training texts to hold out for validation"),
        "microbatches": Field(1, COUNT, "parts of a device's batch to compute one after the other, which saves memory"),
        "fsdp": Field(1, COUNT, "number of devices to shard parameters and optimizer state over; 1: replicated", TO_RESUME),
    }
)
_NOT_OF_MASKS = (
    *("checkpoint", "epochs", "warmup_epochs", "task_weight", "variational_weight", "distillation_weight", "head.start"),
    *("data.image_dir", "data.name", "data.split_file", "data.num_classes", "data.held_out", "data.class_names", "data.shots"),
    *("data.labels", "data.resize", "data.views", "data.exif_orientation", "data.skip_corrupt", "keep_known"),
    *("save_predictions", "interpolation", "confusion", "probe.queries", "probe.reduction", "probe.tokens"),
    *(name for name in IMAGES if name.startswith("augment.") and name != "augment.flip"),
)
_SIDES = Several(whole(1, 16_384), least=2)
# Runs of semantic segmentation; the defaults are the recipe of AbSViT for VOC2012.
MASKS = {name: field for name, field in IMAGES.items() if name not in _NOT_OF_MASKS} | {
    "stage": Field("tune", Choice(("tune",)), "segmentation is tuned; a top-down module is pre-tuned on images"),
    "segmentation.head": Field("upernet", Choice(("linear", "upernet")), "linear: 1x1 on the last map; upernet: on four maps"),
    "segmentation.sites": Field((), Several(whole(0)), "blocks (ConvNeXt: stages) whose outputs the head reads; (): four"),
    "segmentation.channels": Field(512, whole(1, 16_384), "upernet: channels of its convolutions"),
    "segmentation.auxiliary_channels": Field(256, whole(1, 16_384), "upernet: channels of the auxiliary head"),
    "segmentation.auxiliary_weight": Field(0.4, real(0.0), "upernet: weight of the auxiliary head's loss"),
    "segmentation.dropout": Field(0.1, SHARE, "upernet: rate at which channels are dropped before the classifiers"),
    "segmentation.average": Field(
        "all", Choice(("all", "counted")), "pixels that the loss is averaged over; counted: not ignored"
    ),
    "data.format": Field(
        "folder",
        Choice(MASK_FORMATS, {"tfds": _AS_FILES}),
        "folder: images, masks, lists; scenes: the demo; else a set's layout",
    ),
    "data.image_size": Field(512, whole(1, 16_384), "side of the image that position embeddings are kept for, in pixels"),
    "data.scale": Field((2048, 512), _SIDES, "longer and shorter side that images are resized to fit"),
    "data.crop": Field((512, 512), _SIDES, "height and width of a training crop"),
    "data.window": Field(
        (0, 0), Several(whole(0, 16_384), least=2), "evaluation: sides of the sliding window; 0: whole images", TO_EVALUATE
    ),
    "data.stride": Field((341, 341), _SIDES, "evaluation: distance of windows, down and along", TO_EVALUATE),
    "augment.factors": Field(
        (0.5, 2.0), Several(real(above=0.0, most=16.0), least=2), "smallest and largest random factor of scale"
    ),
    "augment.distortion": Field(True, FLAG, "change brightness, contrast, saturation and hue"),
    "batch_size": Field(16, COUNT, "images per step, over all devices", TO_EVALUATE),
    "steps": Field(20_000, COUNT, "steps to train", TO_EVALUATE),
    "warmup_steps": Field(1_500, whole(0), "steps of linear warmup of the learning rate"),
    "optimizer.name": Field("adamw", Choice(("sgd", "adamw", "lars")), "optimizer"),
    "optimizer.lr": Field(6e-5, real(0.0), "peak learning rate"),
    "optimizer.schedule": Field("poly", Choice(("step", "poly")), "cosine by step, or poly: linear to zero by step"),
    "optimizer.weight_decay": Field(0.01, real(0.0), "weight decay"),
    "optimizer.no_decay": Field(
        (r"backbone/(pos_embed|cls_token|(.*/)?norm\d?/.*)",), Several(Regex()), "paths of parameters without weight decay"
    ),
    "eval_every": Field(2_000, COUNT, "steps between evaluations", TO_RESUME),
    "checkpoint_every": Field(2_000, COUNT, "steps between checkpoints", TO_RESUME),
    "log_every": Field(50, COUNT, "steps between log lines", TO_RESUME),
}


def base(*, name: str, method: str, backbone: str, stage: str = "tune") -> ConfigDict:
    """Return the config of a run on images with every field; the defaults are the release's FGVC recipe.

    `backbone` is `vit_` + size + patch, or `convnext_` + size, and a tag that names the pre-training, as in vit_b16_in1k (see
    `backbone_names.of_images`). It may also be a repository on the Hugging Face Hub, `hf:OWNER/NAME`, whose `config.json` is
    then downloaded, or a folder with such a file.
    """
    named = {"name": name.replace(backbone, backbone_names.label(backbone)), "method": method, "stage": stage}
    return _config(IMAGES, backbone_names.of_images(backbone) | named)


def masks(*, name: str, method: str, backbone: str) -> ConfigDict:
    """Return the config of a run on images with masks with every field; `backbone` is as in `base`."""
    named = {"name": name.replace(backbone, backbone_names.label(backbone)), "method": method}
    fields = backbone_names.of_images(backbone)
    # The size of the images of pre-training, which the Hub knows, is not that of the crops.
    fields = {field: value for field, value in fields.items() if field in ("data.normalize",) or field.startswith("backbone.")}
    return _config(MASKS, fields | named)


def language(*, name: str, method: str, backbone: str, stage: str = "tune") -> ConfigDict:
    """Return the config of a run on text with every field; the defaults are the release's recipe for LLaMA.

    `backbone` is one of `backbone_names.LLAMAS`, with an underscore and a tag if need be, as in llama2_7b_chat, or
    `hf:OWNER/NAME` as in `base`.
    """
    named = {"name": name.replace(backbone, backbone_names.label(backbone)), "method": method, "stage": stage}
    return _config(TEXTS, backbone_names.of_text(backbone) | named)


def _config(fields, values):
    return ConfigDict(nested({name: field.default for name, field in fields.items()} | values))
