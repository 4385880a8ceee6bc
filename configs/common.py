"""What every config starts from, and how the text after a config's colon is read."""

import re

from ml_collections import ConfigDict

from toast_jax.errors import InputError, choose

LLAMAS = (
    *("llama1_7b", "llama1_13b", "llama2_7b", "llama2_13b", "llama3_8b", "llama3_1_8b", "llama3_2_1b", "llama3_2_3b"),
    *("tinyllama_1b", "stories15m", "stories260k"),
)
_VIT_SIZES = {"mini": "Mini", "ti": "Ti", "s": "S", "b": "B", "l": "L", "h": "H"}


def arguments(text: str | None, **defaults: str) -> dict[str, str]:
    """Reads `key=value,key=value`, the text after the colon of `--config=FILE.py:...`; keys are those of `defaults`."""
    given = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        choose("The config argument", key, defaults)
        if not equals or not value:
            raise InputError(f"The config argument {part!r} has no value; write {key}=VALUE.")
        given[key] = value
    return given


def yes_no(key: str, text: str) -> bool:
    """Reads an argument that is yes or no."""
    return choose(f"The config argument {key}", text, {"yes": True, "no": False})


def whole(key: str, text: str) -> int:
    """Reads an argument that is a number of things."""
    if not text.isdecimal():
        raise InputError(f"The config argument {key} is {text!r}; write a whole number.")
    return int(text)


def joined(text: str) -> tuple[str, ...]:
    """Reads an argument whose values are joined by +."""
    return tuple(filter(None, text.split("+")))


def base(*, name: str, method: str, backbone: str, stage: str = "tune") -> ConfigDict:
    """All fields with their defaults: those of the release's FGVC recipe.

    `backbone` is `vit_` + size (ti, s, b, l, h) + patch, or `convnext_` + size (t, s, b, l), and a tag that names the
    pre-training, as in vit_b16_in1k.
    """
    config = ConfigDict()
    config.name = name
    config.task = "train"  # train | evaluate
    config.stage = stage  # tune: the downstream task | pretune: the top-down module on generic images
    config.method = method  # a row of toast_jax/model/methods.py
    config.seed = 42
    config.resume = True  # go on from the last checkpoint in --workdir

    config.backbone = _backbone(backbone)
    config.top_down = ""  # file of a pre-tuned top-down module
    config.tune_transform = False  # toast: tune the transform of the selected tokens too; the release keeps it the identity
    config.checkpoint = ""  # task evaluate: a file tuned with the PyTorch release, in place of --workdir's checkpoint
    config.tuned_blocks = 1  # method partial: how many of the last blocks
    config.head = ConfigDict()
    config.head.start = "random"  # random, as in the release | zeros | classifier: of the backbone's own task, the same classes
    config.head.tune = True
    config.lora = ConfigDict({"rank": 4, "alpha": 1.0})
    config.prompts = ConfigDict({"num": 100, "deep": True, "dropout": 0.0})
    config.task_weight = 1.0  # pretune: of the cross-entropy
    # pretune: of the variational loss; the release's
    config.variational_weight = 0.1 if config.backbone.family == "vit" else 0.01

    config.data = ConfigDict()
    config.data.format = "json"  # json: VPT split files | folder: SPLIT/CLASS/IMAGE | tfds | vtab | scenes: the demo
    config.data.root = ""
    config.data.image_dir = ""  # json: where images are, under root
    config.data.name = ""  # tfds: builder; vtab, scenes: task
    config.data.splits = ConfigDict({"train": "train", "val": "val", "test": "test"})  # "" for none
    config.data.split_file = ""  # vtab: the published list of images, if they are to be checked against it
    config.data.num_classes = 0  # 0: as many as the data has
    config.data.labels = True  # False: images without classes, to pre-tune on
    config.data.resize = 256  # shorter side before the crop
    config.data.image_size = 224
    config.data.views = 0  # how many views a training image has, which the epochs take in turn; 0: a new one in every epoch
    config.data.verify = True  # decode every image once before the first step
    config.data.skip_corrupt = False
    config.data.workers = 0  # processes that load images; 0: threads

    config.augment = ConfigDict()  # beside a random crop
    config.augment.flip = True  # horizontally, half of the time
    config.augment.min_crop_area = 1.0  # less than 1: crops are random rectangles of at least this share, resized
    config.augment.randaugment_ops = 0
    config.augment.randaugment_magnitude = 9.0  # of 10
    config.augment.erasing = 0.0  # probability
    config.augment.mixup = 0.0  # alpha; 0: none
    config.augment.cutmix = 0.0  # alpha; 0: none
    config.augment.label_smoothing = 0.0

    config.batch_size = 32  # over all devices
    config.epochs = 100
    config.warmup_epochs = 10
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd | adamw
    config.optimizer.lr = 0.02
    config.optimizer.base_batch_size = 0  # lr is meant for batches of this size and scales with batch_size; 0: as it is
    config.optimizer.schedule = "epoch"  # how often the rate changes: epoch, as in the release | step
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.no_decay = ("head/bias",)  # regexes of parameter paths
    config.optimizer.clip = 0.0  # largest norm of the tuned gradients; 0: any
    config.ema = 0.0  # decay of a moving average of the tuned parameters, then used in their place; 0: none
    config.skip_nonfinite = 0  # steps in a row that are left out if their loss or gradient is not finite; one more ends the run

    # If epochs repeat views (VTAB, data.views) without drop-path: compute what no step changes, as the first look, once.
    config.keep_known = True
    config.confusion = False  # at the end, tell which classes are confused and save all counts as confusion.csv
    config.log_every = 10  # steps
    config.eval_every = 10  # epochs
    config.checkpoint_every = 5  # epochs
    return config


