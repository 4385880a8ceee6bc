"""A config is refused before anything is read: all of its mistakes at once, one a line.

`schema.py` says what each field may hold; here is what fields may not hold together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from toast_jax.config import schema
from toast_jax.errors import InputError, choose
from toast_jax.fields import flat_fields
from toast_jax.model.backbones import convnext, llama, vit
from toast_jax.model.layers import dtypes
from toast_jax.model.methods import LANGUAGE_METHODS, METHODS, TRANSFORM
from toast_jax.weights.parameters import RANDOM


class Contradiction(NamedTuple):
    """Fields that do not go together.

    Attributes:
      holds: whether a config has them.
      sentence: what to say then.
    """

    holds: Callable[[ConfigDict], bool]
    sentence: Callable[[ConfigDict], str]


_OF_RUNS = (
    Contradiction(
        lambda c: c.warmup_epochs >= c.epochs,
        lambda c: (
            f"config.warmup_epochs is {c.warmup_epochs} and config.epochs {c.epochs}: the run would never leave its warm-up; "
            "make the warm-up shorter."
        ),
    ),
    Contradiction(
        lambda c: c.checkpoint and c.task == "train",
        lambda c: "config.checkpoint is for the task evaluate; weights to start from go in config.backbone.weights.",
    ),
    Contradiction(
        lambda c: c.batch_size % jax.device_count(),
        lambda c: (
            f"config.batch_size is {c.batch_size}, which does not split over {jax.device_count()} devices; use a multiple of "
            f"{jax.device_count()}, such as {' or '.join(map(str, _batch_sizes(c)))}."
        ),
    ),
    Contradiction(
        lambda c: c.stage == "pretune" and not (c.task_weight or c.variational_weight),
        lambda c: "config.task_weight and config.variational_weight are both 0; one of them has to be more.",
    ),
    Contradiction(
        lambda c: c.stage == "pretune" and c.method != "toast",
        lambda c: f"config.stage is pretune and config.method {c.method}; only toast can be pre-tuned.",
    ),
    Contradiction(
        lambda c: c.stage == "pretune" and not c.task_weight and c.tune_transform,
        lambda c: "config.tune_transform is True, but only the cross-entropy trains it; set a --config.task_weight.",
    ),
    Contradiction(
        lambda c: c.tune_transform and not _has_transform(c),
        lambda c: f"config.tune_transform is True, but method {c.method} has no transform; set it to False.",
    ),
)
_OF_IMAGES = (
    Contradiction(
        lambda c: c.method == "vpt" and c.backbone.family == "convnext",
        lambda c: "Method vpt adds prompt tokens, which a ConvNeXt has no place for; use another --config.method, or a ViT.",
    ),
    Contradiction(
        lambda c: c.method == "linear" and not c.head.tune,
        lambda c: "config.head.tune is False, but method linear tunes nothing else; set it to True.",
    ),
    Contradiction(
        lambda c: not c.head.tune and c.head.start != "classifier" and not (c.stage == "pretune" and not c.task_weight),
        lambda c: "config.head.tune is False, which leaves an untrained head; set --config.head.start=classifier.",
    ),
    Contradiction(
        lambda c: c.head.start == "classifier" and c.backbone.weights == RANDOM,
        lambda c: "config.head.start is classifier, but a random backbone has none; name a --config.backbone.weights.",
    ),
    Contradiction(
        lambda c: c.backbone.family == "vit" and c.data.image_size % c.backbone.patch,
        lambda c: (
            f"config.data.image_size {c.data.image_size} is no multiple of the patch size {c.backbone.patch}; use "
            f"{_near(c.data.image_size, c.backbone.patch)}, for example."
        ),
    ),
    Contradiction(
        lambda c: c.backbone.family == "convnext" and c.data.image_size % 32,
        lambda c: (
            f"config.data.image_size {c.data.image_size} is no multiple of 32, as a ConvNeXt needs; use "
            f"{_near(c.data.image_size, 32)}, for example."
        ),
    ),
    Contradiction(
        lambda c: c.method == "partial" and c.tuned_blocks > _blocks(c),
        lambda c: (
            f"config.tuned_blocks is {c.tuned_blocks}; this network has 1 to {_blocks(c)} blocks to tune, of a ConvNeXt those "
            "of its last stage."
        ),
    ),
    Contradiction(
        lambda c: c.data.resize < c.data.image_size,
        lambda c: (
            f"A crop of {c.data.image_size} pixels does not fit in images resized to {c.data.resize}; set "
            f"--config.data.resize={c.data.image_size} or more."
        ),
    ),
    Contradiction(
        lambda c: c.stage == "pretune" and not c.data.labels and c.task_weight,
        lambda c: "config.data.labels is False, which leaves the variational loss alone; set --config.task_weight=0.",
    ),
    Contradiction(
        lambda c: c.stage == "tune" and not c.data.labels,
        lambda c: "config.data.labels is False, but tuning needs labels; set it to True, or config.stage to pretune.",
    ),
    Contradiction(
        lambda c: (c.augment.mixup or c.augment.cutmix) and _share(c) % 2,
        lambda c: (
            f"Each device gets {_share(c)} of {c.batch_size} images, but config.augment.mixup and config.augment.cutmix mix "
            "pairs of them; use a batch size that gives each an even number."
        ),
    ),
)
_OF_TEXT = (
    Contradiction(
        lambda c: c.data.length > _context(c),
        lambda c: (
            f"config.data.length is {c.data.length}, but {c.backbone.size} reads {_context(c)} tokens; set "
            f"--config.data.length={_context(c)} or less."
        ),
    ),
    Contradiction(
        lambda c: _share(c) % c.microbatches,
        lambda c: (
            f"config.microbatches is {c.microbatches}, which does not divide the {_share(c)} sequences of a batch that each "
            "device gets; change it, or config.batch_size."
        ),
    ),
    Contradiction(
        lambda c: c.fsdp > 1 and c.method == "finetune",
        lambda c: "config.fsdp shares what is frozen, and method finetune freezes nothing; set --config.fsdp=1.",
    ),
    Contradiction(
        lambda c: jax.local_device_count() % c.fsdp,
        lambda c: (
            f"config.fsdp is {c.fsdp}, which does not divide the {jax.local_device_count()} devices of a host; use a divisor "
            "of it."
        ),
    ),
    Contradiction(
        lambda c: c.data.held_out and c.data.splits.val,
        lambda c: "config.data.splits.val and config.data.held_out both give a val split; set one of them.",
    ),
)


def check(config: ConfigDict) -> None:
    """Raises InputError with everything that is wrong in the config of a run, without looking at data or weights.

    A contradiction between fields of which one is wrong by itself is not told.
    """
    _refuse(_of_a_run(config))
    dtypes.check(config.backbone.dtype)


def _of_a_run(config):
    wrong = _problems(config, _rows_of_a_run(config))
    sound = config.copy_and_resolve_references()
    for name in wrong:
        _delete(sound, name)
    told = list(wrong.values())
    for one in _OF_RUNS + (_OF_TEXT if config.backbone.family == "llama" else _OF_IMAGES):
        try:
            if one.holds(sound):
                told.append(one.sentence(sound))
        except AttributeError:  # it asks for a field that is wrong by itself
            if not wrong:
                raise
    return told


def check_fields(config: ConfigDict) -> None:
    """Raises InputError with every field that is unknown, missing or out of range, of the config of any task.

    Of a sweep it is those of the sweep alone; each of its runs is a config of its own. Of a demo, the runs of its rows are
    checked too.
    """
    if config.task == "sweep":
        wrong = schema.problems({name: config.sweep[name.removeprefix("sweep.")] for name in schema.SWEEP}, schema.SWEEP)
    else:
        wrong = _problems(config, schema.TASKS[config.task] if config.task in schema.TASKS else _rows_of_a_run(config))
    _refuse([*wrong.values(), *_of_configs_in(config, wrong)])


def _of_configs_in(config, wrong):
    """What is wrong in the configs that the config of a demo holds: the runs of its rows, and others."""
    names = schema.CONFIGS.get(config.task, ())
    if "runs" not in names:
        return []
    rows = () if "rows" in wrong else config.rows
    told = [
        f"config.rows names {row!r}; it has to be one of {', '.join(config.runs)}." for row in rows if row not in config.runs
    ]
    inner = {f"runs.{row}": config.runs[row] for row in rows if row in config.runs}
    inner |= {name: config[name] for name in names if name != "runs"}
    for name, one in inner.items():
        is_run = one.task not in schema.TASKS
        sentences = _of_a_run(one) if is_run else _problems(one, schema.TASKS[one.task]).values()
        told += [sentence.replace("config.", f"config.{name}.") for sentence in sentences]
    return told


def _rows_of_a_run(config):
    family = config.backbone.get("family") if "backbone" in config else None
    return choose("config.backbone.family", family, schema.FAMILIES)


def _problems(config, rows):
    inner = next((names for task, names in schema.CONFIGS.items() if task == config.get("task")), ())
    outer = {name: value for name, value in config.to_dict().items() if name not in inner}
    return schema.problems(flat_fields(outer), rows)


def _refuse(sentences):
    if len(sentences) == 1:
        raise InputError(sentences[0])
    if sentences:
        raise InputError("\n  ".join([f"The config has {len(sentences)} mistakes:", *sentences]))


def _delete(config, name):
    """Takes a field out of a config, if it is there."""
    *path, last = name.split(".")
    with config.unlocked():
        for one in path:
            config = config.get(one, ConfigDict())
        if last in config:
            del config[last]


def _has_transform(config):
    method = (LANGUAGE_METHODS if config.backbone.family == "llama" else METHODS)[config.method]
    return TRANSFORM in method.tuned + method.frozen


def _blocks(config):
    """How many blocks method partial may tune."""
    if config.backbone.family == "vit":
        return vit.SIZES[config.backbone.size].depth
    return convnext.SIZES[config.backbone.size].depths[-1]


def _context(config):
    return llama.SIZES[config.backbone.size].context


def _share(config):
    """What each device gets of a batch."""
    return config.batch_size // jax.device_count()


def _batch_sizes(config):
    """The nearest that all devices can share."""
    devices = jax.device_count()
    return sorted({max(1, config.batch_size // devices) * devices, -(-config.batch_size // devices) * devices})


def _near(size, multiple):
    return max(1, round(size / multiple)) * multiple
