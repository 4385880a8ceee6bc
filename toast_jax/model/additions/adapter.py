"""A bottleneck after every block (Adapter+, Steitz and Roth, arXiv 2406.06820)."""

import dataclasses
import re
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model.layers.arrays import Array
from toast_jax.model.layers.gelu import gelu


@no_type_check  # maps over trees put other things than arrays in the fields
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Bottleneck:
    """Computes `scaling * (gelu(x @ down + down_bias) @ up + up_bias)`, with one scale per channel."""

    down: Float[Array, "*layers D r"]
    down_bias: Float[Array, "*layers r"]
    up: Float[Array, "*layers r D"]
    up_bias: Float[Array, "*layers D"]
    scaling: Float[Array, "*layers D"]

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        own = jax.tree.map(lambda leaf: leaf.astype(x.dtype), self)
        return own.scaling * (gelu(x @ own.down + own.down_bias) @ own.up + own.up_bias)


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adds a `Bottleneck` to the output of every block; an `additions.protocol.Addition`.

    Attributes:
      target: regex of one parameter per block whose last axis is the block's width; group `block` is the block's path.
      rank: r, from `config.adapter`.
    """

    target: str
    rank: int = 8

    group: ClassVar[str] = "adapter"

    def configured(self, config) -> "Adapters":
        return dataclasses.replace(self, rank=config.adapter.rank)

    def init(self, rng: Key[Array, ""], params: dict) -> dict:
        """Create the fields of a `Bottleneck` per block: matrices from N(0, 0.01) truncated at 2 sigma, biases 0, scaling 1."""
        flat = trees.flat(params)
        own: dict[str, jax.Array] = {}
        matches = [match for name in flat if (match := re.fullmatch(self.target, name))]
        if not matches:
            raise InputError(f"The adapter target {self.target!r} matches no parameter.")
        for match in matches:
            *layers, width = flat[match.string].shape
            keys = jax.random.split(jax.random.fold_in(rng, len(own)))
            shapes = {"down": (*layers, width, self.rank), "up": (*layers, self.rank, width)}
            for key, (name, shape) in zip(keys, shapes.items(), strict=True):
                drawn = 0.01 * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
                own |= {f"{match['block']}/{name}": drawn, f"{match['block']}/{name}_bias": jnp.zeros((*layers, shape[-1]))}
            own[f"{match['block']}/scaling"] = jnp.ones((*layers, width))
        return trees.nested(own)

    def attach(self, params: dict, own: dict) -> dict:
        """Put a `Bottleneck` where each block's `layers.drop_path.BlockOutput` reads it."""
        flat, own = trees.flat(params), trees.flat(own)
        for block in {path.rpartition("/")[0] for path in own}:
            fields = {field.name: own[f"{block}/{field.name}"] for field in dataclasses.fields(Bottleneck)}
            flat[f"{block}/output/branch"] = Bottleneck(**fields)
        return trees.nested(flat)

    def merge(self, params: dict, own: dict) -> None:
        return None
