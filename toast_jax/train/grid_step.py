"""The train and evaluation step of a grid: all points of learning rate and weight decay in one program."""

import functools
from collections.abc import Callable

import jax
import optax

from toast_jax.train.evaluation import eval_step
from toast_jax.train.step import State, draw, update


def grid_step(
    state: State,
    frozen: dict,
    batch: dict,
    *,
    points: tuple[jax.Array, jax.Array],
    features: Callable,
    scores: Callable,
    tx: Callable[..., optax.GradientTransformation],
    augment: Callable,
    ema: float,
    at_once: int,
):
    """Make one `step.train_step` of every point with one batch; frozen features are computed once.

    Args:
      state: its `tuned`, `opt_state` and `average` have the points as a leading axis.
      points: learning rates and weight decays, each `[points]`; `tx` makes an optimizer from a rate and a decay.
      features: `(frozen, batch, rng) -> dict`, see `feature_cache.features_of`; not called if the batch has `features`.
      at_once: how many points are computed side by side.

    Returns:
      the new state, and the metrics of `train_step`, each `[points]`.
    """
    batch, rng = draw(state, batch, augment)
    if "features" not in batch:
        batch = {**batch, "features": features(frozen, batch, rng)}

    def step_of_point(args):
        state_of_point, point = args
        new, metrics = update(with_own(state, state_of_point), frozen, batch, rng, scores=scores, tx=tx(*point), ema=ema)
        return own(new), metrics

    states, metrics = jax.lax.map(step_of_point, (own(state), points), batch_size=at_once)
    return with_own(state, states).replace(step=state.step + 1), metrics


def grid_eval_step(tuned: dict, frozen: dict, batch: dict, *, features: Callable, scores: Callable, at_once: int) -> dict:
    """Run `evaluation.eval_step` for every point: sums `[points]`."""
    batch = {**batch, "features": features(frozen, batch, None)}
    step_of_point = functools.partial(eval_step, frozen=frozen, batch=batch, scores=scores)
    return jax.lax.map(step_of_point, tuned, batch_size=at_once)


def own(state: State) -> tuple:
    """Return the part of a state that differs between points."""
    return state.tuned, state.opt_state, state.average


def with_own(state: State, parts: tuple) -> State:
    """Put the parts that `own` returns into a state."""
    tuned, opt_state, average = parts
    return state.replace(tuned=tuned, opt_state=opt_state, average=average)
