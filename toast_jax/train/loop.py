"""The training loop: from a config to checkpoints, metrics and a result, for tuning and pre-tuning."""

import contextlib
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from toast_jax import trees
from toast_jax.devices import parallel, precision, programs
from toast_jax.errors import Diverged, Interrupted
from toast_jax.train import checkpoint, feature_cache
from toast_jax.train.grid import prepare_grid
from toast_jax.train.setup import Run, domain, prepare, reseed
from toast_jax.train.step import State
from toast_jax.weights import module_file, places
from toast_jax.workdir import fingerprint, interrupt, profile, run_folder
from toast_jax.workdir.metrics import Record
from toast_jax.workdir.progress import Progress

log = logging.getLogger(__name__)


def fit(config: ConfigDict, folder: str | Path) -> dict:
    """Train the network of a config and return its result, which is also saved as `result.json`.

    A killed run resumes from its last checkpoint, bit for bit; a finished run only returns its result.

    Raises:
      InputError: `prepare` fails before the first step.
      Diverged: a loss is not finite.
      Interrupted: the process was asked to stop; the last step is saved.
    """
    return fit_seeds(config, {config.seed: folder})[0]


def fit_seeds(config: ConfigDict, folders: Mapping[int, str | Path]) -> list[dict]:
    """Run `fit` for several seeds, each in its folder; they share data and compiled steps."""
    run, results = None, []
    for seed, folder in folders.items():
        started = time.perf_counter()
        config = config.copy_and_resolve_references()
        config.seed = seed
        config = places.pin(config, folder)
        with run_folder.used_alone(folder), precision.of_products(config):
            if result := run_folder.finished(folder, config):
                log.info("This run is finished already; its result is in %s.", Path(folder) / "result.json")
            else:
                several = len(folders) > 1
                run, state = reseed(run, seed, folder) if run else prepare(config, folder, several_seeds=several)
                (result,) = _finish(run, state, started)
        if isinstance(result, Diverged):
            raise result
        results.append(result)
    return results


def fit_grid(
    configs: Sequence[ConfigDict], folders: Sequence[str | Path], folder: str | Path, at_once: int = 0
) -> list[dict | Diverged]:
    """Run `fit` for configs that differ only in learning rate and weight decay, as one program.

    Args:
      configs, folders: of the runs.
      folder: for their shared checkpoints.
      at_once: how many runs to compute side by side, see `grid.prepare_grid`.

    Returns:
      for each run its result, or how it diverged, which does not stop the others.

    Raises:
      InputError, Interrupted: as `fit`.
    """
    started = time.perf_counter()
    configs = [places.pin(config, folder) for config in configs]
    with run_folder.used_alone(folder), precision.of_products(configs[0]):
        return _finish(*prepare_grid(configs, folders, folder, at_once), started)


def _finish(run: Run, state: State, started: float) -> list[dict | Diverged]:
    """Train from the folder's last checkpoint, or from `state`, to the end."""
    with checkpoint.manager(run.folder, create=True) as checkpoints:
        meta = {"config": run.config.to_dict(), "classes": run.train.classes}
        meta |= {"data": fingerprint.of_source(run.train), "frozen": fingerprint.of_frozen(run.frozen)}
        meta["start"] = fingerprint.of_start(state.tuned)
        restored = checkpoint.restore(checkpoints, state)
        if restored is not None:
            saved = checkpoint.read_meta(checkpoints)
            root, former_root = (config["data"].get("root", "") for config in (meta["config"], saved["config"]))
            fingerprint.check_source(run.train, saved["data"], run.folder, root, former_root)
            fingerprint.check_frozen(meta["frozen"], saved["frozen"], run.folder, run.config.backbone.weights)
            fingerprint.check_start(meta["start"], saved, run.folder, run.config)
            state = restored
            log.info("Resuming from step %d of %d, found in %s.", state.step, run.steps, checkpoints.directory)
        # The content of the places that they name is checked now. A grid has a folder of its own.
        for folder, config in {run.folder: run.config, **{member.folder: member.config for member in run.members}}.items():
            run_folder.write_json(folder / "config.json", config.to_dict())
            for name, record in domain(config).records(config, run.train, run.evals).items():
                run_folder.write_json(folder / name, record)
        with Record(run.members, int(state.step), run.steps_per_epoch, domain(run.config)) as record:
            results = _train(run, state, checkpoints, meta, record, started)
    for member, result in zip(run.members, results, strict=True):
        if not isinstance(result, Diverged):
            run_folder.write_json(member.folder / "result.json", result)
    return results


