"""Runs that differ in learning rate and weight decay alone, as one program: they share data, backbone and the first look."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from toast_jax.devices import parallel
from toast_jax.train.evaluation import eval_step
from toast_jax.train.setup import Run, optimizer, prepare, rates, schedule
from toast_jax.train.step import State, draw, update
from toast_jax.workdir import run_folder
from toast_jax.workdir.metrics import Member

log = logging.getLogger(__name__)


def prepare_grid(
    configs: Sequence[ConfigDict], folders: Sequence[str | Path], folder: str | Path, at_once: int
) -> tuple[Run, State]:
    """`prepare` for runs that train together.

    Args:
      configs: alike but for `optimizer.lr` and `optimizer.weight_decay`.
      folders: of the runs, each for its own numbers and result.
      folder: for what they share, the checkpoints.
      at_once: how many are computed side by side, which takes their memory so many times; 0 chooses.

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
    held = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(configs), axis=0), _held(state))
    state = _with(state, held)
    steps = {"known": run.known or _nothing, **run.parts, "tx": tx, "points": points}
    at_once = at_once or _fitting(steps, run, state, len(configs), jax.local_devices()[0])
    members = tuple(
        Member(config, run_folder.claim(path, config), rates(config, run.steps_per_epoch))
        for config, path in zip(configs, folders, strict=True)
    )
    log.info("%d runs train together, %d side by side; the numbers below are those of the best.", len(members), at_once)
    evaluation = functools.partial(grid_eval_step, known=steps["known"], scores=run.parts["scores"], at_once=at_once)
    return dataclasses.replace(
        run,
        members=members,
        step=_replicated(steps, at_once),
        eval_step=parallel.replicate(evaluation, num_replicated=2),
    ), state


def grid_step(
    state: State,
    frozen: dict,
    batch: dict,
    *,
    points: tuple[jax.Array, jax.Array],
    known: Callable,
    scores: Callable,
    tx: Callable[..., optax.GradientTransformation],
    augment: Callable,
    ema: float,
    at_once: int,
):
    """One `step.train_step` of every point with one batch; what is known of the frozen backbone is computed once.

    Args:
      state: its `tuned`, `opt_state` and `average` have a leading axis, the points.
      points: learning rates and weight decays `[points]`; `tx` makes an optimizer of one of each.
      known: `(frozen, batch, rng) -> dict`, see `feature_cache.known_of`; not called where the batch brings it.
      at_once: how many points are computed side by side; all others wait.

    Returns:
      the new state, and the metrics of `train_step`, each `[points]`.
    """
    batch, rng = draw(state, batch, augment)
    batch = {"known": known(frozen, batch, rng) if "known" not in batch else None, **batch}

    def one(member):
        held, point = member
        new, metrics = update(_with(state, held), frozen, batch, rng, scores=scores, tx=tx(*point), ema=ema)
        return _held(new), metrics

    held, metrics = jax.lax.map(one, (_held(state), points), batch_size=at_once)
    return _with(state, held).replace(step=state.step + 1), metrics


def grid_eval_step(tuned: dict, frozen: dict, batch: dict, *, known: Callable, scores: Callable, at_once: int) -> dict:
    """`evaluation.eval_step` of every point: sums `[points]`."""
    batch = {**batch, "known": known(frozen, batch, None)}
    one = functools.partial(eval_step, frozen=frozen, batch=batch, scores=scores)
    return jax.lax.map(one, tuned, batch_size=at_once)


def _held(state):
    """The part of a state that is a point's own."""
    return state.tuned, state.opt_state, state.average


def _with(state, held):
    return state.replace(tuned=held[0], opt_state=held[1], average=held[2])


def _nothing(frozen, batch, rng):
    return {}


def _replicated(steps, at_once):
    return parallel.replicate(functools.partial(grid_step, **steps, at_once=at_once), num_replicated=2, donate=(0,))


def _fitting(steps, run, state, count, device) -> int:
    """How many points to compute side by side: one keeps a CPU busy; on an accelerator, as many as its memory takes."""
    if device.platform == "cpu":
        return 1
    config, rows = run.config, run.config.batch_size // jax.device_count()
    size = config.data.image_size
    shapes = {"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32), "mask": ((), jnp.float32)}
    batch = {
        name: jax.ShapeDtypeStruct((jax.local_device_count(), rows, *shape), dtype) for name, (shape, dtype) in shapes.items()
    }
    compiled = _replicated(steps, at_once=1).lower(state, run.frozen, batch).compile()
    stats = device.memory_stats()
    free = stats["bytes_limit"] - stats["bytes_in_use"] - sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return side_by_side(count, compiled.memory_analysis().temp_size_in_bytes, free)


def side_by_side(count: int, each: int, free: int) -> int:
    """The largest even share of `count` of which each takes `each` of `free` bytes, of which a fifth is left; at least 1."""
    most = max(1, min(count, int(0.8 * free) // each))
    return -(-count // -(-count // most))
