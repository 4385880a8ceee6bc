"""The blocks of a ViT: attention with a top-down input, and an MLP.

Letters in shapes: B batch, M queries, N tokens, D width, H heads, K = D / H, P prompt tokens.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from toast_jax.model.backbones.vit.features import Features
from toast_jax.model.backbones.vit.rotary import Rotary
from toast_jax.model.layers.arrays import Array, Depth, Keys, Tokens
from toast_jax.model.layers.attention import attend, attend_with_weights
from toast_jax.model.layers.drop_path import BlockOutput, drop_path
from toast_jax.model.layers.gelu import gelu
from toast_jax.model.layers.linear import Linear

# Of the MLP, by `Features.mlp`, and whether it multiplies the first layer by a gate.
ACTIVATIONS: dict[str, tuple[Callable, bool]] = {
    "gelu": (gelu, False),
    "gelu_tanh": (functools.partial(nn.gelu, approximate=True), False),
    "swiglu": (nn.silu, True),
}


class Attention(nn.Module):
    """Computes multi-head self-attention with a top-down input to the values.

    Attributes:
      num_heads: H.
      qkv_bias: see `Features`.
      rotary: positions of the patches, which are the last tokens; None for learned positions.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32
    qkv_bias: str = "qkv"
    rotary: Rotary | None = None

    @nn.compact
    def __call__(
        self, x: Tokens, td: Tokens | None = None, num_queries: int | None = None, maps: bool = True
    ) -> tuple[Float[Array, "B M D"], Float32[Array, "B {self.num_heads} M N"] | None]:
        """Attend from the first `num_queries` tokens (None: from all) to all tokens.

        With a top-down input the release computes `W_v x + b_v + W_v td + b_v`, and its weights were trained with the bias
        counted twice. The same in one product is `W_v (x + td) + 2 b_v`.

        Returns:
          output and, if `maps`, attention weights, M being the number of queries.
        """
        width = x.shape[-1]
        biased = ("proj", *self.qkv_bias)
        project = lambda name: Linear(width, name in biased, self.dtype, name=name)  # noqa: E731
        q = self._heads(project("q")(x[:, :num_queries]))
        k = self._heads(project("k")(x))
        if self.rotary is not None:
            special = x.shape[1] - self.rotary.num_patches
            q, k = self.rotary(q, special), self.rotary(k, special)
        v = self._heads(project("v")(x) if td is None else project("v")(x + td, bias_scale=2.0))
        mixed, weights = attend_with_weights(q, k, v) if maps else (attend(q, k, v), None)
        return project("proj")(mixed.reshape(*mixed.shape[:2], width)), weights

    def _heads(self, x):
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class Mlp(nn.Module):
    """Applies two linear layers with an activation between them, or a gate beside the first.

    Attributes:
      kind: key of `ACTIVATIONS`, see `Features.mlp`.
      hidden: channels between the layers; 0 for four times the width.
    """

    kind: str = "gelu"
    hidden: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        activation, gated = ACTIVATIONS[self.kind]
        layer = lambda name: Linear(self.hidden or 4 * x.shape[-1], dtype=self.dtype, name=name)(x)  # noqa: E731
        hidden = activation(layer("gate")) * layer("fc1") if gated else activation(layer("fc1"))
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(hidden)


class Block(nn.Module):
    """Applies attention and an MLP, each to normed inputs and added to its input (pre-norm)."""

    num_heads: int
    dtype: DTypeLike = jnp.float32
    features: Features = Features()
    hidden: int = 0
    rotary: Rotary | None = None

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        td: Tokens | None = None,
        prompts: Float[Array, "_ P D"] | None = None,
        depth: Depth = (0, 0.0),
        rng: Keys | None = None,
        num_queries: int | None = None,
        maps: bool = True,
    ) -> tuple[Float[Array, "B M D"], dict[str, Float[Array, "B ..."] | None]]:
        """Compute the output of the block and its intermediates.

        Args:
          td: top-down input of this block.
          prompts: of every example or of all; they replace the P tokens after the class token, or the first P without one.
          depth: index of the block and its drop-path rate.
          rng: for drop-path; None drops nothing.
          num_queries: how many tokens of the output to compute, from the first; None computes all.
          maps: whether to return the attention weights.

        Returns:
          the output, and `{"input": [B, N, D], "attention": [B, H, M, N] or None}`.
        """
        if prompts is not None:
            prompts = jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape[1:])).astype(x.dtype)
            first = int(self.features.class_token)
            x = jnp.concatenate([x[:, :first], prompts, x[:, first + prompts.shape[1] :]], axis=1)
        index, rate = depth
        keys = (None, None) if rng is None else _branch_keys(rng, index)
        norm = lambda name: nn.LayerNorm(self.features.eps, self.dtype, name=name)  # noqa: E731
        attend = Attention(self.num_heads, self.dtype, self.features.qkv_bias, self.rotary, name="attn")
        mlp = Mlp(self.features.mlp, self.hidden, self.dtype, name="mlp")

        attended, attention = attend(norm("norm1")(x), td, num_queries, maps)
        y = x[:, :num_queries] + drop_path(attended, keys[0], rate)
        y = y + drop_path(mlp(norm("norm2")(y)), keys[1], rate)
        return BlockOutput(name="output")(y, depth, rng), {"input": x, "attention": attention}


def _branch_keys(rng, index):
    """Derive keys `[2, B]` from `[B]`: one per example for each of the two branches of block `index`."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)), out_axes=1)(rng)
