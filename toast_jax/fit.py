"""The loop: from a config to a tuned network, its checkpoint and its result. Pre-tuning is tuning with another loss."""

import logging
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax import checkpoint, interrupt, metrics, parallel, top_down_file, trees, workdir
from toast_jax.errors import Diverged, Interrupted
from toast_jax.evaluation import described, evaluate
from toast_jax.prepare import Run, domain, prepare, reseed
from toast_jax.progress import Progress
from toast_jax.train import State

log = logging.getLogger(__name__)


def fit(config: ConfigDict, folder: str | Path) -> dict:
    """Trains what `config` says and returns the result that is also saved as `result.json`.

    A run that was killed goes on from its last checkpoint, bit for bit; a run that is done is only reported.

    Raises:
      InputError: anything that `prepare` finds before the first step.
      Diverged: later, a loss that is not finite.
      Interrupted: the process was asked to end; the last step is saved.
    """
    return fit_seeds(config, {config.seed: folder})[0]


def fit_seeds(config: ConfigDict, folders: dict[int, str | Path]) -> list[dict]:
    """`fit` with several seeds, each in its folder; they share data and compiled steps."""
    run, results = None, []
    for seed, folder in folders.items():
        started = time.perf_counter()
        config = config.copy_and_resolve_references()
        config.seed = seed
        if result := workdir.finished(folder, config):
            log.info("This run is finished already; its result is in %s.", Path(folder) / "result.json")
        else:
            run, state = reseed(run, seed, folder) if run else prepare(config, folder)
            result = _finish(run, state, started)
        results.append(result)
    return results


def _finish(run: Run, state: State, started: float) -> dict:
    """Goes on from the folder's last checkpoint, if it has one, to the end."""
    with checkpoint.manager(run.folder, create=True) as checkpoints:
        restored = checkpoint.restore(checkpoints, state)
        if restored is not None:
            state = restored
            log.info("Going on from step %d of %d, found in %s.", state.step, run.steps, checkpoints.directory)
        with metrics.Writer(run.folder, int(state.step)) as writer:
            result = _train(run, state, checkpoints, writer, started)
    workdir.write_json(run.folder / "result.json", result)
    return result


def _train(run: Run, state: State, checkpoints, writer: metrics.Writer, started: float) -> dict:
    """Steps, evaluations and checkpoints from `state` to the last epoch."""
    config, start = run.config, int(state.step)
    reads = domain(config)
    loader = reads.train_batches(config, run.train, start)
    meta = {"config": config.to_dict(), "classes": run.train.classes}
    state, pending, evaluated = parallel.place(state), [], {}
    with Progress(reads.examples(config), reads.UNIT, start, run.steps, started) as progress, interrupt.asked() as interrupted:
        for step, batch in enumerate(parallel.sharded(loader), start=start + 1):
            state, numbers = run.step(state, run.frozen, batch)
            pending.append((step, numbers))
            last_of_epoch, stop = step % run.steps_per_epoch == 0, interrupted()
            if step == start + 1 or step % config.log_every == 0 or last_of_epoch or stop:
                _log_steps(run, writer, pending, progress)
                pending = []
            if last_of_epoch:
                epoch = step // run.steps_per_epoch
                if epoch % config.eval_every == 0 or step == run.steps:
                    evaluated = _evaluate(run, state, writer, step)
            if stop or (last_of_epoch and (epoch % config.checkpoint_every == 0 or step == run.steps)):
                checkpoint.save(checkpoints, parallel.fetch(state), meta)
            if stop and step < run.steps:
                raise Interrupted(f"Stopped after step {step} of {run.steps}, which is saved in {run.folder}.")
            if last_of_epoch:
                progress.resume()
    evaluated = evaluated or _evaluate(run, state, writer, run.steps)
    if config.stage == "pretune":
        top_down_file.save(run.folder / "top_down.safetensors", parallel.fetch(trees.merge(state.result, run.frozen)), config)
    return _result(run, evaluated, progress)


def _log_steps(run: Run, writer, pending, progress) -> None:
    """Fetches the numbers of the steps since the last call, which waits for the device, and reports them."""
    fetched = [(step, {name: float(value) for name, value in numbers.items()}) for step, numbers in jax.device_get(pending)]
    progress.tick(len(fetched))
    for step, numbers in fetched:
        numbers["lr"] = float(run.schedule(step - 1))
        writer.write(step, {f"train/{name}": value for name, value in numbers.items()})
        if not all(map(np.isfinite, numbers.values())):
            raise Diverged(
                f"The loss is {numbers['loss']} and the gradient norm {numbers['grad_norm']} at step {step} (epoch "
                f"{(step - 1) // run.steps_per_epoch}, learning rate {numbers['lr']:.3g}); the last good checkpoint, if any, "
                f"is kept in {run.folder / 'checkpoints'}; try a lower --config.optimizer.lr in another --workdir."
            )
    progress.tell(*fetched[-1])


def _evaluate(run: Run, state: State, writer, step: int) -> dict[str, dict[str, float]]:
    results, reads = {}, domain(run.config)
    for name, source in run.evals.items():
        results[name] = reads.summary(evaluate(run.eval_step, state.result, run.frozen, reads.eval_batches(run.config, source)))
        writer.write(step, {f"{name}/{key}": value for key, value in results[name].items() if key != "count"})
        log.info("step %d  %s %s", step, name, described(results[name], reads.UNIT))
        if not np.isfinite(results[name]["loss"]):
            raise Diverged(
                f"The loss on {name} is {results[name]['loss']} after step {step}; the last good checkpoint, if any, is kept "
                f"in {run.folder / 'checkpoints'}; try a lower --config.optimizer.lr in another --workdir."
            )
    return results


def _result(run: Run, evaluated, progress) -> dict:
    return {
        **{name: one for name, one in evaluated.items()},
        "seed": run.config.seed,
        "tuned_parameters": run.tuned_parameters,
        f"{domain(run.config).UNIT}_per_second": progress.median_rate,
        "seconds_to_first_step": progress.first_step,
        "steps": run.steps,
        "config": run.config.to_dict(),
        **workdir.circumstances(),
    }