def _train(run: Run, state: State, checkpoints, meta: dict, record: Record, started: float) -> list[dict | Diverged]:
    """Run steps, evaluations and checkpoints until the last epoch, or until every member has diverged."""
    config, start = run.config, int(state.step)
    state, reads, evaluated = run.devices.place(state), domain(config), {}
    window: list = []  # number, metrics and examples of each step since the last log line
    count = reads.examples(config) * len(run.members)

    def report(window):
        fetched = jax.device_get(window)  # waits for the last of these steps
        progress.tick(len(fetched))
        progress.report(*record.steps(fetched))
        checkpoint.check_written(checkpoints)

    with (
        Progress(count, reads.UNIT, start, run.steps, started) as progress,
        profile.traced(run.folder, config.get("profile", 0)) as dispatched,
        interrupt.asked() as interrupted,
        contextlib.closing(_train_batches(run, start)) as batches,
    ):
        step, ready = start, next(batches, None)
        if ready is not None:
            programs.compile_ahead(run.step, state, run.frozen, ready[0])
        while ready is not None:
            step, (batch, examples) = step + 1, ready
            state, metrics = run.step(state, run.frozen, batch)
            # The step returns before it is computed: the next batch is made and copied while the device works.
            ready = next(batches, None)
            dispatched(metrics)
            # A window is fetched one step late, so the device has work while the host waits and writes.
            if window and _ends_window(run, step - 1, start):
                report(window)
                window = []
            window.append((step, metrics, examples))
            stop, last = interrupted(), step == run.steps
            evaluates = last or step % (config.eval_every * run.unit) == 0
            saves = stop or last or step % (config.checkpoint_every * run.unit) == 0
            if evaluates or saves:  # before the next step overwrites the state
                report(window)
                window = []
            if evaluates and not record.all_diverged:
                evaluated = _evaluate(run, state, record, step)
                programs.free_memory()  # of the compiler, after the first evaluation
            if record.all_diverged:
                return [record.diverged[i] for i in range(len(run.members))]
            if saves:
                checkpoint.save(checkpoints, parallel.fetch(state), meta)
            if stop and step < run.steps:
                raise Interrupted(f"Stopped after step {step} of {run.steps}, which is saved in {run.folder}.")
            if evaluates or saves:
                progress.resume()
    evaluated = evaluated or _evaluate(run, state, record, run.steps)
    if config.stage == "pretune":
        module_file.save_all(run.folder, trees.merge(state.result, run.frozen), run.mask, config)
    return [
        record.diverged.get(i) or _result(run, member.config, {name: scores[i] for name, scores in evaluated.items()}, progress)
        for i, member in enumerate(run.members)
    ]


def _ends_window(run: Run, step: int, start: int) -> bool:
    """Return whether a step is the last one before a log line."""
    return step == start + 1 or step % run.config.log_every == 0 or step % run.steps_per_epoch == 0


def _train_batches(run: Run, start: int) -> Generator[tuple[dict, np.ndarray]]:
    """Yield this host's share of every batch from step `start` on, on its devices, and which examples are in it.

    Frozen features come with the batch if they are cached.
    """
    config, cache = run.config, None
    if start < run.steps and run.features and feature_cache.is_cached(config, run.features):
        cache = feature_cache.build(config, run.features, run.frozen, run.train, run.folder)
    labels = {"labels": cache.labels} if cache and cache.replaces_images else {}
    shard = cache.sharded if cache else run.devices.shard
    with contextlib.closing(domain(config).train_batches(config, run.train, start, **labels)) as loader:
        for batch in loader:
            yield shard(batch), batch["index"]


def _evaluate(run: Run, state: State, record: Record, step: int) -> dict[str, list[dict[str, float]]]:
    """Evaluate every member on every evaluation split; after the last step, also write which test images are correct."""
    reads, results = domain(run.config), {}
    for name, source in run.evals.items():
        evaluation = reads.evaluate(run.config, source, run.eval_step, state.result, run.frozen, run.devices)
        means, correct, predictions = evaluation
        results[name] = record.evaluation(name, step, means)
        if correct is not None and name == "test" and step == run.steps:
            if predictions:
                run_folder.write_predictions(run.folder, **predictions)
            for member, row in zip(run.members, np.broadcast_to(correct, (len(run.members), correct.shape[-1])), strict=True):
                run_folder.write_correct(member.folder, row)
    return results


def _result(run: Run, config: ConfigDict, evaluated: dict, progress: Progress) -> dict:
    together = {"trained_together": len(run.members)} if len(run.members) > 1 else {}
    return {
        **evaluated,
        "seed": config.seed,
        "tuned_parameters": run.tuned_parameters,
        f"{domain(config).UNIT}_per_second": progress.median_rate,  # of all members together
        **together,
        "seconds_to_first_step": progress.first_step,
        "steps": run.steps,
        "config": config.to_dict(),
        **places.provenance(config),
        **run_folder.circumstances(),
    }
