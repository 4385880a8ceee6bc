"""The state and the step: one of each, for every stage, method and backbone."""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import optax

from toast_jax import trees
from toast_jax.parallel import AXIS


@flax.struct.dataclass
class State:
    """What training changes and a checkpoint holds; frozen parameters travel beside it.

    Attributes:
      step: how many updates were made, int32. It is also the position in the data.
      tuned: the parameters with None where they are frozen.
      opt_state: of optax.
      rng: key data `[2]`, never changed: every step folds its number in.
    """

    step: jax.Array
    tuned: dict
    opt_state: optax.OptState
    rng: jax.Array


def init_state(tuned: dict, tx: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step."""
    # Apart from the key that created the parameters.
    rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    return State(step=jnp.zeros((), jnp.int32), tuned=tuned, opt_state=tx.init(tuned), rng=rng)


def train_step(state: State, frozen: dict, batch: dict, *, loss: Callable, tx: optax.GradientTransformation):
    """One update, as seen by one device of the axis `parallel.AXIS`.

    Gradients are taken with respect to the tuned leaves alone, and averaged over devices. Random numbers are drawn per example
    from its place in the global batch, so the step does not depend on how many devices share the batch.

    Args:
      state: the same on every device.
      frozen: the complement of `state.tuned`.
      batch: this device's share, `image [b, S, S, 3]` and `label [b]`.
      loss: `(params, batch, rng [b]) -> (scalar, dict of scalars)`, means over the batch.
      tx: optimizer over the tuned leaves.

    Returns:
      the new state, and metrics averaged over devices: those of `loss`, `loss` and `grad_norm` (of the tuned gradients).
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    size = len(batch["label"])
    place = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
    rng = jax.vmap(lambda i: jax.random.fold_in(key, i))(place)

    objective = lambda tuned: loss(trees.merge(tuned, frozen), batch, rng)  # noqa: E731
    (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(state.tuned)
    grads, metrics = jax.lax.pmean((grads, {**metrics, "loss": value}), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.tuned)
    tuned = optax.apply_updates(state.tuned, updates)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return state.replace(step=state.step + 1, tuned=tuned, opt_state=opt_state), metrics
