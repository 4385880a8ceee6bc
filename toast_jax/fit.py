"""The loop: from a config to a tuned network, its checkpoint and its result. Pre-tuning is tuning with another loss."""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from toast_jax import checkpoint, losses, methods, metrics, model, optim, parallel, parameters, trees, workdir
from toast_jax.data import batches, sources
from toast_jax.errors import InputError, choose
from toast_jax.evaluate import evaluate, mapped
from toast_jax.train import State, init_state, train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that stays the same during a run."""

    config: ConfigDict
    folder: Path
    train: sources.Source
    evals: dict[str, sources.Source]
    step: Callable
    eval_step: Callable
    frozen: dict
    schedule: Callable
    steps_per_epoch: int
    tuned_parameters: dict[str, int]

    @property
    def steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch


def fit(config: ConfigDict, folder: str | Path) -> dict:
    """Trains what `config` says and returns the result that is also saved as `result.json`.

    A run that was killed goes on from its last checkpoint, bit for bit; a run that is done is only reported.

    Raises:
      InputError: anything about the config, the data, the weights or the folder that would stop the run, before its first
        step; later, a loss that is not finite.
    """
    started = time.perf_counter()
    parallel.check_batch_size(config.batch_size)
    run, state = prepare(config, folder)
    saved = run.folder / "result.json"
    with checkpoint.manager(run.folder, create=True) as checkpoints:
        restored = checkpoint.restore(checkpoints, state) if config.resume else None
        if restored is not None:
            state = restored
            log.info("Going on from step %d of %d, found in %s.", state.step, run.steps, checkpoints.directory)
        if state.step == run.steps and saved.exists():
            return json.loads(saved.read_text())
        with metrics.Writer(run.folder, int(state.step)) as writer:
            result = _train(run, state, checkpoints, writer, started)
    workdir.write_json(saved, result)
    return result


def prepare(config: ConfigDict, folder: str | Path) -> tuple[Run, State]:
    """Opens and checks the data, builds the network and loads its weights: whatever can fail before the first step."""
    train, evals = open_sources(config)
    network, method = model.build(config, len(train.classes))
    params = parameters.start(
        network,
        method,
        image_size=config.data.image_size,
        seed=config.seed,
        weights=config.backbone.weights,
        top_down=config.top_down,
    )
    mask = methods.tuned_mask(params, method)
    log.info("%s", methods.table(params, method))
    tuned, frozen = trees.split(params, mask)
    steps_per_epoch = batches.steps_per_epoch(train, config.batch_size)
    schedule = optim.warmup_cosine(
        lr=config.optimizer.lr, epochs=config.epochs, warmup_epochs=config.warmup_epochs, steps_per_epoch=steps_per_epoch
    )
    tx = _optimizer(config, schedule, mask)
    step = functools.partial(train_step, loss=_loss(config, network, method), tx=tx)
    run = Run(
        config=config,
        folder=workdir.claim(folder, config),
        train=train,
        evals=evals,
        step=_mapped_train_step(step),
        eval_step=mapped(network, method),
        frozen=parallel.place(frozen),
        schedule=schedule,
        steps_per_epoch=steps_per_epoch,
        tuned_parameters={"all": trees.count(tuned), "without_head": trees.count(tuned) - trees.count(tuned["head"])},
    )
    return run, init_state(tuned, tx, config.seed)


def open_sources(config: ConfigDict) -> tuple[sources.Source, dict[str, sources.Source]]:
    """The training source, and by name the evaluation sources that the config has."""
    names = ["train"] + [name for name in ("val", "test") if config.data.splits[name]]
    opened = {name: sources.open_split(config.data, name) for name in names}
    if config.data.verify or config.data.skip_corrupt:
        opened = {name: sources.verify(one, skip_corrupt=config.data.skip_corrupt) for name, one in opened.items()}
    log.info("%d classes; %s images.", len(opened["train"].classes), ", ".join(f"{n} {len(s):,}" for n, s in opened.items()))
    return opened.pop("train"), opened


def eval_batches(config: ConfigDict, source: sources.Source) -> Iterator[dict]:
    """This host's share of an evaluation split."""
    data = config.data
    return batches.eval_batches(
        source, batch_size=config.batch_size, resize=data.resize, size=data.image_size, workers=data.workers, shard=_shard()
    )


def _shard():
    return jax.process_index(), jax.process_count()


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


def _loss(config, network, method) -> Callable:
    """The only place where the stage of a run is asked for."""
    if config.stage == "pretune" and method.signal != "top_down":
        raise InputError(f"config.stage is pretune, but method {config.method} has no top-down module; use method toast.")
    stages = {
        "tune": losses.tune,
        "pretune": functools.partial(losses.pretune, weight=config.variational_weight),
    }
    return choose("config.stage", config.stage, stages)(network, method)


