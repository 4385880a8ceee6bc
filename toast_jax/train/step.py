"""The state and the step: one of each, for every stage, method and backbone."""

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from toast_jax import trees
from toast_jax.devices.parallel import AXIS


@flax.struct.dataclass
class State:
    """What training changes and a checkpoint holds; frozen parameters travel beside it.

    Attributes:
      step: how many updates were made, int32. It is also the position in the data.
      tuned: the parameters with None where they are frozen.
      opt_state: of optax.
      rng: key data `[2]`, never changed: every step folds its number in.
      average: the moving average of `tuned`, or None where none is kept.
    """

    step: jax.Array
    tuned: dict
    opt_state: optax.OptState
    rng: jax.Array
    average: dict | None = None

    @property
    def result(self) -> dict:
        """The tuned parameters that are evaluated and handed on: the moving average if there is one."""
        return self.tuned if self.average is None else self.average


def init_state(tuned: dict, tx: optax.GradientTransformation, seed: int, averaged: bool = False) -> State:
    """The state before the first step; `averaged` says whether a moving average is kept."""
    # Apart from the two keys that `steered.init` splits the seed's into, which are those of 0 and 1.
    rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 2))
    # A copy: the state is donated, and no buffer can be given away twice.
    average = jax.tree.map(jnp.copy, tuned) if averaged else None
    return State(step=jnp.zeros((), jnp.int32), tuned=tuned, opt_state=tx.init(tuned), rng=rng, average=average)


def train_step(
    state: State,
    frozen: dict,
    batch: dict,
    *,
    scores: Callable,
    tx: optax.GradientTransformation,
    augment: Callable = lambda batch, rng: batch,
    ema: float = 0.0,
    microbatches: int = 1,
):
    """One update, as seen by one device of the axis `parallel.AXIS`.

    Gradients are taken with respect to the tuned leaves alone, and averaged over devices. Random numbers are drawn per example
    from its place in the global batch, so the step does not depend on how many devices share the batch.

    Args:
      state: the same on every device.
      frozen: the complement of `state.tuned`.
      batch: this device's share, `image [b, S, S, 3]` and `label [b]`, or text (see `losses`).
      scores: `(params, batch, rng [b]) -> dict of [b]`; the mean of its `loss` is minimised (see `losses`).
      tx: optimizer over the tuned leaves.
      augment: `(batch, rng [b]) -> batch`, what training does to a batch on the device.
      ema: decay of the moving average, if the state has one.
      microbatches: how many parts the batch is computed in, one after the other, in the memory of one.

    Returns:
      the new state, and metrics: the means of all scores over the global batch, and `grad_norm` (of the tuned gradients).
    """
    batch, rng = draw(state, batch, augment)
    return update(state, frozen, batch, rng, scores=scores, tx=tx, ema=ema, microbatches=microbatches)


def draw(state: State, batch: dict, augment: Callable) -> tuple[dict, jax.Array]:
    """The batch as this step augments it, and its random keys `[b]`, on one device of the axis `parallel.AXIS`."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    size = len(batch["label"])
    place = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
    rng = jax.vmap(lambda i: jax.random.fold_in(key, i))(place)
    return augment(batch, rng), rng


def update(
    state: State,
    frozen: dict,
    batch: dict,
    rng: jax.Array,
    *,
    scores: Callable,
    tx: optax.GradientTransformation,
    ema: float = 0.0,
    microbatches: int = 1,
):
    """`train_step` with a batch and keys that are drawn already."""

    def objective(tuned, batch, rng):
        means = jax.tree.map(jnp.mean, scores(trees.merge(tuned, frozen), batch, rng))
        return means["loss"], means

    gradient = jax.grad(objective, has_aux=True)
    grads, metrics = jax.lax.pmean(_in_parts(functools.partial(gradient, state.tuned), (batch, rng), microbatches), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.tuned)
    tuned = optax.apply_updates(state.tuned, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    average = state.average
    if average is not None:
        average = optax.incremental_update(tuned, average, 1.0 - ema)
    return state.replace(step=state.step + 1, tuned=tuned, opt_state=opt_state, average=average), metrics


def _in_parts(function, args, parts):
    """The mean of `function(*part)` over equal parts of all arguments, without keeping more than one of its results."""
    if parts == 1:
        return function(*args)
    # Every part has rows from everywhere, as the rows of a batch may lie on several devices.
    split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), args)
    like = jax.eval_shape(function, *jax.tree.map(lambda a: a[0], split))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None), start, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)
