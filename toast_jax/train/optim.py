"""Build optimizers and learning-rate schedules; optax masks out frozen parameters."""

import functools
import operator
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from toast_jax import trees
from toast_jax.errors import InputError, choose
from toast_jax.model.layers.batch_norm import STATISTICS


def warmup_cosine(*, lr: float, epochs: int, warmup_epochs: int, steps_per_epoch: int) -> Callable:
    """Return the release's schedule, constant within an epoch e: `e / warmup`, then half a cosine to zero.

    With a warm-up, the first epoch therefore has a learning rate of zero.

    Returns:
      a function of the step.
    """
    epoch = np.arange(epochs)
    cosine = 0.5 * (1.0 + np.cos(np.pi * (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)))
    rates = lr * np.where(epoch < warmup_epochs, epoch / max(1, warmup_epochs), cosine)
    return lambda step: jnp.asarray(rates, jnp.float32)[step // steps_per_epoch]


def warmup_cosine_by_step(*, lr: float, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> Callable:
    """Return the usual schedule, which changes every step: linear from zero, then half a cosine to zero."""
    warmup, steps = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else lr, lr, warmup, steps)


def poly(*, lr: float, epochs: int, warmup_epochs: int, steps_per_epoch: int) -> Callable:
    """Return mmsegmentation's schedule with power 1: linear to zero, times a linear warm-up from 1e-6; changes every step."""
    warmup, steps = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch

    def rate(step):
        warm = jnp.where(step < warmup, (step + (warmup - step) * 1e-6) / max(1, warmup), 1.0)
        return lr * (steps - step) / steps * warm

    return rate


# By `config.optimizer.schedule`.
SCHEDULES = {"epoch": warmup_cosine, "step": warmup_cosine_by_step, "poly": poly}


def _sgd(schedule, momentum, weight_decay, decayed, stacks):
    return [optax.add_decayed_weights(weight_decay, decayed), optax.sgd(schedule, momentum)]


def _adamw(schedule, momentum, weight_decay, decayed, stacks):
    return [optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)]


def _lars(schedule, momentum, weight_decay, decayed, stacks):
    # Not `optax.lars`, whose momentum sums updates that are scaled by the rate of their own step.
    decay, *steps = _sgd(schedule, momentum, weight_decay, decayed, stacks)
    return [decay, optax.stateless(functools.partial(_trusted, stacks=stacks)), *steps]


def _trusted(updates, params, stacks):
    """Scale the updates of each tensor of 2 or more axes by `_TRUST * |parameter| / |update|`; stacked layers count alone."""

    def scaled(path, update, param):
        is_stacked = re.match(rf"(?:{stacks})(/|$)", "/".join(key.key for key in path)) if stacks else None
        axes = tuple(range(1 if is_stacked else 0, param.ndim))
        if len(axes) < 2:
            return update
        of_param, of_update = (jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (param, update))
        is_zero = (of_param == 0) | (of_update == 0)
        return update * jnp.where(is_zero, 1.0, _TRUST * of_param / jnp.where(is_zero, 1.0, of_update))

    return jax.tree_util.tree_map_with_path(scaled, updates, params)


_TRUST = 0.001  # of LARS, in MAE's linear probing and in Efficient Probing
OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw, "lars": _lars}


def optimizer(
    *,
    name: str,
    schedule: Callable,
    mask: dict,
    momentum: float,
    weight_decay: float | jax.Array,
    no_decay: tuple[str, ...],
    clip: float,
    lr_scale: float = 1.0,
    lr_scaled: tuple[str, ...] = (),
    stacks: str = "",
) -> optax.GradientTransformation:
    """Build the optimizer of the tuned parameters.

    Args:
      name: "sgd" (as PyTorch's: decay is added to the gradient before momentum), "adamw" (decoupled decay) or "lars" (as sgd,
        with the update of each matrix scaled to 0.001 of the matrix's norm before momentum; You et al., arXiv 1708.03888).
      schedule: learning rate as a function of the step.
      mask: tree of booleans over all parameters (`methods.tuned_mask`). Frozen parameters never enter decay, clipping or state;
        if present, their update is exactly zero. Running statistics have a rate of their own, 1, without decay or clipping.
      momentum: of SGD and LARS.
      weight_decay: strength of the decay.
      no_decay: regexes of paths without decay.
      clip: largest global norm of the tuned gradients; 0 disables clipping.
      lr_scale, lr_scaled: factor of the learning rate, for the parameters whose paths match one of these regexes.
      stacks: regex of paths with a leading axis of layers, each of which has a norm of its own in LARS; "" for none.

    Raises:
      InputError: the name is unknown, a regex of `no_decay` matches no parameter, or one of `lr_scaled` no tuned one.
    """
    decayed = jax.tree.map(operator.not_, _matching("no_decay", no_decay, mask, trees.flat(mask)))
    steps = choose("config.optimizer.name", name, OPTIMIZERS)(schedule, momentum, weight_decay, decayed, stacks)
    if clip:
        steps = [optax.clip_by_global_norm(clip), *steps]
    if lr_scaled:  # appended only then, so that other runs keep the structure of their checkpoints
        tuned = [path for path, is_tuned in trees.flat(mask).items() if is_tuned]
        scaled = _matching("lr_scaled", lr_scaled, mask, tuned, "tuned parameter")
        steps = [*steps, optax.masked(optax.scale(lr_scale), scaled)]
    transforms = {"tuned": optax.chain(*steps), "frozen": optax.set_to_zero()}
    labels = {path: "tuned" if tuned else "frozen" for path, tuned in trees.flat(mask).items()}
    if statistics := [path for path, label in labels.items() if label == "tuned" and re.fullmatch(STATISTICS, path)]:
        transforms["statistics"] = optax.sgd(1.0)
        labels |= dict.fromkeys(statistics, "statistics")
    return optax.partition(transforms, trees.nested(labels))


def _matching(field, regexes, mask, paths, kind="parameter") -> dict:
    """Mark the parameters that match a regex of a field of `config.optimizer`; every regex must match one of `paths`."""
    for regex in regexes:
        if not any(re.fullmatch(regex, path) for path in paths):
            raise InputError(f"config.optimizer.{field} has {regex!r}, which matches no {kind}; correct or remove it.")
    return trees.nested({path: any(re.fullmatch(regex, path) for regex in regexes) for path in trees.flat(mask)})
