"""Low-rank deltas on frozen kernels (LoRA, Hu et al., arXiv 2106.09685).

Networks multiply by a kernel as `x @ kernel` and do not depend on this file: `attach` replaces the kernel by a `LowRank`.
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
class LowRank:
    """Multiplies like the matrix `kernel + a @ b` without forming it, by two thin products.

    The kernel is the first field because Linen checks the shape of the first leaf alone.
    """

    kernel: Float[Array, "*layers D F"]
    a: Float[Array, "*layers D r"]
    b: Float[Array, "*layers r F"]

    def __rmatmul__(self, x):
        return x @ self.kernel + _widened(x @ self.a, self.b)

    def astype(self, dtype: DTypeLike) -> "LowRank":
        return LowRank(self.kernel.astype(dtype), self.a.astype(dtype), self.b.astype(dtype))

    def merged(self) -> Float[Array, "*layers D F"]:
        return self.kernel + self.a @ self.b


@jax.custom_vjp
def _widened(x: Float[Array, "*rows r"], b: Float[Array, "r F"]) -> Float[Array, "*rows F"]:
    """Compute `x @ b` with a gradient of b that is fast on CPUs.

    The automatic gradient makes XLA transpose the cotangent, its large factor; that took half of a ConvNeXt's step.
    """
    return x @ b


def _widened_backward(saved, gradient):
    x, b = saved
    return gradient @ b.T, jnp.einsum("...r,...f->rf", x, gradient)


_widened.defvjp(lambda x, b: (x @ b, (x, b)), _widened_backward)


@dataclasses.dataclass(frozen=True)
class LowRankDeltas:
    """Adds `alpha / rank * a @ b` to kernels; an `additions.protocol.Addition`.

    Kernels that differ only in the group `shared` of the regex read the same input and share one `a`, as the release has one A
    and three Bs on its joint qkv kernel. Leading axes of a kernel are layers; each layer has its own delta.

    Attributes:
      target: regex of the whole "/"-joined paths of the kernels.
      rank, alpha: from `config.lora`.
    """

    target: str
    rank: int = 4
    alpha: float = 1.0

    group: ClassVar[str] = "lora"

    def configured(self, config) -> "LowRankDeltas":
        return dataclasses.replace(self, rank=config.lora.rank, alpha=config.lora.alpha)

    def init(self, rng: Key[Array, ""], params: dict) -> dict:
        """Create `{path without kernel and shared part}/a` and `{path without kernel}/b` for every kernel of the target.

        `a` is drawn from uniform(+-1 / sqrt(D)), torch's kaiming_uniform_(a=sqrt(5)); `b` starts at zero.
        """
        flat = trees.flat(params)
        deltas: dict[str, jax.Array] = {}
        names = [name for name in flat if re.fullmatch(self.target, name)]
        if not names:
            raise InputError(f"The LoRA target {self.target!r} matches no parameter.")
        for name in names:
            *layers, fan_in, fan_out = flat[name].shape
            a, b = _paths(self.target, name)
            key = jax.random.fold_in(rng, len(deltas))
            bound = fan_in**-0.5
            if a not in deltas:
                deltas[a] = jax.random.uniform(key, (*layers, fan_in, self.rank), jnp.float32, -bound, bound)
            deltas[b] = jnp.zeros((*layers, self.rank, fan_out), jnp.float32)
        return trees.nested(deltas)

    def attach(self, params: dict, own: dict) -> dict:
        """Replace every kernel of the target by `LowRank(kernel, a, alpha / rank * b)`."""
        flat, own = trees.flat(params), trees.flat(own)
        for name in [name for name in flat if re.fullmatch(self.target, name)]:
            a, b = _paths(self.target, name)
            flat[name] = LowRank(flat[name], own[a], self.alpha / self.rank * own[b])
        return trees.nested(flat)

    def merge(self, params: dict, own: dict) -> dict:
        flat = trees.flat(self.attach(params, own))
        return trees.nested({path: leaf.merged() if isinstance(leaf, LowRank) else leaf for path, leaf in flat.items()})


def _paths(target: str, name: str) -> tuple[str, str]:
    """Return the paths of a kernel's factors a and b; kernels that differ in group `shared` share one a."""
    match = re.fullmatch(target, name)
    own = name.removesuffix("/kernel")
    shared = match and match.groupdict().get("shared") is not None
    return name[: match.start("shared")] + "a" if match and shared else f"{own}/a", f"{own}/b"
