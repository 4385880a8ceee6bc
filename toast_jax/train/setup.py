"""Prepare a run from a config, and fail before the first step if anything is wrong."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.config.check import check
from toast_jax.data import loader
from toast_jax.data.images import sources
from toast_jax.data.text.sequences import Sequences
from toast_jax.devices import fsdp, parallel
from toast_jax.devices.protocol import Devices, Mapped
from toast_jax.errors import InputError
from toast_jax.model import families, losses, methods, steered
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.model.segmentation import segmenter
from toast_jax.train import image_runs, optim, text_runs
from toast_jax.train.evaluation import mapped
from toast_jax.train.feature_cache import features_of
from toast_jax.train.segmentation import mask_runs
from toast_jax.train.step import State, init_state, train_step
from toast_jax.weights import initial_parameters, module_file, places, pretrained
from toast_jax.workdir import run_folder
from toast_jax.workdir.metrics import Member

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with its parameters, split into tuned and frozen trees with None in the gaps.

    `loaded` has the paths of the parameters that are from files; the others are created from the seed.
    """

    model: steered.Steered
    method: methods.Method
    mask: dict
    tuned: dict
    frozen: dict
    loaded: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """The constant part of a run, or of runs that train together (see `grid`).

    Attributes:
      members: the runs, mostly one.
      folder: of the checkpoints.
      train, evals: the data.
      parts: the keyword arguments of `step.train_step`.
      step, eval_step: `step.train_step` and `evaluation.eval_step`, mapped over all devices.
      frozen: the frozen parameters, placed on devices.
      mask: True for tuned parameters.
      devices: places arrays and maps steps.
      features: see `feature_cache.features_of`; None in pre-tuning and for methods that cannot cache any.
      steps_per_epoch: of training.
      tuned_parameters: their numbers, `all` and `without_head`.
      loaded: the parameters that are from files, by path, for `reseed`: tuned ones as they were read, on the host, and None for
        frozen ones. None for a run of one seed.
    """

    members: tuple[Member, ...]
    folder: Path
    train: sources.Source | Sequences
    evals: dict[str, sources.Source | Sequences]
    parts: dict
    step: Mapped
    eval_step: Callable
    frozen: dict
    mask: dict
    devices: Devices
    features: Callable | None
    steps_per_epoch: int
    tuned_parameters: dict[str, int]
    loaded: dict[str, np.ndarray | None] | None = None

    @property
    def config(self) -> ConfigDict:
        """The config of the first member; others differ in learning rate and weight decay."""
        return self.members[0].config

    @property
    def steps(self) -> int:
        return len(self.members[0].rates)

    @property
    def unit(self) -> int:
        """How many steps `eval_every` and `checkpoint_every` count as one: those of an epoch, or one."""
        return domain(self.config).timing(self.config, self.steps_per_epoch)[0]


def prepare(config: ConfigDict, folder: str | Path, *, several_seeds: bool = False) -> tuple[Run, State]:
    """Check the config, claim the folder, open the data, load the network, and decode all images or tokenize all text.

    All that can be refused without the images' or texts' content is refused before that last part, which may take long.

    With `several_seeds`, keep the parameters that are from files, so that `reseed` need not read them again.

    Raises:
      InputError: any of these fails.
    """
    check(config)
    steers = families.of_config(config).methods[config.method].signal == "top_down"
    places.check_files(config, ["backbone.weights", "module", *(["top_down"] if steers else [])])
    folder = run_folder.claim(folder, config)
    reads, devices = domain(config), devices_of(config)
    # A run that resumes has verified its images already, and has recorded which it holds out.
    resumes = run_folder.has_checkpoint(folder)
    opened = reads.open_splits(config, folder if resumes else None)
    network = (reload_network if resumes else load_network)(config, len(opened["train"].classes))
    optimizer(config, schedule(config, 1), network.mask)  # as a check of its regexes
    if isinstance(opened["train"], Sized):  # text has no length before it is tokenized
        loader.steps_per_epoch(opened["train"], config.batch_size)
    train, evals = reads.open_sources(config, verified=resumes, opened=opened)
    steps_per_epoch = loader.steps_per_epoch(train, config.batch_size)
    of_steps = rates(config, steps_per_epoch)
    if config.optimizer.lr and not of_steps.any():
        raise InputError(
            f"The learning rate is 0 in each of the {len(of_steps)} steps: make the warm-up shorter, --config.batch_size "
            "smaller, or --config.optimizer.lr larger."
        )
    log.info("%s", methods.table(trees.merge(network.tuned, network.frozen), network.method))
    scores, tx = scores_of(config, network), optimizer(config, schedule(config, steps_per_epoch), network.mask)
    parts = {"scores": scores, "tx": tx, "augment": reads.augmentation(config, train), "ema": config.ema}
    if config.get("microbatches", 1) > 1:
        parts["microbatches"] = config.microbatches
    parameters = without_statistics(network.tuned)
    num_tuned, num_head = (trees.count(tree) for tree in (parameters, parameters.get("head", {})))
    run = Run(
        members=(Member(config, folder, of_steps),),
        folder=folder,
        train=train,
        evals=evals,
        parts=parts,
        step=devices.replicate(functools.partial(train_step, **parts), num_replicated=2, donate=(0,)),
        eval_step=eval_step_of(config, network, devices, config.get("save_predictions", False)),
        frozen=devices.place(network.frozen),
        mask=network.mask,
        devices=devices,
        features=features_of(network.model, network.method) if config.stage == "tune" else None,
        steps_per_epoch=steps_per_epoch,
        tuned_parameters={"all": num_tuned, "without_head": num_tuned - num_head},
        loaded=_copied(network) if several_seeds else None,
    )
    return run, init_state(network.tuned, tx, config.seed, averaged=config.ema > 0)


