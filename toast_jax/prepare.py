"""From a config to something that can run. Whatever can fail does so here, before the first step."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import optax
from ml_collections import ConfigDict

from toast_jax import language, losses, methods, model, optim, parallel, parameters, trees, vision, workdir
from toast_jax.data import batches, sources
from toast_jax.data.sequences import Sequences
from toast_jax.errors import InputError, choose
from toast_jax.evaluation import mapped
from toast_jax.fields import flat_fields
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
    """Everything that stays the same during a run."""

    config: ConfigDict
    folder: Path
    train: sources.Source | Sequences
    evals: dict[str, sources.Source | Sequences]
    tx: optax.GradientTransformation
    step: Callable
    eval_step: Callable
    frozen: dict
    schedule: Callable
    steps_per_epoch: int
    tuned_parameters: dict[str, int]

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


def prepare(config: ConfigDict, folder: str | Path) -> tuple[Run, State]:
    """Checks the config, opens and checks the data, loads the network and claims the folder, in this order.

    Raises:
      InputError: anything in them that would stop the run.
    """
    check(config)
    reads = domain(config)
    # Images that were verified when the run began need it no more when it goes on.
    train, evals = reads.open_sources(config, verified=workdir.has_checkpoint(folder))
    steps_per_epoch = batches.steps_per_epoch(train, config.batch_size)
    network = load_network(config, len(train.classes))
    scores = scores_of(config, network)
    schedule = _schedule(config, steps_per_epoch)
    tx = _optimizer(config, schedule, network.mask)
    step = functools.partial(train_step, scores=scores, tx=tx, augment=reads.augmentation(config, train), ema=config.ema)
    num_tuned, num_head = trees.count(network.tuned), trees.count(network.tuned.get("head", {}))
    run = Run(
        config=config,
        folder=workdir.claim(folder, config),
        train=train,
        evals=evals,
        tx=tx,
        step=parallel.replicate(step, num_replicated=2, donate=(0,)),
        eval_step=mapped(scores),
        frozen=parallel.place(network.frozen),
        schedule=schedule,
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
    state = init_state(network.tuned, run.tx, seed, averaged=config.ema > 0)
    return dataclasses.replace(run, config=config, folder=workdir.claim(folder, config), frozen=frozen), state


# Smallest value of every number that has one; a config of images has other fields than one of text.
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
    "data.length": 2,
    "data.documents": 0,
    "data.held_out": 0.0,
    "task_weight": 0.0,
    "variational_weight": 0.0,
    "ema": 0.0,
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
        if name in values and not values[name] >= bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be {bound} or more.")
    for name, bound in _AT_MOST.items():
        if name in values and not values[name] <= bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be {bound} or less.")
    for name, bound in _LESS_THAN.items():
        if name in values and not values[name] < bound:
            raise InputError(f"config.{name} is {values[name]}; it has to be less than {bound}.")
    if config.warmup_epochs >= config.epochs:
        raise InputError(
            f"config.warmup_epochs is {config.warmup_epochs} and config.epochs {config.epochs}: the run would never leave its "
            "warm-up; make the warm-up shorter."
        )
    if config.checkpoint and config.task == "train":
        raise InputError("config.checkpoint is for the task evaluate; weights to start from go in config.backbone.weights.")
    parallel.check_batch_size(config.batch_size)
    if config.stage == "pretune" and not (config.task_weight or config.variational_weight):
        raise InputError("config.task_weight and config.variational_weight are both 0; one of them has to be more.")
    domain(config).check(config)


def domain(config: ConfigDict):
    """`vision` or `language`: the module that knows what the backbone of the config reads."""
    return language if config.backbone.family == "llama" else vision


def load_network(config: ConfigDict, num_classes: int) -> Network:
    """Builds the network of a config, loads its weights, and tells what of it is tuned."""
    network, method = model.build(config, num_classes)
    params = parameters.start(
        network,
        method,
        seed=config.seed,
        weights=config.backbone.weights,
        classifier="head" in config and config.head.start == "classifier",
        top_down=config.top_down,
        tuned=config.checkpoint,
    )
    mask = methods.tuned_mask(params, method)
    log.info("%s", methods.table(params, method))
    tuned, frozen = trees.split(params, mask)
    return Network(network, method, mask, tuned, frozen)


def _optimizer(config, schedule, mask) -> optax.GradientTransformation:
    fields = config.optimizer
    return optim.optimizer(
        name=fields.name,
        schedule=schedule,
        mask=mask,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay,
        no_decay=tuple(fields.no_decay),
        clip=fields.clip,
    )


def _schedule(config, steps_per_epoch) -> Callable:
    fields = config.optimizer
    lr = fields.lr * (config.batch_size / fields.base_batch_size if fields.base_batch_size else 1.0)
    return choose("config.optimizer.schedule", fields.schedule, optim.SCHEDULES)(
        lr=lr, epochs=config.epochs, warmup_epochs=config.warmup_epochs, steps_per_epoch=steps_per_epoch
    )


def scores_of(config, network) -> Callable:
    """What the stage of the run minimises."""
    weights = {"task_weight": config.task_weight, "variational_weight": config.variational_weight}
    stages = {"tune": losses.tune, "pretune": functools.partial(losses.pretune, **weights)}
    return choose("config.stage", config.stage, stages)(network.model, network.method)
