"""The training state and the training step, the same for every stage, method and backbone."""

import functools
from collections.abc import Callable
from typing import TypeAlias, no_type_check

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int32, UInt32

from toast_jax import trees
from toast_jax.devices.parallel import AXIS
from toast_jax.model.layers.arrays import Array, Batch, Keys
from toast_jax.model.layers.batch_norm import without_statistics

Metrics: TypeAlias = dict[str, Float[Array, ""]]


@no_type_check  # maps over trees put other things than arrays in the fields
class State(flax.struct.PyTreeNode):
    """The part of a run that training changes and a checkpoint holds; it excludes frozen parameters.

    Attributes:
      step: the number of updates so far; also the position in the data.
      tuned: the parameters, with None in place of frozen ones.
      opt_state: of optax.
      rng: key data, constant: every step folds its number into it.
      average: the moving average of `tuned`, or None.
    """

    step: Int32[Array, ""]
    tuned: dict
    opt_state: optax.OptState
    rng: UInt32[Array, "2"]
    average: dict | None = None

    @property
    def result(self) -> dict:
        """The tuned parameters to evaluate and save: the moving average if there is one."""
        return self.tuned if self.average is None else self.average

    @property
    def skipped(self) -> Int32[np.ndarray, " 2 *runs"]:
        """How many steps were not finite, and skipped: the last in a row, and all; of each run if several train together."""
        return np.stack([np.asarray(getattr(self.opt_state, name, 0)) for name in ("notfinite_count", "total_notfinite")])


def init_state(tuned: dict, tx: optax.GradientTransformation, seed: int, averaged: bool = False) -> State:
    """Return the state before the first step, with a moving average if `averaged`."""
    # Independent of the keys 0 and 1 into which `steered.init` splits the seed's key.
    rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 2))
    # A copy, as the state is donated and a buffer can be donated only once.
    average = jax.tree.map(jnp.copy, tuned) if averaged else None
    return State(step=jnp.zeros((), jnp.int32), tuned=tuned, opt_state=tx.init(tuned), rng=rng, average=average)


def train_step(
    state: State,
    frozen: dict,
    batch: Batch,
    *,
    scores: Callable,
    tx: optax.GradientTransformation,
    augment: Callable = lambda batch, rng: batch,
    ema: float = 0.0,
    microbatches: int = 1,
) -> tuple[State, Metrics]:
    """Make one update, as seen by one device of the axis `parallel.AXIS`.

    Gradients of the tuned leaves are averaged over devices. The random key of an example depends on its position in the global
    batch, so the step does not depend on the number of devices.

    Args:
      state: replicated.
      frozen: the complement of `state.tuned`.
      batch: this device's share, `image` and `label`, or text (see `losses`).
      scores: `(params, batch, rng) -> scores`, one value per example each; the mean of `loss` is minimised (see `losses`).
      tx: optimizer over the tuned leaves.
      augment: `(batch, rng) -> batch`, the augmentation on the device.
      ema: decay of the moving average, if the state has one.
      microbatches: number of equal parts of the batch, computed in sequence in the memory of one part.

    Returns:
      the new state, and metrics: means of all scores over the global batch, and `grad_norm` of the tuned gradients.
    """
    batch, rng = draw(state, batch, augment)
    return update(state, frozen, batch, rng, scores=scores, tx=tx, ema=ema, microbatches=microbatches)


def draw(state: State, batch: Batch, augment: Callable) -> tuple[Batch, Keys]:
    """Return the augmented batch and its random keys, on one device of the axis `parallel.AXIS`."""
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.rng)), state.step)
    size = len(batch["label"])
    position = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
    rng = jax.vmap(lambda i: jax.random.fold_in(key, i))(position)
    return augment(batch, rng), rng


def update(
    state: State,
    frozen: dict,
    batch: Batch,
    rng: Keys,
    *,
    scores: Callable,
    tx: optax.GradientTransformation,
    ema: float = 0.0,
    microbatches: int = 1,
) -> tuple[State, Metrics]:
    """`train_step` after `draw`: takes the augmented batch and its keys."""

    def objective(tuned, batch, rng):
        means = jax.tree.map(jnp.mean, scores(trees.merge(tuned, frozen), batch, rng))
        return means["loss"], means

    gradient = jax.grad(objective, has_aux=True)
    grads, metrics = jax.lax.pmean(_in_parts(functools.partial(gradient, state.tuned), (batch, rng), microbatches), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.tuned)
    tuned = optax.apply_updates(state.tuned, updates)
    metrics["grad_norm"] = optax.tree.norm(without_statistics(grads))
    average = state.average
    if average is not None:
        average = optax.incremental_update(tuned, average, 1.0 - ema)
    return state.replace(step=state.step + 1, tuned=tuned, opt_state=opt_state, average=average), metrics


def _in_parts(function, args, parts):
    """Average `function(*part)` over equal parts of all arguments, in sequence; only the running sum is kept."""
    if parts == 1:
        return function(*args)
    # Parts take every n-th row, so each is spread over all devices that hold rows of the batch.
    split = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), args)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda a: a[0], split))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, function(*part)), None), start, split)
    return jax.tree.map(lambda leaf: leaf / parts, total)