def _copied(network) -> dict[str, np.ndarray | None]:
    """Return `Run.loaded`; copies, as steps donate the tuned parameters."""
    tuned = trees.flat(network.tuned)
    return {path: None if tuned[path] is None else np.array(parallel.fetch(tuned[path])) for path in network.loaded}


def reseed(run: Run, seed: int, folder: str | Path) -> tuple[Run, State]:
    """Prepare the same run with another seed in another folder, sharing data and, if both have as many steps, compiled steps.

    Raises:
      InputError: the folder cannot be written or holds another run.
    """
    config = run.config.copy_and_resolve_references()
    config.seed = seed
    train, evals = domain(config).redraw(config, run.train, run.evals, folder if run_folder.has_checkpoint(folder) else None)
    if loader.steps_per_epoch(train, config.batch_size) != run.steps_per_epoch:  # another number of corrupt images is held out
        return prepare(config, folder, several_seeds=True)
    loaded, frozen = run.loaded, trees.flat(run.frozen)
    if loaded is not None:
        loaded = {path: frozen[path] if leaf is None else leaf for path, leaf in loaded.items()}
    network = load_network(config, len(run.train.classes), loaded)
    frozen = run.devices.place(network.frozen)  # parts of it may be initialised from the seed
    state = init_state(network.tuned, run.parts["tx"], seed, averaged=config.ema > 0)
    folder = run_folder.claim(folder, config)
    members = (Member(config, folder, run.members[0].rates),)
    return dataclasses.replace(run, members=members, folder=folder, train=train, evals=evals, frozen=frozen), state


_DOMAINS = {"images": image_runs, "masks": mask_runs, "text": text_runs}
_BUILDERS: dict[str, Callable] = {"images": steered.build, "masks": segmenter.build, "text": steered.build}


def domain(config: ConfigDict):
    """Return the module of what a run reads: `train.image_runs`, `train.text_runs` or `train.segmentation.mask_runs`."""
    return _DOMAINS[families.reads(config)]


def devices_of(config: ConfigDict) -> Devices:
    """Return the module `parallel`, or an `fsdp.Shared` if the config asks for one."""
    return fsdp.Shared(config.fsdp, families.of_config(config).partition) if config.get("fsdp", 1) > 1 else parallel