def _mapped_train_step(step: Callable) -> Callable:
    return parallel.replicate(step, num_replicated=2, donate=(0,))


def _train(run: Run, state: State, checkpoints, writer: metrics.Writer, started: float) -> dict:
    """Steps, evaluations and checkpoints from `state` to the last epoch."""
    config, start = run.config, int(state.step)
    state, timer, evaluated = parallel.place(state), _Timer(config.batch_size, run.steps, started), {}
    loader = batches.train_batches(
        run.train,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        resize=config.data.resize,
        size=config.data.image_size,
        start_step=start,
        workers=config.data.workers,
        shard=_shard(),
    )
    pending = []
    for step, batch in enumerate(parallel.prefetch(loader), start=start + 1):
        state, numbers = run.step(state, run.frozen, batch)
        pending.append((step, numbers))
        last_of_epoch = step % run.steps_per_epoch == 0
        if step == start + 1 or step % config.log_every == 0 or last_of_epoch:
            _log_steps(run, writer, pending, timer)
            pending = []
        if last_of_epoch:
            epoch = step // run.steps_per_epoch
            if epoch % config.eval_every == 0 or step == run.steps:
                evaluated = _evaluate(run, state, writer, step)
            if epoch % config.checkpoint_every == 0 or step == run.steps:
                checkpoint.save(checkpoints, parallel.fetch(state), {"config": config.to_dict()})
            timer.resume()
    evaluated = evaluated or _evaluate(run, state, writer, run.steps)
    return _result(run, evaluated, timer)


def _log_steps(run: Run, writer, pending, timer) -> None:
    """Fetches the numbers of the steps since the last call, which waits for the device, and reports them."""
    fetched = [(step, {name: float(value) for name, value in numbers.items()}) for step, numbers in jax.device_get(pending)]
    timer.tick(len(fetched))
    for step, numbers in fetched:
        numbers["lr"] = float(run.schedule(step - 1))
        writer.write(step, {f"train/{name}": value for name, value in numbers.items()})
        if not all(map(np.isfinite, numbers.values())):
            raise InputError(
                f"The loss is {numbers['loss']} and the gradient norm {numbers['grad_norm']} at step {step} (epoch "
                f"{(step - 1) // run.steps_per_epoch}, learning rate {numbers['lr']:.3g}); the last good checkpoint, if any, "
                f"is kept in {run.folder / 'checkpoints'}; try a lower --config.optimizer.lr in another --workdir."
            )
    step, numbers = fetched[-1]
    log.info(
        "step %d/%d  loss %.4f  accuracy %.3f  lr %.2e  %.1f images/s  ETA %s",
        *(step, run.steps, numbers["loss"], numbers["accuracy"], numbers["lr"], timer.rate, timer.eta(step)),
    )


def _evaluate(run: Run, state: State, writer, step: int) -> dict[str, dict[str, float]]:
    results = {}
    for name, source in run.evals.items():
        results[name] = evaluate(run.eval_step, state.tuned, run.frozen, eval_batches(run.config, source))
        writer.write(step, {f"{name}/{key}": results[name][key] for key in ("accuracy", "loss")})
        log.info("step %d  %s accuracy %.4f  loss %.4f  (%d images)", step, name, *results[name].values())
    return results


def _result(run: Run, evaluated, timer) -> dict:
    return {
        **{name: one for name, one in evaluated.items()},
        "seed": run.config.seed,
        "tuned_parameters": run.tuned_parameters,
        "images_per_second": timer.median_rate,
        "seconds_to_first_step": timer.first_step,
        "steps": run.steps,
        "config": run.config.to_dict(),
        **workdir.circumstances(),
    }


class _Timer:
    """Speed of the training steps alone: compilation, evaluation and checkpoints are left out."""

    def __init__(self, batch_size: int, steps: int, started: float):
        self._batch_size, self._steps, self._started = batch_size, steps, started
        self._rates, self._since = [], started
        self.first_step = None

    def tick(self, steps: int) -> None:
        """Call after `steps` steps have ended."""
        now = time.perf_counter()
        if self.first_step is None:
            self.first_step = now - self._started
        else:
            self._rates.append(steps * self._batch_size / (now - self._since))
        self._since = now

    def resume(self) -> None:
        """Call after something other than a step."""
        self._since = time.perf_counter()

    @property
    def rate(self) -> float:
        """Images per second since the last tick but one."""
        return self._rates[-1] if self._rates else 0.0

    @property
    def median_rate(self) -> float | None:
        return float(np.median(self._rates)) if self._rates else None

    def eta(self, step: int) -> str:
        """Time left for the steps after `step`, as h:mm:ss."""
        if not self._rates:
            return "-"
        seconds = int((self._steps - step) * self._batch_size / np.median(self._rates))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
