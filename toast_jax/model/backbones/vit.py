"""A steerable Vision Transformer (Dosovitskiy et al., arXiv 2010.11929).

It takes two optional inputs, a top-down array per block and prompt tokens, and does not depend on the methods that make them.
Names and numbers follow timm's `VisionTransformer` (LayerNorm eps 1e-6, exact GELU).

Letters in shapes: B batch, N tokens (class token first), D width, H heads, K = D / H, L blocks, P prompt tokens.
"""

import dataclasses
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from toast_jax.data.images.statistics import IMAGENET
from toast_jax.errors import choose
from toast_jax.model.layers import dtypes, patches, stack
from toast_jax.model.layers.arrays import Array, Depth, Images, Keys, Signal, Tokens
from toast_jax.model.layers.attention import attend, attend_with_weights
from toast_jax.model.layers.drop_path import BlockOutput, drop_path
from toast_jax.model.layers.gelu import gelu
from toast_jax.model.layers.linear import Linear
from toast_jax.model.layers.normalize import Statistics, normalize
from toast_jax.model.layers.remat import remat

# Of one block or all, of every example or all.
Prompts: TypeAlias = Float[Array, "_ _ P D"]

LAYER_NORM_EPS = 1e-6
# Kernels of method lora. All three share one A, as in the release, whose qkv kernel is a joint one.
LORA_KERNELS = r"backbone/(blocks|last_\d+)/attn/(?P<shared>[qkv])/kernel"


@dataclasses.dataclass(frozen=True)
class Size:
    width: int
    depth: int
    num_heads: int


SIZES = {
    "Mini": Size(width=64, depth=6, num_heads=4),  # for the demo
    "Ti": Size(width=192, depth=12, num_heads=3),
    "S": Size(width=384, depth=12, num_heads=6),
    "B": Size(width=768, depth=12, num_heads=12),
    "L": Size(width=1024, depth=24, num_heads=16),
    "H": Size(width=1280, depth=32, num_heads=16),
}


def build(config, image_size: int, last_blocks: int, statistics: Statistics = IMAGENET) -> "ViT":
    """Build the ViT of a config's `backbone` section.

    Args:
      config: the section; reads `size`, `patch`, `pool`, `drop_path`, `dtype` and `remat`.
      image_size: side of the images in pixels.
      last_blocks, statistics: see `ViT`.

    Raises:
      InputError: an unknown size, pooling or dtype.
    """
    size = choose("config.backbone.size", config.size, SIZES)
    return ViT(
        **dataclasses.asdict(size),
        patch=config.patch,
        grid=image_size // config.patch,
        last_blocks=last_blocks,
        pool=choose("config.backbone.pool", config.pool, {"cls": "cls", "mean": "mean"}),
        drop_path=config.drop_path,
        dtype=dtypes.named(config.dtype),
        remat=config.remat,
        statistics=statistics,
    )


class Attention(nn.Module):
    """Computes multi-head self-attention with a top-down input to the values."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

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
        project = lambda name: Linear(width, dtype=self.dtype, name=name)  # noqa: E731
        q = self._heads(project("q")(x[:, :num_queries]))
        k = self._heads(project("k")(x))
        v = self._heads(project("v")(x) if td is None else project("v")(x + td, bias_scale=2.0))
        mixed, weights = attend_with_weights(q, k, v) if maps else (attend(q, k, v), None)
        return project("proj")(mixed.reshape(*mixed.shape[:2], width)), weights

    def _heads(self, x):
        return x.reshape(*x.shape[:2], self.num_heads, -1)


class Mlp(nn.Module):
    """Applies two linear layers with an exact GELU between them."""

    ratio: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        hidden = Linear(self.ratio * x.shape[-1], dtype=self.dtype, name="fc1")(x)
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """Applies attention and an MLP, each to normed inputs and added to its input (pre-norm)."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

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
          prompts: of every example or of all; they replace the P tokens after the class token.
          depth: index of the block and its drop-path rate.
          rng: for drop-path; None drops nothing.
          num_queries: how many tokens of the output to compute, from the first; None computes all.
          maps: whether to return the attention weights.

        Returns:
          the output, and `{"input": [B, N, D], "attention": [B, H, M, N] or None}`.
        """
        if prompts is not None:
            prompts = jnp.broadcast_to(prompts, (x.shape[0], *prompts.shape[1:])).astype(x.dtype)
            x = jnp.concatenate([x[:, :1], prompts, x[:, 1 + prompts.shape[1] :]], axis=1)
        index, rate = depth
        keys = (None, None) if rng is None else _branch_keys(rng, index)
        norm = lambda name: nn.LayerNorm(LAYER_NORM_EPS, self.dtype, name=name)  # noqa: E731

        attended, attention = Attention(self.num_heads, self.dtype, name="attn")(norm("norm1")(x), td, num_queries, maps)
        y = x[:, :num_queries] + drop_path(attended, keys[0], rate)
        y = y + drop_path(Mlp(dtype=self.dtype, name="mlp")(norm("norm2")(y)), keys[1], rate)
        return BlockOutput(name="output")(y, depth, rng), {"input": x, "attention": attention}


def _branch_keys(rng, index):
    """Derive keys `[2, B]` from `[B]`: one per example for each of the two branches of block `index`."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index)), out_axes=1)(rng)