def language(*, name: str, method: str, backbone: str, stage: str = "tune") -> ConfigDict:
    """All fields of a run with a language model, with their defaults: those of the release's recipes for LLaMA.

    `backbone` is one of `LLAMAS` and, if need be, an underscore and a tag, as in llama2_7b_chat.
    """
    config = ConfigDict()
    config.name = name
    config.task = "train"  # train | evaluate
    config.stage = stage  # tune: the downstream task | pretune: the top-down module on generic text
    config.method = method  # a row of toast_jax/model/methods.py
    config.seed = 42
    config.resume = True  # go on from the last checkpoint in --workdir

    config.backbone = _llama(backbone)
    config.top_down = ""  # file of a pre-tuned top-down module
    config.tune_transform = False  # toast: tune the transform of the selected tokens too; the release keeps it the identity
    config.checkpoint = ""  # task evaluate: a file tuned with the PyTorch release, in place of --workdir's checkpoint
    config.lora = ConfigDict({"rank": 4, "alpha": 1.0})
    config.task_weight = 1.0  # pretune: of the cross-entropy
    config.variational_weight = 0.01  # pretune: of the variational loss; the release divides what it compares by ten instead

    config.data = ConfigDict()
    config.data.format = "text"  # text: packed | instructions: Alpaca | prompts | conversations: ShareGPT (data/text.py)
    config.data.splits = ConfigDict({"train": "", "val": "", "test": ""})  # a .txt, .json or .jsonl file; "" for none
    config.data.tokenizer = f"weights/{backbone}"  # a tokenizer.model or tokenizer.json, or a folder with one
    config.data.end = "end"  # what follows an answer: end | begin, the only one of these tokens that networks of llama2.c know
    config.data.length = 512  # tokens of a sequence
    config.data.documents = 0  # only so many of the first; 0: all
    config.data.held_out = 0.0  # share of the training texts that become val
    config.data.workers = 0  # processes that load sequences; 0: threads

    config.microbatches = 1  # parts that a device computes its share of a batch in, one after the other, in the memory of one
    config.fsdp = 1  # devices that share what is frozen; 1: each has all of it
    config.batch_size = 144  # sequences, over all devices
    config.epochs = 3
    config.warmup_epochs = 0.09  # 3 % of the run
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw | sgd
    config.optimizer.lr = 2e-5
    config.optimizer.base_batch_size = 0  # lr is meant for batches of this size and scales with batch_size; 0: as it is
    config.optimizer.schedule = "step"  # how often the rate changes: step, as in the release | epoch
    config.optimizer.momentum = 0.9  # of sgd
    config.optimizer.weight_decay = 0.0
    config.optimizer.no_decay = ()  # regexes of parameter paths
    config.optimizer.clip = 1.0  # largest norm of the tuned gradients, as by default in Hugging Face's trainer; 0: any
    config.ema = 0.0  # decay of a moving average of the tuned parameters, then used in their place; 0: none
    config.skip_nonfinite = 0  # steps in a row that are left out if their loss or gradient is not finite; one more ends the run

    config.log_every = 10  # steps
    config.eval_every = 1  # epochs
    config.checkpoint_every = 1  # epochs
    return config


def _llama(name: str) -> ConfigDict:
    size = next((size for size in LLAMAS if re.fullmatch(rf"{size}(_\w+)?", name)), None)
    if size is None:
        raise InputError(
            f"The backbone {name!r} is not known; write one of {', '.join(LLAMAS)}, and a tag, such as llama2_7b_chat."
        )
    fields = ConfigDict()
    fields.family = "llama"
    fields.size = size
    fields.weights = f"weights/{name}"  # a folder of Hugging Face, or a file; "random" for none
    fields.dtype = "float32"  # compute, and storage of what is frozen: float32 | bfloat16
    fields.remat = False
    return fields


def _backbone(name: str) -> ConfigDict:
    vit = re.fullmatch(r"vit_(?P<size>mini|ti|s|b|l|h)(?P<patch>8|14|16|32)(_\w+)?", name)
    convnext = re.fullmatch(r"convnext_(?P<size>[tsbl])(_\w+)?", name)
    if not vit and not convnext:
        raise InputError(
            f"The backbone {name!r} is not known; write vit_ + size (mini, ti, s, b, l, h) + patch (8, 14, 16, 32) + a tag, "
            "such as vit_b16_in1k, or convnext_ + size (t, s, b, l) + a tag, such as convnext_b_in21k."
        )
    fields = ConfigDict()
    fields.family = "vit" if vit else "convnext"
    fields.size = _VIT_SIZES[vit["size"]] if vit else convnext["size"].upper()
    fields.weights = f"weights/{name}.pth"  # or .safetensors, .npz; "random" for none
    if vit:
        fields.patch = int(vit["patch"])
        fields.pool = "cls"  # cls | mean
    fields.drop_path = 0.1 if vit else 0.0  # as in the release, which leaves it on while tuning a ViT
    fields.dtype = "float32"  # compute: float32 | bfloat16
    fields.remat = False
    return fields
