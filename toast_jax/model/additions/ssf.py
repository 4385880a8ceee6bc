"""Scale and shift after every operation (SSF, Lian et al., arXiv 2210.08823).

`scale * (x @ kernel + bias) + shift` is the same operation with the kernel `scale * kernel` and the bias
`scale * bias + shift`; norms likewise. Networks therefore do not depend on this file.
"""

import dataclasses
import re
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Key

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model.layers.arrays import Array


@no_type_check  # maps over trees put other things than arrays in the fields
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ScaledKernel:
    """Multiplies like the matrix `kernel * scale` without forming it, so that no step computes the gradient of a kernel.

    The kernel is the first field because Linen checks the shape of the first leaf alone.
    """

    kernel: Float[Array, "*layers D F"]
    scale: Float[Array, "*layers F"]

    __array_ufunc__ = None  # NumPy arrays, such as images, then use the method below

    def __rmatmul__(self, x):
        product = x @ self.kernel
        return (product * self.scale).astype(product.dtype)

    def astype(self, dtype: DTypeLike) -> "ScaledKernel":
        """Cast only the kernel; scales stay near 1, and most would round to the same bfloat16."""
        return dataclasses.replace(self, kernel=self.kernel.astype(dtype))


@dataclasses.dataclass(frozen=True)
class ScaleAndShift:
    """Scales and shifts the outputs of operations, channel by channel; an `additions.protocol.Addition`.

    An operation without a bias, such as the keys of some networks, has only a scale.

    Attributes:
      target: regex of the operations' parameters: kernels of linear layers and convolutions, scales of norms.
    """

    target: str

    group: ClassVar[str] = "ssf"

    def configured(self, config) -> "ScaleAndShift":
        return self

    def init(self, rng: Key[Array, ""], params: dict) -> dict:
        """Create `{operation}/scale`, drawn from N(1, 0.02), and `{operation}/shift`, from N(0, 0.02), each `[*layers, F]`."""
        flat = trees.flat(params)
        own: dict[str, jax.Array] = {}
        names = [name for name in flat if re.fullmatch(self.target, name)]
        if not names:
            raise InputError(f"The SSF target {self.target!r} matches no parameter.")
        for name in names:
            operation, bias = _operation(name)
            shape = flat[name].shape
            if bias in flat:
                shape = flat[bias].shape
            elif name.endswith("/kernel"):
                shape = (*shape[:-2], shape[-1])
            for kind, mean in (("scale", 1.0), ("shift", 0.0)):
                if kind == "scale" or bias in flat:
                    key = jax.random.fold_in(rng, len(own))
                    own[f"{operation}/{kind}"] = mean + 0.02 * jax.random.normal(key, shape, jnp.float32)
        return trees.nested(own)

    def attach(self, params: dict, own: dict) -> dict:
        """Scale norms, biases and convolutions directly; replace each matrix by a `ScaledKernel`."""
        return self._scaled(params, own, ScaledKernel)

    def merge(self, params: dict, own: dict) -> dict:
        return self._scaled(params, own, lambda kernel, scale: kernel * scale[..., None, :])

    def _scaled(self, params, own, matrix):
        flat, own = trees.flat(params), trees.flat(own)
        for name in [name for name in flat if re.fullmatch(self.target, name)]:
            operation, bias = _operation(name)
            scale, axes = own[f"{operation}/scale"], flat[name].ndim - own[f"{operation}/scale"].ndim
            if axes == 1:
                flat[name] = matrix(flat[name], scale)
            else:  # a norm, or a convolution, whose kernel has three more axes
                flat[name] = flat[name] * scale.reshape(*scale.shape[:-1], *[1] * axes, scale.shape[-1])
            if bias in flat:
                flat[bias] = scale * flat[bias] + own[f"{operation}/shift"]
        return trees.nested(flat)


def _operation(name: str) -> tuple[str, str]:
    """Return the paths of the operation that a kernel or scale belongs to, and of its bias."""
    operation = name.rpartition("/")[0]
    return operation, f"{operation}/bias"
