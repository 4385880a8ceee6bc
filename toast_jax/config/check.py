"""Check a config before any data is read, and report all of its mistakes at once, one per line.

`schema.py` checks each field by itself; the table here lists the conflicts between fields.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from toast_jax.config import schema
from toast_jax.config.backbone_names import RANDOM
from toast_jax.config.task_fields import SECTIONS, SWEEP, TASKS
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.model.families import FAMILIES, Family
from toast_jax.model.layers import dtypes
from toast_jax.model.methods import TRANSFORM


class Conflict(NamedTuple):
    """Values of fields that cannot be combined.

    Attributes:
      holds: whether a config has the conflict.
      sentence: the error message for such a config.
    """

    holds: Callable[[ConfigDict], bool]
    sentence: Callable[[ConfigDict], str]


_OF_RUNS = (
    Conflict(
        lambda c: c.warmup_epochs >= c.epochs,
        lambda c: (
            f"config.warmup_epochs is {c.warmup_epochs} and config.epochs {c.epochs}: the run would never leave its warm-up; "
            "make the warm-up shorter."
        ),
    ),
    Conflict(
        lambda c: c.checkpoint and c.task == "train",
        lambda c: "config.checkpoint is for the task evaluate; weights to start from go in config.backbone.weights.",
    ),
    Conflict(
        lambda c: c.steered_blocks and (row := _family(c).methods.get(c.method)) is not None and row.signal != "top_down",
        lambda c: (
            f"config.steered_blocks is {c.steered_blocks}, but method {c.method} steers nothing; set it to 0, or "
            "config.method to toast or toast_lite."
        ),
    ),
    Conflict(
        lambda c: c.steered_blocks > _sites(c),
        lambda c: (
            f"config.steered_blocks is {c.steered_blocks}; this network has {_sites(c)} blocks to steer, stages in a ConvNeXt."
        ),
    ),
    Conflict(
        lambda c: c.batch_size % jax.device_count(),
        lambda c: (
            f"config.batch_size is {c.batch_size}, which does not split over {jax.device_count()} devices; use a multiple of "
            f"{jax.device_count()}, such as {' or '.join(map(str, _batch_sizes(c)))}."
        ),
    ),
    Conflict(
        lambda c: c.stage == "pretune" and not (c.task_weight or c.variational_weight),
        lambda c: "config.task_weight and config.variational_weight are both 0; one of them has to be more.",
    ),
    Conflict(
        lambda c: c.stage == "pretune" and c.method != "toast",
        lambda c: f"config.stage is pretune and config.method {c.method}; only toast can be pre-tuned.",
    ),
    Conflict(
        lambda c: c.stage == "pretune" and not c.task_weight and c.tune_transform,
        lambda c: "config.tune_transform is True, but only the cross-entropy trains it; set a --config.task_weight.",
    ),
    Conflict(
        lambda c: c.tune_transform and not _has_transform(c),
        lambda c: f"config.tune_transform is True, but method {c.method} has no transform; set it to False.",
    ),
)
_OF_IMAGES = (
    Conflict(
        lambda c: c.method in _family(c).refused,
        lambda c: f"Method {c.method} {_family(c).refused[c.method]}; use another --config.method{_able_families(c)}.",
    ),
    Conflict(
        lambda c: c.method == "linear" and not c.head.tune,
        lambda c: "config.head.tune is False, but method linear tunes nothing else; set it to True.",
    ),
    Conflict(
        lambda c: not c.head.tune and c.head.start != "classifier" and not (c.stage == "pretune" and not c.task_weight),
        lambda c: "config.head.tune is False, which leaves an untrained head; set --config.head.start=classifier.",
    ),
    Conflict(
        lambda c: c.head.start == "classifier" and c.backbone.weights == RANDOM,
        lambda c: "config.head.start is classifier, but a random backbone has none; name a --config.backbone.weights.",
    ),
    Conflict(
        lambda c: c.data.image_size % _multiple(c),
        lambda c: (
            f"config.data.image_size {c.data.image_size} is no multiple of "
            f"{'the patch size ' * ('patch' in c.backbone)}{_multiple(c)}"
            f"{'' if 'patch' in c.backbone else f', as a {_family(c).title} needs'}; use "
            f"{_near(c.data.image_size, _multiple(c))}, for example."
        ),
    ),
    Conflict(
        lambda c: c.method == "partial" and c.tuned_blocks > _blocks(c),
        lambda c: (
            f"config.tuned_blocks is {c.tuned_blocks}; this network has 1 to {_blocks(c)} blocks to tune, of a ConvNeXt those "
            "of its last stage."
        ),
    ),
    Conflict(
        lambda c: c.data.resize < c.data.image_size,
        lambda c: (
            f"A crop of {c.data.image_size} pixels does not fit in images resized to {c.data.resize}; set "
            f"--config.data.resize={c.data.image_size} or more."
        ),
    ),
    Conflict(
        lambda c: c.stage == "pretune" and not c.data.labels and c.task_weight,
        lambda c: "config.data.labels is False, which leaves the variational loss alone; set --config.task_weight=0.",
    ),
    Conflict(
        lambda c: c.stage == "tune" and not c.data.labels,
        lambda c: "config.data.labels is False, but tuning needs labels; set it to True, or config.stage to pretune.",
    ),
    Conflict(
        lambda c: (c.augment.mixup or c.augment.cutmix) and _share(c) % 2,
        lambda c: (
            f"Each device gets {_share(c)} of {c.batch_size} images, but config.augment.mixup and config.augment.cutmix mix "
            "pairs of them; use a batch size that gives each an even number."
        ),
    ),
)
_OF_TEXT = (
    Conflict(
        lambda c: c.data.length > _context(c),
        lambda c: (
            f"config.data.length is {c.data.length}, but {c.backbone.size} reads {_context(c)} tokens; set "
            f"--config.data.length={_context(c)} or less."
        ),
    ),
    Conflict(
        lambda c: _share(c) % c.microbatches,
        lambda c: (
            f"config.microbatches is {c.microbatches}, which does not divide the {_share(c)} sequences of a batch that each "
            "device gets; change it, or config.batch_size."
        ),
    ),
    Conflict(
        # A group takes some devices of a host, or all of several hosts.
        lambda c: jax.local_device_count() % c.fsdp and (c.fsdp % jax.local_device_count() or jax.device_count() % c.fsdp),
        lambda c: (
            f"config.fsdp is {c.fsdp}, which does not divide the {jax.local_device_count()} devices of a host; use a divisor "
            "of it."
        ),
    ),
    Conflict(
        lambda c: c.data.held_out and c.data.splits.val,
        lambda c: "config.data.splits.val and config.data.held_out both give a val split; set one of them.",
    ),
)


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
    sound = config.copy_and_resolve_references()
    for name in wrong:
        _delete(sound, name)
    sentences = list(wrong.values())
    for conflict in _OF_RUNS + {"images": _OF_IMAGES, "text": _OF_TEXT}[_family(config).reads]:
        try:
            if conflict.holds(sound):
                sentences.append(conflict.sentence(sound))
        except AttributeError:  # a field that it compares is invalid and was deleted
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


def _delete(config, name):
    """Delete a field of a config, if it is there."""
    *path, last = name.split(".")
    with config.unlocked():
        for section in path:
            config = config.get(section, ConfigDict())
        if last in config:
            del config[last]


def _family(config) -> Family:
    return FAMILIES[config.backbone.family]


def _able_families(config):
    """Return the families to name as a remedy, as in ", or a ViT": those with the same data that support the method."""
    able = [
        f", or a {family.title}"
        for family in FAMILIES.values()
        if family.reads == _family(config).reads and config.method in family.methods
    ]
    return "".join(able)


def _multiple(config):
    return _family(config).image_multiple(config.backbone)


def _has_transform(config):
    method = _family(config).methods.get(config.method)  # None if the family refuses it
    return method is not None and TRANSFORM in method.tuned + method.frozen


def _blocks(config):
    """Return how many blocks method partial can tune."""
    return _family(config).tunable_blocks(_family(config).sizes[config.backbone.size])


def _sites(config):
    """Return how many parts of the network can take a top-down input."""
    return _family(config).sites(_family(config).sizes[config.backbone.size])


def _context(config):
    return _family(config).sizes[config.backbone.size].context


def _share(config):
    """Return the number of examples of a batch on each device."""
    return config.batch_size // jax.device_count()


def _batch_sizes(config):
    """Return the nearest batch sizes that split evenly over all devices."""
    devices = jax.device_count()
    return sorted({max(1, config.batch_size // devices) * devices, -(-config.batch_size // devices) * devices})


def _near(size, multiple):
    return max(1, round(size / multiple)) * multiple
