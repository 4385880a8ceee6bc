"""Check a config before any data is read, and report all of its mistakes at once, one per line.

`schema.py` checks each field by itself; the table here lists the conflicts between fields.
"""

from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from toast_jax.config import schema
from toast_jax.config.backbone_names import RANDOM
from toast_jax.config.run_fields import TEMPLATES
from toast_jax.config.task_fields import SECTIONS, SWEEP, TASKS
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields, nested
from toast_jax.model.backbones.llama.kinds import head_width
from toast_jax.model.families import FAMILIES, reads
from toast_jax.model.layers import dtypes
from toast_jax.model.methods import BACK, BACKBONE, TRANSFORM

_NUMBERS = ("width", "depth", "num_heads", "hidden", "vocabulary", "context")  # of a language model, none of which may be 0


class _Facts:
    """The config of a run and facts that follow from it; both lack fields with an invalid value."""

    def __init__(self, config: ConfigDict):
        self._config = config

    def __getattr__(self, field: str) -> Any:
        return getattr(self._config, field)

    devices = property(lambda c: jax.device_count())
    host_devices = property(lambda c: jax.local_device_count())
    family = property(lambda c: FAMILIES[c.backbone.family])
    refusal = property(lambda c: c.family.refused[c.method])
    row = property(lambda c: c.family.methods.get(c.method))  # None if the family refuses the method
    size = property(lambda c: c.family.size(c.backbone))
    image_multiple = property(lambda c: c.family.image_multiple(c.backbone))
    steerable = property(lambda c: c.family.sites(c.size))  # how many parts of the network can take a top-down input
    width = property(lambda c: c.family.width(c.size))
    last_site = property(lambda c: c.steerable - 1)
    tunable = property(lambda c: c.family.tunable_blocks(c.size))  # how many blocks method partial can tune
    # Of a language model: the first number that its size and config lack, and the channels of a head.
    lacking = property(lambda c: next((name for name in _NUMBERS if not getattr(c.size, name)), ""))
    head_width = property(lambda c: head_width(c.size))
    share = property(lambda c: c.batch_size // c.devices)  # examples of a batch on each device

    @property
    def batch_sizes(self) -> str:
        """Lists the nearest batch sizes that split evenly over all devices."""
        sizes = {max(1, self.share) * self.devices, -(-self.batch_size // self.devices) * self.devices}
        return " or ".join(map(str, sorted(sizes)))

    @property
    def able_families(self) -> str:
        """Names the families to use instead, as in ", or a ViT": those with the same data that support the method."""
        families = [family for family in FAMILIES.values() if family.reads == self.family.reads]
        return "".join(f", or a {family.title}" for family in families if self.method in family.methods)

    @property
    def image_sizes(self) -> str:
        """Names the sizes of images that the network takes, and the nearest of them."""
        multiple = self.image_multiple
        near = max(1, round(self.data.image_size / multiple)) * multiple
        sizes = f"the patch size {multiple}" if "patch" in self.backbone else f"{multiple}, as a {self.family.title} needs"
        return f"{sizes}; use {near}, for example"


# Every sentence, with facts in braces, beside its condition.
_Conflicts = dict[str, Callable[[_Facts], Any]]
_OF_RUNS: _Conflicts = {
    "config.steered_blocks is {c.steered_blocks}, but method {c.method} steers nothing; set it to 0, or "
    "config.method to toast or toast_lite.": lambda c: c.steered_blocks and c.row and c.row.signal != "top_down",
    "config.steered_blocks is {c.steered_blocks}; this network has {c.steerable} blocks to steer, stages in a ConvNeXt.": (
        lambda c: c.steered_blocks > c.steerable
    ),
    "config.batch_size is {c.batch_size}, which does not split over {c.devices} devices; use a multiple of "
    "{c.devices}, such as {c.batch_sizes}.": lambda c: c.batch_size % c.devices,
    "config.optimizer.lr_scale is {c.optimizer.lr_scale}, but config.optimizer.lr_scaled names no parameters; name them, as in "
    """--config.optimizer.lr_scaled='("top_down/prior",)'.""": lambda c: (
        c.optimizer.lr_scale != 1 and not c.optimizer.lr_scaled
    ),
    "config.task_weight and config.variational_weight are both 0; one of them has to be more.": (
        lambda c: c.stage == "pretune" and not (c.task_weight or c.variational_weight or c.distillation_weight)
    ),
    "config.stage is pretune, but method {c.method} tunes the head alone, which pre-tuning does not save; use another "
    "--config.method.": lambda c: c.stage == "pretune" and c.row and not c.row.pretunes,
    "config.task_weight is 0, which leaves the variational loss alone, but method {c.method} has no top-down module for it; "
    "set --config.method=toast, or a --config.task_weight.": (
        lambda c: c.stage == "pretune" and not (c.task_weight or c.distillation_weight) and c.row and c.row.signal != "top_down"
    ),
    "config.module names a file, but method {c.method} tunes the head alone, which no such file holds; leave it out.": (
        lambda c: c.module and c.row and not c.row.pretunes
    ),
    "config.module and config.top_down both name a file to start from; set config.module alone.": (
        lambda c: c.module and c.top_down
    ),
    "config.tune_transform is True, but only the cross-entropy trains it; set a --config.task_weight.": (
        lambda c: c.stage == "pretune" and not (c.task_weight or c.distillation_weight) and c.tune_transform
    ),
    "config.tune_back is True, but method {c.method} of a {c.family.title} has no frozen layers A_l that it would tune; set it "
    "to False.": lambda c: c.tune_back and c.task == "train" and not (c.row and BACK in c.row.frozen),
    "config.tune_transform is True, but method {c.method} has no transform; set it to False.": (
        lambda c: c.tune_transform and not (c.row and TRANSFORM in c.row.tuned + c.row.frozen)
    ),
}
_OF_EPOCHS: _Conflicts = {
    "config.warmup_epochs is {c.warmup_epochs} and config.epochs {c.epochs}: the run would never leave its warm-up; "
    "make the warm-up shorter.": lambda c: c.warmup_epochs >= c.epochs,
    "config.checkpoint is for the task evaluate; weights to start from go in config.backbone.weights.": (
        lambda c: c.checkpoint and c.task == "train"
    ),
}
_OF_IMAGES: _Conflicts = _OF_EPOCHS | {
    "config.interpolation is {c.interpolation}, which is for the task evaluate; leave it at 1.": (
        lambda c: c.interpolation < 1 and c.task == "train"
    ),
    "config.interpolation is {c.interpolation}, but method {c.method} starts from no network to go back to; leave it at 1, or "
    "evaluate a run that started from a --config.module.": (
        lambda c: (
            c.interpolation < 1
            and c.row
            and not (c.row.starts_unchanged or c.module or (c.top_down and c.row.signal == "top_down"))
        )
    ),
    "config.interpolation is {c.interpolation}, but config.checkpoint is a file that has only the end of the line; leave it "
    "at 1.": lambda c: c.interpolation < 1 and c.checkpoint,
    "Method {c.method} {c.refusal}; use another --config.method{c.able_families}.": (lambda c: c.method in c.family.refused),
    "config.head.tune is False, but method linear tunes nothing else; set it to True.": (
        lambda c: c.method == "linear" and not c.head.tune
    ),
    "config.head.tune is False, which leaves an untrained head; set --config.head.start=classifier.": (
        lambda c: (
            not c.head.tune
            and c.head.start != "classifier"
            and not (c.stage == "pretune" and not c.task_weight)
            and not (c.row and c.row.probe)
        )
    ),
    "config.head.tune is False, but no file has a head for the probe of method {c.method}; set it to True.": (
        lambda c: not c.head.tune and c.row and c.row.probe and not (c.stage == "pretune" and not c.task_weight)
    ),
    "config.head.start is classifier, but a random backbone has none; name a --config.backbone.weights.": (
        lambda c: c.head.start == "classifier" and c.backbone.weights == RANDOM
    ),
    "config.head.start is classifier, but method {c.method} reads tokens by a probe, which the backbone's classifier was not "
    "trained for; set it to random or zeros.": lambda c: c.head.start == "classifier" and c.row and c.row.probe,
    "config.probe.queries is {c.probe.queries} and config.probe.reduction {c.probe.reduction}; their product has to divide the "
    "width of the tokens, {c.width}.": lambda c: c.row and c.row.probe and c.width % (c.probe.queries * c.probe.reduction),
    "config.distillation_weight is {c.distillation_weight}, but method {c.method} has a probe, which labels alone train; "
    "set it to 0, or config.method to toast.": (
        lambda c: c.stage == "pretune" and c.distillation_weight and c.row and c.row.probe
    ),
    "config.data.image_size {c.data.image_size} is no multiple of {c.image_sizes}.": (
        lambda c: c.data.image_size % c.image_multiple
    ),
    "config.backbone.size is {c.backbone.size}, which has no numbers; set --config.backbone.width, --config.backbone.depth and "
    "--config.backbone.num_heads.": (
        lambda c: "width" in c.backbone and not (c.size.width and c.size.depth and c.size.num_heads)
    ),
    "config.backbone.width is {c.size.width}, no multiple of the {c.size.num_heads} heads, or of 4 times as many with rotary "
    "positions; change it, or config.backbone.num_heads.": (
        lambda c: "width" in c.backbone and c.size.width % max(1, c.size.num_heads * (4 if c.backbone.rotary else 1))
    ),
    "config.backbone.class_token is False, which leaves no token for config.backbone.pool={c.backbone.pool} or "
    "config.backbone.registers={c.backbone.registers}; set --config.backbone.pool=mean or attention, and no registers.": (
        lambda c: not c.backbone.get("class_token", True) and (c.backbone.pool == "cls" or c.backbone.registers)
    ),
    "config.tuned_blocks is {c.tuned_blocks}; this network has 1 to {c.tunable} blocks to tune, of a ConvNeXt those "
    "of its last stage.": lambda c: c.method == "partial" and c.tuned_blocks > c.tunable,
    "A crop of {c.data.image_size} pixels does not fit in images resized to {c.data.resize}; set "
    "--config.data.resize={c.data.image_size} or more.": lambda c: c.data.resize < c.data.image_size,
    "config.data.labels is False, which leaves the variational loss alone; set --config.task_weight=0.": (
        lambda c: c.stage == "pretune" and not c.data.labels and c.task_weight
    ),
    "config.distillation_weight is {c.distillation_weight}, but config.augment.degradation is 0, so both looks would see the "
    "same image; set --config.augment.degradation=0.5, for example.": (
        lambda c: c.stage == "pretune" and c.distillation_weight and not c.augment.degradation
    ),
    "config.distillation_weight is {c.distillation_weight}, but method {c.method} changes the backbone that the loss compares "
    "with; set it to 0, or config.method to one that keeps the backbone frozen.": (
        lambda c: c.stage == "pretune" and c.distillation_weight and c.row and BACKBONE not in c.row.frozen
    ),
    "config.data.labels is False, but tuning needs labels; set it to True, or config.stage to pretune.": (
        lambda c: c.stage == "tune" and not c.data.labels
    ),
    "config.confusion is True, but images without labels have no classes to confuse; set it to False.": (
        lambda c: c.stage == "pretune" and not c.data.labels and c.confusion
    ),
    "config.save_predictions is True, but pre-tuning keeps no logits; set it to False.": (
        lambda c: c.stage == "pretune" and c.save_predictions
    ),
    "config.data.held_out and config.data.class_names are for data.format json, folder or table, not {c.data.format}; a TFDS "
    "split takes a part, as in --config.data.splits.train=train[:80%].": (
        lambda c: (c.data.held_out or c.data.class_names) and c.data.format not in ("json", "folder", "table")
    ),
    "Each device gets {c.share} of {c.batch_size} images, but config.augment.mixup and config.augment.cutmix mix "
    "pairs of them; use a batch size that gives each an even number.": (
        lambda c: (c.augment.mixup or c.augment.cutmix) and c.share % 2
    ),
}
# Of all networks that read images.
_OF_VISION = ("Method {c.method} {c.refusal}", "config.data.image_size {", "config.backbone.", "config.tuned_blocks is")
_PAIRS = ("scale", "crop", "window", "stride")
_OF_MASKS: _Conflicts = {sentence: holds for sentence, holds in _OF_IMAGES.items() if sentence.startswith(_OF_VISION)} | {
    "config.warmup_steps is {c.warmup_steps} and config.steps {c.steps}: the run would never leave its warm-up; make the "
    "warm-up shorter.": lambda c: c.warmup_steps >= c.steps,
    "config.head.tune is False, which leaves a head at random; set it to True.": (
        lambda c: not c.head.tune and c.task == "train"
    ),
    "Method {c.method} pools the tokens of an image, but segmentation needs all of them; use another --config.method.": (
        lambda c: c.row and c.row.probe
    ),
    "config.segmentation.sites is {c.segmentation.sites}; this network has sites 0 to {c.last_site}, stages of a ConvNeXt.": (
        lambda c: any(site > c.last_site for site in c.segmentation.sites)
    ),
    "config.data.scale, crop, window and stride and config.augment.factors take two values each, as in (512, 512).": (
        lambda c: any(len(pair) > 2 for pair in (*(c.data[name] for name in _PAIRS), c.augment.factors))
    ),
    "config.data.window is {c.data.window}, which has one side; give both, or (0, 0) for whole images.": (
        lambda c: bool(c.data.window[0]) != bool(c.data.window[1])
    ),
    "config.data.stride is {c.data.stride}, larger than config.data.window, {c.data.window}, so windows would miss pixels; "
    "make it smaller.": lambda c: any(0 < side < stride for side, stride in zip(c.data.window, c.data.stride, strict=False)),
    "config.augment.factors is {c.augment.factors}; put the smaller factor first.": (
        lambda c: c.augment.factors[0] > c.augment.factors[1]
    ),
}
_OF_TEXT: _Conflicts = _OF_EPOCHS | {
    "config.warmup_epochs is {c.warmup_epochs}, but config.optimizer.schedule=epoch has one learning rate an epoch, and 0 in "
    "the first of a warm-up; set --config.optimizer.schedule=step.": (
        lambda c: c.optimizer.schedule == "epoch" and c.warmup_epochs % 1 and c.task == "train"
    ),
    "config.distillation_weight is {c.distillation_weight}, but only images can be degraded for it; set it to 0.": (
        lambda c: c.stage == "pretune" and c.distillation_weight
    ),
    "config.backbone.size is {c.backbone.size}, which has no {c.lacking}; set --config.backbone.{c.lacking} and its other "
    "numbers, or name a folder with a config.json, as in backbone=FOLDER.": lambda c: c.lacking,
    "config.backbone gives {c.size.num_heads} heads of {c.head_width} channels, {c.size.num_kv_heads} of them for keys and "
    "values; a head has an even number of channels, 2 or more, and heads of keys and values divide the others.": (
        lambda c: not c.lacking and (not c.head_width or c.head_width % 2 or c.size.num_heads % c.size.num_kv_heads)
    ),
    "config.data.length is {c.data.length}, but {c.backbone.size} reads {c.size.context} tokens; set "
    "--config.data.length={c.size.context} or less.": lambda c: c.data.length > c.size.context > 0,
    "config.microbatches is {c.microbatches}, which does not divide the {c.share} sequences of a batch that each "
    "device gets; change it, or config.batch_size.": lambda c: c.share % c.microbatches,
    # A group takes some devices of a host, or all of several hosts.
    "config.fsdp is {c.fsdp}, which does not divide the {c.host_devices} devices of a host; use a divisor of it.": (
        lambda c: c.host_devices % c.fsdp and (c.fsdp % c.host_devices or c.devices % c.fsdp)
    ),
    "config.data.template is {c.data.template}, but the prompts of data.format {c.data.format} are fixed; set "
    "--config.data.format=messages.": lambda c: c.data.template != TEMPLATES[0] and c.data.format != "messages",
    "config.data.splits.val and config.data.held_out both give a val split; set one of them.": (
        lambda c: c.data.held_out and c.data.splits.val
    ),
}


def check(config: ConfigDict) -> None:
    """Raise InputError with every mistake in the config of a run, without reading data or weights.

    A conflict that involves a field with an invalid value is not reported.
    """
    _refuse(_mistakes_of_run(config))
    dtypes.check(config.backbone.dtype)


def check_fields(config: ConfigDict) -> None:
    """Raise InputError with every unknown, missing or invalid field of the config of any task.

    For a sweep, only its own fields are checked, because each of its runs has a config of its own. For a demo, the configs of
    its runs are checked too.
    """
    if config.task == "sweep":
        wrong = schema.problems({name: config.sweep[name.removeprefix("sweep.")] for name in SWEEP}, SWEEP)
    else:
        wrong = _problems(config, schema.fields_of(config))
    _refuse([*wrong.values(), *_mistakes_in_sections(config, wrong)])


def _mistakes_of_run(config):
    wrong = schema.problems(flat_fields(config.to_dict()), schema.of_run(config))
    flat = flat_fields(config.copy_and_resolve_references().to_dict())
    facts = _Facts(ConfigDict(nested({name: value for name, value in flat.items() if name not in wrong})))
    sentences = list(wrong.values())
    for sentence, holds in (_OF_RUNS | {"images": _OF_IMAGES, "masks": _OF_MASKS, "text": _OF_TEXT}[reads(config)]).items():
        try:
            if holds(facts):
                sentences.append(sentence.format(c=facts))
        except (AttributeError, KeyError):  # a field that it compares is invalid and was deleted
            if not wrong:
                raise
    return sentences


def _mistakes_in_sections(config, wrong):
    """List the mistakes in the configs within the config of a demo: the runs of its rows, and others."""
    sections = SECTIONS.get(config.task, ())
    if "runs" not in sections:
        return []
    rows = () if "rows" in wrong else config.rows
    sentences = [
        f"config.rows names {row!r}; it has to be one of {', '.join(config.runs)}." for row in rows if row not in config.runs
    ]
    inner = {f"runs.{row}": config.runs[row] for row in rows if row in config.runs}
    inner |= {name: config[name] for name in sections if name != "runs"}
    for name, section in inner.items():
        is_run = section.task not in TASKS
        mistakes = _mistakes_of_run(section) if is_run else _problems(section, TASKS[section.task]).values()
        sentences += [sentence.replace("config.", f"config.{name}.") for sentence in mistakes]
    return sentences


def _problems(config, fields):
    own = {name: value for name, value in config.to_dict().items() if name not in SECTIONS.get(config.task, ())}
    return schema.problems(flat_fields(own), fields)


def _refuse(sentences):
    if len(sentences) == 1:
        raise InputError(sentences[0])
    if sentences:
        raise InputError("\n  ".join([f"The config has {len(sentences)} mistakes:", *sentences]))
