"""A steerable Vision Transformer (Dosovitskiy et al., arXiv 2010.11929).

It takes two optional inputs, a top-down array per block and prompt tokens, and is independent of the methods that use it.
Published kinds of ViT differ in `Features`, whose defaults match timm's `VisionTransformer`.

Letters in shapes: B batch, N tokens (class token, prompts, registers, patches, where present), D width, H heads,
K = D / H, L blocks, P prompt tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from toast_jax.data.images.statistics import IMAGENET
from toast_jax.errors import choose
from toast_jax.model.backbones.normalize import Statistics, normalize
from toast_jax.model.backbones.vit.attention_pool import AttentionPool
from toast_jax.model.backbones.vit.blocks import Block
from toast_jax.model.backbones.vit.features import POOLS, SIZES, Features, Size
from toast_jax.model.backbones.vit.rotary import Rotary
from toast_jax.model.layers import dtypes, patches, stack
from toast_jax.model.layers.arrays import Array, Images, Keys, Maps, Signal, Tokens
from toast_jax.model.layers.linear import Linear
from toast_jax.model.layers.remat import remat

# Of one block or all, of every example or all.
Prompts: TypeAlias = Float[Array, "_ _ P D"]

# Kernels of method lora. All three share one A, as in the release, whose qkv kernel is a joint one.
LORA_KERNELS = r"backbone/(blocks|last_\d+)/attn/(?P<shared>[qkv])/kernel"


def build(config, image_size: int, last_blocks: int, statistics: Statistics = IMAGENET) -> "ViT":
    """Build the ViT of a config's `backbone` section.

    Args:
      config: the section; reads `drop_path`, `dtype`, `remat`, `unroll` and the fields of `features.FIELDS`.
      image_size: side of the images in pixels.
      last_blocks, statistics: see `ViT`.

    Raises:
      InputError: an unknown size, pooling or dtype.
    """
    features = {field.name: config[field.name] for field in dataclasses.fields(Features)}
    return ViT(
        **dataclasses.asdict(size_of(config)),
        patch=config.patch,
        grid=image_size // config.patch,
        last_blocks=last_blocks,
        pool=choose("config.backbone.pool", config.pool, {name: name for name in POOLS}),
        features=Features(**features),
        drop_path=config.drop_path,
        dtype=dtypes.named(config.dtype),
        remat=config.remat,
        unroll=config.unroll,
        statistics=statistics,
    )


def size_of(config) -> Size:
    """Return the size that a config's `backbone` section names, with the numbers that it sets itself.

    Raises:
      InputError: an unknown size.
    """
    size = choose("config.backbone.size", config.size, SIZES)
    names = (field.name for field in dataclasses.fields(Size))
    return dataclasses.replace(size, **{name: config[name] for name in names if config.get(name)})


class ViT(nn.Module):
    """Encodes images with a Vision Transformer without a classifier.

    The first `depth - last_blocks` blocks are one scanned stack (`blocks`, every parameter with a leading layer axis), so
    compile time does not grow with depth. The last `last_blocks` blocks (`last_0`, ...) stand alone: the final one computes
    only the tokens that the head reads, and partial fine-tuning tunes them without splitting a stacked array.

    Attributes:
      patch: side of a patch in pixels.
      grid: number of patches along a side, or of rows and columns. Images are `[B, rows * patch, columns * patch, 3]`; pixels
        beyond the last whole patch of an image are ignored.
      last_blocks: number of blocks after the scanned stack, 1 or more.
      pool: "cls" (the class token), "mean" (of the patch tokens) or "attention" (`AttentionPool` over the patch tokens), after
        the final LayerNorm.
      drop_path: rate of the last block; rates grow linearly from 0 at the first.
      dtype: compute dtype. Softmax and LayerNorm statistics are always float32.
      remat: whether to save nothing inside a block for the backward pass (see `remat.remat`).
      unroll: whether every block is compiled for itself instead of one for all.
      statistics: mean and standard deviation to normalize pixels with.
      features: of this kind of ViT.
      hidden: width inside the MLP; 0 for 4 * width.
    """

    width: int
    depth: int
    num_heads: int
    patch: int = 16
    grid: int | tuple[int, int] = 14
    last_blocks: int = 1
    pool: str = "cls"
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    unroll: bool = False
    statistics: Statistics = IMAGENET
    features: Features = Features()
    hidden: int = 0

    def setup(self):
        self.patch_embed = Linear(self.width, dtype=self.dtype)
        shape, features = self.shape, self.features
        first = int(features.class_token)
        lengths = {"cls_token": first, "pos_embed": 0 if features.rotary else first + shape[0] * shape[1]}
        lengths["reg_token"] = features.registers
        init = nn.initializers.normal(0.02)
        self.tokens = {name: self.param(name, init, (1, length, self.width)) for name, length in lengths.items() if length}
        if self.depth > self.last_blocks:
            self.blocks = nn.scan(
                self._block(scanned=True),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=self.depth - self.last_blocks,
                unroll=self.unroll,
            )(*self._block_fields)
        self.last = [self._block(scanned=False)(*self._block_fields) for _ in range(self.last_blocks)]
        self.norm = nn.LayerNorm(features.eps, self.dtype)
        if self.pool == "attention":
            self.attn_pool = AttentionPool(self.num_heads, self.hidden, features, self.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.grid if isinstance(self.grid, tuple) else (self.grid, self.grid)

    @property
    def num_patches(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def first_prompt(self) -> int:
        """Index of the first prompt token: prompts follow the class token, or come first."""
        return int(self.features.class_token)

    @property
    def example(self) -> Float[Array, "1 H W 3"]:
        """An input of the smallest valid shape, to create parameters with."""
        return jnp.zeros((1, *(count * self.patch for count in self.shape), 3))

    @property
    def rotary(self) -> Rotary | None:
        base = self.features.rotary
        return Rotary(self.shape, self.width // self.num_heads, base) if base else None

    @property
    def _block_fields(self):
        return self.num_heads, self.dtype, self.features, self.hidden, self.rotary

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
          images: of sides `shape * patch`, uint8, or floats if already normalized.
          td: the top-down input of every block that is applied.
          prompts: None; `[1, B or 1, P, D]`, inserted after the class token, or first (shallow VPT, arXiv 2203.12119); or
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
            reads: `[B, H, N]`, only without a class token and with maps. Replaces the class token's attention: the
              attention of `AttentionPool`, or the last block's, averaged over the patches.
        """
        x, seen = self._blocks(images, td, prompts, rng, start, num_queries=None, maps=maps)
        tokens = self.norm(x)
        hidden = jnp.concatenate([seen["input"], x[None]])
        out = {"tokens": tokens, "fed_back": tokens, "hidden": hidden, "attention": seen["attention"]}
        pooled, reads = self._pool(tokens)
        if maps and not self.features.class_token:
            patches = slice(-self.num_patches, None)
            out["reads"] = seen["attention"][-1][:, :, patches].mean(axis=2) if reads is None else reads
        return pooled, out

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
        return self._pool(self.norm(x))[0]

    def pooled_from_last(self, tokens: Tokens, td: Tokens | None = None) -> Float[Array, "B D"]:
        """Compute `pooled` from the input of the last block, `hidden[-2]` of a look, and the block's top-down input."""
        depth = (self.depth - 1, self.drop_path)
        x, _ = self.last[-1](tokens, td, None, depth, None, 1 if self.pool == "cls" else None, False)
        return self._pool(self.norm(x))[0]

    def on_grid(self, values: Float[Array, "B N"]) -> Float[Array, "B {self.shape[0]} {self.shape[1]}"]:
        """Map one value per token to the image; only patches count."""
        return values[:, -self.num_patches :].reshape(-1, *self.shape)

    def maps(self, hidden: Sequence[Tokens], blocks: Sequence[int]) -> Maps:
        """Lay the outputs of blocks over the image; see `ImageBackbone.maps`."""
        outputs = (self.norm(hidden[i + 1]) if i == self.depth - 1 else hidden[i + 1] for i in blocks)
        return tuple(x[:, -self.num_patches :].reshape(len(x), *self.shape, self.width) for x in outputs)

    def _block(self, *, scanned):
        return remat(Block, everything=self.remat, scanned=scanned, unrolled=self.unroll, static_argnums=(6, 7))

    def _pool(self, tokens):
        """Pool the tokens after the final norm; also return the attention of `AttentionPool`, or None."""
        if self.pool == "cls":
            return tokens[:, 0], None
        patches = tokens[:, -self.num_patches :]
        if self.pool == "mean":
            return patches.mean(axis=1), None
        pooled, reads = self.attn_pool(patches)
        return pooled, jnp.pad(reads, ((0, 0), (0, 0), (tokens.shape[1] - self.num_patches, 0)))

    def _embed(self, images):
        b, (rows, columns), p = images.shape[0], self.shape, self.patch
        if (images.shape[1] // p, images.shape[2] // p, images.shape[3]) != (rows, columns, 3):
            grid = rows if rows == columns else (rows, columns)
            takes = (rows * p, columns * p, 3)
            raise ValueError(f"images are {images.shape[1:]}; this ViT (patch {p}, grid {grid}) takes {takes}")
        pixels = normalize(images[:, : rows * p, : columns * p], self.statistics)
        x = self.patch_embed(patches.split(pixels, p).reshape(b, rows * columns, -1))
        cls, positions, registers = (self.tokens.get(name) for name in ("cls_token", "pos_embed", "reg_token"))
        if cls is not None:
            x = jnp.concatenate([jnp.broadcast_to(cls.astype(x.dtype), (b, 1, self.width)), x], axis=1)
        if positions is not None:
            x = x + positions.astype(x.dtype)
        if registers is not None:  # they have no position
            special = jnp.broadcast_to(registers.astype(x.dtype), (b, *registers.shape[1:]))
            x = jnp.concatenate([x[:, :1], special, x[:, 1:]], axis=1)
        return x

    def _blocks(self, images, td, prompts, rng, start, num_queries, maps):
        """Run the blocks and return the last output and the stacked intermediates."""
        skipped = 0 if start is None else self.depth - len(td)
        x = self._embed(images) if start is None else start
        rng = rng if self.drop_path else None
        if prompts is not None:
            first = jnp.broadcast_to(prompts[0], (x.shape[0], *prompts.shape[2:])).astype(x.dtype)
            x = jnp.concatenate([x[:, : self.first_prompt], first, x[:, self.first_prompt :]], axis=1)
            if len(prompts) not in (1, self.depth):
                raise ValueError(f"prompts are for {len(prompts)} blocks; give them for 1 or for all {self.depth}")
            prompts = prompts if len(prompts) == self.depth > 1 else None
        depth = (jnp.arange(self.depth)[skipped:], jnp.linspace(0.0, self.drop_path, self.depth)[skipped:])
        count = self.depth - skipped
        stacked = max(0, count - self.last_blocks)
        seen = []
        if stacked:
            layer = self._block(scanned=True)(*self._block_fields, parent=None)
            per_layer = jax.tree.map(lambda a: a[:stacked], (td, prompts, depth))
            x, intermediates = stack.look(self.blocks, layer, skipped, x, per_layer, (rng, None, maps), self.unroll)
            seen.append(intermediates)
        for i, block in enumerate(self.last[stacked - count :], start=stacked):
            per_layer = jax.tree.map(lambda a: a[i], (td, prompts, depth))  # noqa: B023
            x, intermediates = block(x, *per_layer, rng, num_queries if i == count - 1 else None, maps)
            seen.append(jax.tree.map(lambda a: a[None], intermediates))
        if num_queries is not None:
            return x, None
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)


def of_side(model: ViT, params: dict, sides: tuple[int, int]) -> tuple[ViT, dict]:
    """Fit a ViT to images of other sides, with position embeddings resized for another number of patches.

    Interpolates as the segmentation code of AbSViT (Shi et al., arXiv 2303.13043): bicubic as in PyTorch, with half-pixel
    centers. A grid of another shape with the same number of patches keeps the embeddings unchanged.

    Args:
      params: of the backbone; gradients pass through the result.
      sides: height and width in pixels; a patch that an image fills in part counts.
    """
    rows, columns = (-(-side // model.patch) for side in sides)
    other = dataclasses.replace(model, grid=(rows, columns))
    if "pos_embed" not in params or rows * columns == model.num_patches:
        return other, params
    resized = patches.resize_positions(params["pos_embed"], model.shape, (rows, columns), model.features.antialias)
    return other, {**params, "pos_embed": resized}
