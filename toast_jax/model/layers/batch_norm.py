"""Batch normalization over the global batch, that of all devices.

Its running statistics are stored as tuned parameters, so states, checkpoints, moving averages and grids need no case for them.
The optimizer needs one rule: subtract their gradient as it is (see `train.optim`).
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax import trees
from toast_jax.model.layers.arrays import Array

AXIS = "data"  # mapped over the devices that share a batch, see `devices.parallel`
STATISTICS = r"(.*/)?running_(mean|var)"  # paths of running statistics
_MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Normalizes each channel over the batch in training, and by running statistics at evaluation.

    Matches PyTorch's `BatchNorm1d` and `BatchNorm2d`, whose running variance is unbiased. The statistics are
    `running_mean [D]` and `running_var [D]`.

    Attributes:
      epsilon: added to the variance.
      affine: whether to multiply by `scale [D]` and add `bias [D]`, which are tuned.
    """

    epsilon: float = 1e-6
    affine: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*N D"], training: bool) -> Float[Array, "*N D"]:
        """Normalize; training needs the mapped axis `AXIS` and uses the statistics of the global batch."""
        channels, places = x.shape[-1:], tuple(range(x.ndim - 1))
        running = (
            self.param("running_mean", nn.initializers.zeros_init(), channels),
            self.param("running_var", nn.initializers.ones_init(), channels),
        )
        if not training:
            return self._scaled(self._normalized(x, *running))
        mean = jax.lax.pmean(x.mean(axis=places), AXIS)
        var = jax.lax.pmean(jnp.square(x - mean).mean(axis=places), AXIS)
        count = x.size // x.shape[-1] * jax.lax.psum(1, AXIS)
        return self._scaled(_observed(self._normalized(x, mean, var), running, (mean, var * count / max(1, count - 1))))

    def _scaled(self, x):
        if not self.affine:
            return x
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        return x * scale + self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])

    def _normalized(self, x, mean, var):
        return (x - mean) * jax.lax.rsqrt(var + self.epsilon)


@jax.custom_vjp
def _observed(y, running, batch):
    """Return `y`; whatever the loss, the gradient of `running` is the step of its moving average."""
    return y


def _observed_backward(saved, gradient):
    running, batch = saved
    step = jax.tree.map(lambda old, new: _MOMENTUM * (old - new), running, batch)
    return gradient, step, jax.tree.map(jnp.zeros_like, batch)


_observed.defvjp(lambda y, running, batch: (y, (running, batch)), _observed_backward)


def without_statistics(tree: dict) -> dict:
    """Drop running statistics from a nested dict of parameters."""
    return trees.nested({path: leaf for path, leaf in trees.flat(tree).items() if not re.fullmatch(STATISTICS, path)})
