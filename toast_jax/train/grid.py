"""Train runs that differ only in learning rate and weight decay as one program, sharing data and frozen features."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from toast_jax.devices import parallel
from toast_jax.devices.protocol import Mapped
from toast_jax.train import feature_cache, image_runs
from toast_jax.train.grid_step import grid_eval_step, grid_step, own, with_own
from toast_jax.train.setup import Run, optimizer, prepare, rates, schedule
from toast_jax.train.step import State
from toast_jax.workdir import run_folder
from toast_jax.workdir.metrics import Member

log = logging.getLogger(__name__)


def prepare_grid(
    configs: Sequence[ConfigDict], folders: Sequence[str | Path], folder: str | Path, at_once: int
) -> tuple[Run, State]:
    """Run `prepare` for runs that train together.

    Args:
      configs: equal except for `optimizer.lr` and `optimizer.weight_decay`.
      folders: one for each run, for its metrics and its result.
      folder: for the checkpoints that they share.
      at_once: how many runs to compute side by side, which multiplies their memory; 0 chooses by the device.

    Raises:
      InputError: as `prepare` does.
    """
    run, state = prepare(configs[0], folder)
    unit = configs[0].copy_and_resolve_references()
    unit.optimizer.lr = 1.0
    unit_schedule = schedule(unit, run.steps_per_epoch)

    def tx(lr, weight_decay):
        return optimizer(configs[0], lambda step: lr * unit_schedule(step), run.mask, weight_decay=weight_decay)

    points = tuple(jnp.array([config.optimizer[name] for config in configs]) for name in ("lr", "weight_decay"))
    stacked = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(configs), axis=0), own(state))
    state = with_own(state, stacked)
    parts = {"features": run.features or _no_features, **run.parts, "tx": tx, "points": points}
    step, at_once = _step(parts, run, state, len(configs), at_once, jax.local_devices()[0])
    members = tuple(
        Member(config, run_folder.claim(path, config), rates(config, run.steps_per_epoch))
        for config, path in zip(configs, folders, strict=True)
    )
    log.info("%d runs train together, %d side by side; the metrics below are those of the best run.", len(members), at_once)
    evaluation = functools.partial(grid_eval_step, features=parts["features"], scores=run.parts["scores"], at_once=at_once)
    return dataclasses.replace(
        run,
        members=members,
        step=step,
        eval_step=parallel.replicate(evaluation, num_replicated=2),
    ), state


def _no_features(frozen, batch, rng):
    return {}


def _replicated(parts, at_once):
    return parallel.replicate(functools.partial(grid_step, **parts, at_once=at_once), num_replicated=2, donate=(0,))


def _step(parts, run, state, count, at_once, device) -> tuple[Mapped, int]:
    """Map the step to the devices, with `at_once` points side by side; also return how many these are.

    0 chooses: 1 keeps a CPU busy; on an accelerator, as many as fit in its memory. The first try is all points, which mostly
    fit, so only the program that runs is compiled.
    """
    if at_once or device.platform == "cpu":
        return _replicated(parts, at_once or 1), at_once or 1
    stats = device.memory_stats()
    if not stats:
        log.info("The device does not report its memory, so the runs are computed one after the other; see sweep.at_once.")
        return _replicated(parts, 1), 1
    free = stats["bytes_limit"] - stats["bytes_in_use"] - sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free -= _cached(run, _batch_of(run), free)
    at_once = count
    while True:
        step = _replicated(parts, at_once)
        taken = 0 if at_once == 1 else _temporaries(step, run, state, free)
        fitting = side_by_side(count, -(-taken // at_once), free)
        if fitting >= at_once:
            return step, at_once
        at_once = fitting


def _cached(run, batch, free) -> int:
    """Return how many of the `free` bytes of a device the cached features of all views will take."""
    if "features" not in batch:
        return 0
    of_batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch["features"]))
    size = of_batch // run.config.batch_size * len(run.train) * image_runs.num_views(run.config)
    return size if feature_cache.is_placed(size, free) else 0


def _temporaries(step, run, state, free) -> int:
    """Compile the step for its run, which need not compile it again; return the bytes that it needs beside its arguments."""
    try:
        compiled = step.lower(parallel.placed_shapes(state), run.frozen, _batch_of(run)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return 2 * max(free, 1)  # compilers of some devices refuse a program that does not fit
    return compiled.memory_analysis().temp_size_in_bytes


def _batch_of(run):
    """Return the shapes of a placed training batch, with cached features if the run has them."""
    rows, size = run.config.batch_size // jax.process_count(), run.config.data.image_size
    batch = {"image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8)}
    batch |= {name: jax.ShapeDtypeStruct((rows,), jnp.int32) for name in ("label", "index", "view")}
    batch["mask"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
    if feature_cache.is_cached(run.config, run.features):
        batch["features"] = features = jax.eval_shape(run.features, run.frozen, batch)
        if feature_cache.replaces_images(features):
            del batch["image"]
    return parallel.split_shapes(batch)


def side_by_side(count: int, each: int, free: int) -> int:
    """Choose how many of `count` points, `each` bytes a point, to compute at once in at most 80 % of `free` bytes."""
    most = max(1, min(count, int(0.8 * free) // max(each, 1)))
    return -(-count // -(-count // most))  # in as many rounds, but of even size
