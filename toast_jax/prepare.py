"""From a config to something that can run. Whatever can fail does so here, before the first step."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from toast_jax import losses, methods, model, optim, parallel, parameters, trees, workdir
from toast_jax.augment import augment
from toast_jax.data import batches, sources
from toast_jax.data.verify import verify
from toast_jax.errors import InputError, choose
from toast_jax.evaluation import mapped
from toast_jax.fields import flat_fields
from toast_jax.known import known_of
from toast_jax.record import Member
from toast_jax.train import State, init_state, train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its parameters, split into those that learn and those that do not (None in the gaps)."""

    model: model.Steered
    method: methods.Method
    mask: dict
    tuned: dict
    frozen: dict


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same during a run, or during runs that train together (see `grid`).

    Attributes:
      members: the runs, of which there is mostly one.
      folder: where checkpoints are.
      train, evals: the data.
      parts: what the train step is made of: its keywords.
      step, eval_step: see `train.train_step` and `evaluation.eval_step`, on all devices.
      frozen: parameters that are not tuned, placed.
      mask: True where a parameter is tuned.
      known: see `known.known_of`; None where there is no such thing.
      steps_per_epoch: of training.
      tuned_parameters: how many there are, `all` and `without_head`.
    """

    members: tuple[Member, ...]
    folder: Path
    train: sources.Source
    evals: dict[str, sources.Source]
    parts: dict
    step: Callable
    eval_step: Callable
    frozen: dict
    mask: dict
    known: Callable | None
    steps_per_epoch: int
    tuned_parameters: dict[str, int]

    @property
    def config(self) -> ConfigDict:
        """Of the first member; others have another learning rate and weight decay."""
        return self.members[0].config

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


def prepare(config: ConfigDict, folder: str | Path) -> tuple[Run, State]:
    """Checks the config, opens and checks the data, loads the network and claims the folder, in this order.

    Raises:
      InputError: anything in them that would stop the run.
    """
    check(config)
    # Images that were verified when the run began need it no more when it goes on.
    train, evals = open_sources(config, verified=workdir.has_checkpoint(folder))
    steps_per_epoch = batches.steps_per_epoch(train, config.batch_size)
    network = load_network(config, len(train.classes))
    scores, tx = scores_of(config, network), optimizer(config, schedule(config, steps_per_epoch), network.mask)
    parts = {"scores": scores, "tx": tx, "augment": _augment(config, len(train.classes)), "ema": config.ema}
    num_tuned, num_head = trees.count(network.tuned), trees.count(network.tuned["head"])
    folder = workdir.claim(folder, config)
    run = Run(
        members=(Member(config, folder, schedule(config, steps_per_epoch)),),
        folder=folder,
        train=train,
        evals=evals,
        parts=parts,
        step=parallel.replicate(functools.partial(train_step, **parts), num_replicated=2, donate=(0,)),
        eval_step=mapped(scores),
        frozen=parallel.place(network.frozen),
        mask=network.mask,
        known=known_of(network.model, network.method) if config.stage == "tune" else None,
        steps_per_epoch=steps_per_epoch,
        tuned_parameters={"all": num_tuned, "without_head": num_tuned - num_head},
    )
    return run, init_state(network.tuned, tx, config.seed, averaged=config.ema > 0)


def reseed(run: Run, seed: int, folder: str | Path) -> tuple[Run, State]:
    """The same run from another seed, in another folder: data and compiled steps are shared.

    Raises:
      InputError: the folder cannot be written or holds another run.
    """
    config = run.config.copy_and_resolve_references()
    config.seed = seed
    network = load_network(config, len(run.train.classes))
    frozen = parallel.place(network.frozen)  # some of it may be created from the seed
    state = init_state(network.tuned, run.parts["tx"], seed, averaged=config.ema > 0)
    folder = workdir.claim(folder, config)
    members = (Member(config, folder, run.members[0].schedule),)
    return dataclasses.replace(run, members=members, folder=folder, frozen=frozen), state


# Smallest value of every number that has one.
_AT_LEAST = {
    "batch_size": 1,
    "epochs": 1,
    "warmup_epochs": 0,
    "log_every": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "lora.rank": 1,
    "prompts.num": 1,
    "prompts.dropout": 0.0,
    "backbone.drop_path": 0.0,
    "optimizer.lr": 0.0,
    "optimizer.base_batch_size": 0,
    "optimizer.momentum": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": 0.0,
    "data.image_size": 1,
    "data.workers": 0,
    "task_weight": 0.0,
    "variational_weight": 0.0,
    "ema": 0.0,
    "skip_nonfinite": 0,
    "augment.min_crop_area": 0.01,
    "augment.randaugment_ops": 0,
    "augment.randaugment_magnitude": 0.0,
    "augment.erasing": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.label_smoothing": 0.0,
}
_AT_MOST = {"augment.min_crop_area": 1.0, "augment.randaugment_magnitude": 10.0, "augment.erasing": 1.0}
_LESS_THAN = {
    "prompts.dropout": 1.0,
    "backbone.drop_path": 1.0,
    "optimizer.momentum": 1.0,
    "augment.label_smoothing": 1.0,
    "ema": 1.0,
}


def check(config: ConfigDict) -> None:
    """Raises InputError for the first number of the config that is out of range or contradicts another."""
    values = flat_fields(config.to_dict())
    for name, bound in _AT_LEAST.items():
        if not values[name] >= bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be {bound} or more.")
    for name, bound in _AT_MOST.items():
        if not values[name] <= bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be {bound} or less.")
    for name, bound in _LESS_THAN.items():
        if not values[name] < bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be less than {bound}.")
    if config.warmup_epochs >= config.epochs:
        raise InputError(
            f"config.warmup_epochs is {config.warmup_epochs} and config.epochs {config.epochs}: the run would never leave its "
            "warm-up; make the warm-up shorter."
        )
    if config.data.resize < config.data.image_size:
        raise InputError(
            f"A crop of {config.data.image_size} pixels does not fit in images resized to {config.data.resize}; "
            f"set --config.data.resize={config.data.image_size} or more."
        )
    if config.checkpoint and config.task == "train":
        raise InputError("config.checkpoint is for the task evaluate; weights to start from go in config.backbone.weights.")
    parallel.check_batch_size(config.batch_size)
    _check_pretuning(config)
    share = config.batch_size // jax.device_count()
    if (config.augment.mixup or config.augment.cutmix) and share % 2:
        raise InputError(
            f"Each device gets {share} of {config.batch_size} images, but config.augment.mixup and config.augment.cutmix mix "
            "pairs of them; use a batch size that gives each an even number."
        )


def _check_pretuning(config):
    if config.stage == "pretune" and not (config.task_weight or config.variational_weight):
        raise InputError("config.task_weight and config.variational_weight are both 0; one of them has to be more.")
    if config.stage == "pretune" and not config.data.labels and config.task_weight:
        raise InputError("config.data.labels is False, which leaves the variational loss alone; set --config.task_weight=0.")
    if config.stage == "tune" and not config.data.labels:
        raise InputError("config.data.labels is False, but tuning needs labels; set it to True, or config.stage to pretune.")


def open_sources(config: ConfigDict, *, verified: bool) -> tuple[sources.Source, dict[str, sources.Source]]:
    """The training source, and by name the evaluation sources that the config has.

    Unless they are `verified` already, and if the config says so, every image is decoded once.
    """
    names = ["train"] + [name for name in ("val", "test") if config.data.splits[name]]
    opened = {name: sources.open_split(config.data, name) for name in names}
    if config.data.skip_corrupt or (config.data.verify and not verified):
        opened = {name: verify(one, skip_corrupt=config.data.skip_corrupt) for name, one in opened.items()}
    log.info("%d classes; %s images.", len(opened["train"].classes), ", ".join(f"{n} {len(s):,}" for n, s in opened.items()))
    return opened.pop("train"), opened


def load_network(config: ConfigDict, num_classes: int) -> Network:
    """Builds the network of a config, loads its weights, and tells what of it is tuned."""
    network, method = model.build(config, num_classes)
    params = parameters.start(
        network,
        method,
        image_size=config.data.image_size,
        seed=config.seed,
        weights=config.backbone.weights,
        classifier=config.head.start == "classifier",
        top_down=config.top_down,
        tuned=config.checkpoint,
    )
    mask = methods.tuned_mask(params, method)
    log.info("%s", methods.table(params, method))
    tuned, frozen = trees.split(params, mask)
    return Network(network, method, mask, tuned, frozen)


def optimizer(
    config: ConfigDict, schedule: Callable, mask: dict, weight_decay: jax.Array | None = None
) -> optax.GradientTransformation:
    """The optimizer of a config, with another weight decay if one is given."""
    fields = config.optimizer
    tx = optim.optimizer(
        name=fields.name,
        schedule=schedule,
        mask=mask,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay if weight_decay is None else weight_decay,
        no_decay=tuple(fields.no_decay),
        clip=fields.clip,
    )
    return optax.apply_if_finite(tx, config.skip_nonfinite) if config.skip_nonfinite else tx


def schedule(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """The learning rate of a config as a function of the step."""
    fields = config.optimizer
    lr = fields.lr * (config.batch_size / fields.base_batch_size if fields.base_batch_size else 1.0)
    return choose("config.optimizer.schedule", fields.schedule, optim.SCHEDULES)(
        lr=lr, epochs=config.epochs, warmup_epochs=config.warmup_epochs, steps_per_epoch=steps_per_epoch
    )


def _augment(config, num_classes) -> Callable:
    fields = config.augment
    return functools.partial(
        augment,
        num_classes=num_classes,
        erasing=fields.erasing,
        mixup=fields.mixup,
        cutmix=fields.cutmix,
        smoothing=fields.label_smoothing,
    )


def scores_of(config, network) -> Callable:
    """What the stage of the run minimises."""
    weights = {"task_weight": config.task_weight, "variational_weight": config.variational_weight}
    stages = {"tune": losses.tune, "pretune": functools.partial(losses.pretune, **weights)}
    return choose("config.stage", config.stage, stages)(network.model, network.method)