def load_network(config: ConfigDict, num_classes: int, loaded: Mapping | None = None) -> Network:
    """Build the network of a config, load its weights, and split tuned from frozen parameters.

    No file is read for parameters if those of `initial_parameters.load` are given as `loaded`. Without labels, a classifier of
    the backbone's file keeps its own number of classes.
    """
    from_classifier = "head" in config and config.head.get("start") == "classifier"
    if from_classifier and not config.data.labels:
        num_classes = pretrained.num_classes(places.located(config.backbone.weights))
    network, method = _BUILDERS[families.reads(config)](config, num_classes)
    files: dict[str, Any] = {
        "weights": places.located(config.backbone.weights),
        "classifier": from_classifier,
        "module": places.located(config.module, "module"),
        "top_down": places.located(config.top_down, "top_down"),
        "tuned": places.located(config.get("checkpoint", ""), "checkpoint"),
        "put": devices_of(config).put,
    }
    if loaded is None:
        if (module := files["module"] or (network.top_down and files["top_down"])) and not files["tuned"]:
            module_file.check_method(module, method, config)
        loaded = initial_parameters.load(network, method, **files, pretunes=config.stage == "pretune")
    params = initial_parameters.start(network, method, seed=config.seed, loaded=loaded, **files)
    mask = methods.tuned_mask(params, method)
    tuned, frozen = trees.split(params, mask)
    return Network(network, method, mask, tuned, frozen, frozenset(loaded))


def reload_network(config: ConfigDict, num_classes: int) -> Network:
    """Load a network whose tuned parameters a checkpoint is about to replace; its run has logged what it loads and creates."""
    with silenced(log, initial_parameters.log, pretrained.log):
        return load_network(config, num_classes)


@contextlib.contextmanager
def silenced(*logs: logging.Logger) -> Iterator[None]:
    """Disable some loggers inside the block, which would repeat what they have logged."""
    for silent in logs:
        silent.disabled = True
    try:
        yield
    finally:
        for silent in logs:
            silent.disabled = False


def optimizer(
    config: ConfigDict, schedule: Callable, mask: dict, weight_decay: jax.Array | None = None
) -> optax.GradientTransformation:
    """Build the optimizer of a config; `weight_decay` overrides the config's."""
    fields = config.optimizer
    tx = optim.optimizer(
        name=fields.name,
        schedule=schedule,
        mask=mask,
        momentum=fields.momentum,
        weight_decay=fields.weight_decay if weight_decay is None else weight_decay,
        no_decay=tuple(fields.no_decay),
        clip=fields.clip,
        lr_scale=fields.lr_scale,
        lr_scaled=tuple(fields.lr_scaled),
        stacks=families.of_config(config).names.stacks,
    )
    return optax.apply_if_finite(tx, config.skip_nonfinite) if config.skip_nonfinite else tx


def schedule(config: ConfigDict, steps_per_epoch: int) -> Callable:
    """Return the learning rate of a config as a function of the step."""
    fields = config.optimizer
    lr = fields.lr * (config.batch_size / fields.base_batch_size if fields.base_batch_size else 1.0)
    unit, length, warmup = domain(config).timing(config, steps_per_epoch)
    return optim.SCHEDULES[fields.schedule](lr=lr, epochs=length, warmup_epochs=warmup, steps_per_epoch=unit)


def rates(config: ConfigDict, steps_per_epoch: int) -> np.ndarray:
    """Return the learning rate of every step, `[steps]`, on the host, so that logging it costs no device time."""
    unit, length, _ = domain(config).timing(config, steps_per_epoch)
    return np.asarray(jax.vmap(schedule(config, steps_per_epoch))(jnp.arange(unit * length)))


def scores_of(config, network, predictions: bool = False) -> Callable:
    """Return the scores of the run, whose `loss` is minimised (see `losses`); with `predictions`, of tuning with logits."""
    return _SCORES[families.reads(config)](config, network, predictions)


def eval_step_of(config, network, devices: Devices, predictions: bool = False) -> Callable:
    """Map the evaluation step of a run to devices: `(tuned, frozen, batch) -> sums`."""
    return _EVAL_STEPS[families.reads(config)](config, network, devices, predictions)


def _of_stage(config, network, predictions) -> Callable:
    weights = {name: config[name] for name in ("task_weight", "variational_weight", "distillation_weight")}
    by_class = methods.HEAD in network.method.frozen and config.head.start == "classifier"
    pretune = functools.partial(losses.pretune, **weights, by_class=by_class)
    tune = functools.partial(losses.tune, predictions=predictions)
    stages: dict[str, Callable] = {"tune": tune, "pretune": pretune}
    return stages[config.stage](network.model, network.method)


def _by_scores(config, network, devices, predictions):
    return mapped(_of_stage(config, network, predictions), devices)


# By what a run reads.
_SCORES = {"images": _of_stage, "masks": mask_runs.scores, "text": _of_stage}
_EVAL_STEPS = {"images": _by_scores, "masks": mask_runs.eval_step, "text": _by_scores}