class ViT(nn.Module):
    """Encodes images with a Vision Transformer without a classifier.

    The first `depth - last_blocks` blocks are one scanned stack (`blocks`, every parameter with a leading layer axis), so
    compile time does not grow with depth. The last `last_blocks` blocks (`last_0`, ...) stand alone: the final one computes
    only the tokens that the head reads, and partial fine-tuning tunes them without splitting a stacked array.

    Attributes:
      patch: side of a patch in pixels.
      grid: number of patches along a side; images are `[B, grid * patch, grid * patch, 3]`.
      last_blocks: number of blocks after the scanned stack, 1 or more.
      pool: "cls" (the class token) or "mean" (of the patch tokens), after the final LayerNorm.
      drop_path: rate of the last block; rates grow linearly from 0 at the first.
      dtype: compute dtype. Softmax and LayerNorm statistics are always float32.
      remat: whether to save nothing inside a block for the backward pass (see `remat.remat`).
      statistics: mean and standard deviation to normalize pixels with.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 16
    grid: int = 14
    last_blocks: int = 1
    pool: str = "cls"
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    statistics: Statistics = IMAGENET

    def setup(self):
        self.patch_embed = Linear(self.width, dtype=self.dtype)
        init = nn.initializers.normal(0.02)
        self.cls_token = self.param("cls_token", init, (1, 1, self.width))
        self.pos_embed = self.param("pos_embed", init, (1, 1 + self.grid**2, self.width))
        if self.depth > self.last_blocks:
            self.blocks = nn.scan(
                self._block(scanned=True),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth - self.last_blocks,
            )(self.num_heads, self.dtype)
        self.last = [self._block(scanned=False)(self.num_heads, self.dtype) for _ in range(self.last_blocks)]
        self.norm = nn.LayerNorm(LAYER_NORM_EPS, self.dtype)

    @property
    def example(self) -> Float[Array, "1 S S 3"]:
        """An input of the smallest valid shape, to create parameters with."""
        return jnp.zeros((1, self.grid * self.patch, self.grid * self.patch, 3))

    def __call__(
        self,
        images: Images | None,
        td: Signal | None = None,
        prompts: Prompts | None = None,
        rng: Keys | None = None,
        start: Tokens | None = None,
        maps: bool = True,
    ) -> tuple[Float[Array, "B D"], dict[str, Float[Array, "..."] | None]]:
        """Look at images and return every named intermediate.

        Args:
          images: of sides grid * patch, uint8, or floats if already normalized.
          td: the top-down input of every block that is applied.
          prompts: None; `[1, B or 1, P, D]`, inserted after the class token (shallow VPT, arXiv 2203.12119); or
            `[L, B or 1, P, D]`, which also replace the prompts at the input of every later block (deep VPT).
          rng: for drop-path, None at evaluation.
          start: None, or the input of the first block to apply, one of the last `len(td)`; the images are then not read.
          maps: whether to return the attention weights.

        Returns:
          pooled, and a dict, of the applied blocks:
            tokens: `[B, N, D]` after the final LayerNorm; compared with the prior.
            fed_back: the same array.
            hidden: `[L + 1, B, N, D]`, the input of every block and the output of the last.
            attention: `[L, B, H, N, N]`, or None.
        """
        x, seen = self._blocks(images, td, prompts, rng, start, num_queries=None, maps=maps)
        tokens = self.norm(x)
        hidden = jnp.concatenate([seen["input"], x[None]])
        out = {"tokens": tokens, "fed_back": tokens, "hidden": hidden, "attention": seen["attention"]}
        return self._pool(tokens), out

    def pooled(
        self,
        images: Images | None,
        td: Signal | None = None,
        prompts: Prompts | None = None,
        rng: Keys | None = None,
        start: Tokens | None = None,
    ) -> Float[Array, "B D"]:
        """Compute the pooled output of `__call__` alone; the last block computes only pooled tokens."""
        x, _ = self._blocks(images, td, prompts, rng, start, num_queries=1 if self.pool == "cls" else None, maps=False)
        return self._pool(self.norm(x))

    def pooled_from_last(self, tokens: Tokens, td: Tokens | None = None) -> Float[Array, "B D"]:
        """Compute `pooled` from the input of the last block, `hidden[-2]` of a look, and the block's top-down input."""
        depth = (self.depth - 1, self.drop_path)
        x, _ = self.last[-1](tokens, td, None, depth, None, 1 if self.pool == "cls" else None, False)
        return self._pool(self.norm(x))

    def on_grid(self, values: Float[Array, "B N"]) -> Float[Array, "B {self.grid} {self.grid}"]:
        """Map one value per token to the image; only patches count."""
        return values[:, -(self.grid**2) :].reshape(-1, self.grid, self.grid)

    def _block(self, *, scanned):
        return remat(Block, everything=self.remat, scanned=scanned, static_argnums=(6, 7))

    def _pool(self, tokens):
        if self.pool == "cls":
            return tokens[:, 0]
        return tokens[:, -(self.grid**2) :].mean(axis=1)

    def _embed(self, images):
        b, p, g = images.shape[0], self.patch, self.grid
        if images.shape[1:] != (g * p, g * p, 3):
            raise ValueError(f"images are {images.shape[1:]}; this ViT (patch {p}, grid {g}) takes {(g * p, g * p, 3)}")
        x = self.patch_embed(patches.split(normalize(images, self.statistics), p).reshape(b, g * g, -1))
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (b, 1, self.width))
        return jnp.concatenate([cls, x], axis=1) + self.pos_embed.astype(x.dtype)

    def _blocks(self, images, td, prompts, rng, start, num_queries, maps):
        """Run the blocks and return the last output and the stacked intermediates."""
        skipped = 0 if start is None else self.depth - len(td)
        x = self._embed(images) if start is None else start
        rng = rng if self.drop_path else None
        if prompts is not None:
            first = jnp.broadcast_to(prompts[0], (x.shape[0], *prompts.shape[2:])).astype(x.dtype)
            x = jnp.concatenate([x[:, :1], first, x[:, 1:]], axis=1)
            if len(prompts) not in (1, self.depth):
                raise ValueError(f"prompts are for {len(prompts)} blocks; give them for 1 or for all {self.depth}")
            prompts = prompts if len(prompts) == self.depth > 1 else None
        depth = (jnp.arange(self.depth)[skipped:], jnp.linspace(0.0, self.drop_path, self.depth)[skipped:])
        count = self.depth - skipped
        stacked = max(0, count - self.last_blocks)
        seen = []
        if stacked:
            layer = self._block(scanned=True)(self.num_heads, self.dtype, parent=None)
            per_layer = jax.tree.map(lambda a: a[:stacked], (td, prompts, depth))
            x, intermediates = stack.look(self.blocks, layer, skipped, x, per_layer, (rng, None, maps))
            seen.append(intermediates)
        for i, block in enumerate(self.last[stacked - count :], start=stacked):
            per_layer = jax.tree.map(lambda a: a[i], (td, prompts, depth))  # noqa: B023
            x, intermediates = block(x, *per_layer, rng, num_queries if i == count - 1 else None, maps)
            seen.append(jax.tree.map(lambda a: a[None], intermediates))
        if num_queries is not None:
            return x, None
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)
