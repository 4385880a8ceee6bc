"""A steerable ConvNeXt (Liu et al., arXiv 2201.03545).

It takes one optional input, a top-down map per stage, and does not depend on the method that makes it. Names and numbers follow
the official code (exact GELU, LayerNorm eps 1e-6, layer scale). Channels come last.

Letters in shapes: B batch, S side of the image in pixels, C_i output channels of stage i, [B, h, w, C] a map.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from toast_jax.data.images.statistics import IMAGENET
from toast_jax.errors import choose
from toast_jax.model.backbones.convnext.depthwise import DepthwiseConv
from toast_jax.model.backbones.normalize import Statistics, normalize
from toast_jax.model.layers import dtypes, patches
from toast_jax.model.layers.arrays import Array, Depth, Images, Keys, Maps
from toast_jax.model.layers.drop_path import BlockOutput, drop_path
from toast_jax.model.layers.gelu import gelu
from toast_jax.model.layers.linear import Linear
from toast_jax.model.layers.remat import product, remat

LAYER_NORM_EPS = 1e-6
STRIDES = (4, 2, 2, 2)  # down-sampling factors of the stages, and kernel sizes of the convolutions that do it
LAYER_SCALE = 1e-6  # initial value
LORA_KERNELS = r"backbone/stages_\d/(blocks|last_\d+)/pwconv[12]/kernel"  # of method lora


@dataclasses.dataclass(frozen=True)
class Size:
    depths: tuple[int, ...]
    widths: tuple[int, ...]


SIZES = {
    "T": Size(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "S": Size(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "B": Size(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "L": Size(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
    "XL": Size(depths=(3, 3, 27, 3), widths=(256, 512, 1024, 2048)),
}


def build(config, last_blocks: int, statistics: Statistics = IMAGENET) -> "ConvNeXt":
    """Build the ConvNeXt of a config's `backbone` section.

    Args:
      config: the section; reads `size`, `drop_path`, `dtype`, `remat` and `unroll`.
      last_blocks, statistics: see `ConvNeXt`.

    Raises:
      InputError: an unknown size or dtype.
    """
    size = choose("config.backbone.size", config.size, SIZES)
    return ConvNeXt(
        **dataclasses.asdict(size),
        last_blocks=last_blocks,
        drop_path=config.drop_path,
        dtype=dtypes.named(config.dtype),
        remat=config.remat,
        unroll=config.unroll,
        statistics=statistics,
    )


class Block(nn.Module):
    """Applies a depthwise 7x7 convolution, LayerNorm and an MLP, scaled and added to the input."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], rng: Keys | None = None, depth: Depth = (0, 0.0)
    ) -> tuple[Float[Array, "B h w C"], None]:
        """Return the output map, and None for `nn.scan`; `depth` is the index of the block and its drop-path rate."""
        width, (index, rate) = x.shape[-1], depth
        y = product(DepthwiseConv(dtype=self.dtype, name="dwconv")(x))
        y = nn.LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(y)
        y = gelu(Linear(4 * width, dtype=self.dtype, name="pwconv1")(y))
        y = Linear(width, dtype=self.dtype, name="pwconv2")(y)
        y = y * self.param("gamma", nn.initializers.constant(LAYER_SCALE), (width,)).astype(y.dtype)
        keys = None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(rng)
        return BlockOutput(name="output")(x + drop_path(y, keys, rate), depth, rng), None


class Downsample(nn.Module):
    """Applies a convolution whose kernel size is its stride, and a LayerNorm before or (first stage) after it."""

    width: int
    stride: int
    norm_first: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h//{self.stride} w//{self.stride} {self.width}"]:
        norm = nn.LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")
        convolution = Linear(self.width, dtype=self.dtype, name="conv")
        if self.norm_first:
            return convolution(patches.split(norm(x), self.stride))
        return norm(convolution(patches.split(x, self.stride)))


class Stage(nn.Module):
    """Down-samples and applies `depth` blocks: a scanned stack (`blocks`), then `last_blocks` alone (`last_0`, ...)."""

    width: int
    depth: int
    stride: int
    norm_first: bool
    last_blocks: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    unroll: bool = False

    def setup(self):
        block = functools.partial(remat, Block, everything=self.remat, unrolled=self.unroll)
        self.downsample = Downsample(self.width, self.stride, self.norm_first, self.dtype)
        if self.depth > self.last_blocks:
            self.blocks = nn.scan(
                block(scanned=True),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0),
                length=self.depth - self.last_blocks,
                unroll=self.unroll,
            )(self.dtype)
        self.last = [block(scanned=False)(self.dtype) for _ in range(self.last_blocks)]

    def __call__(
        self, x: Float[Array, "B h w C"], rng: Keys | None, depth: tuple[Int[Array, " L"], Float[Array, " L"]]
    ) -> Float[Array, "B h//{self.stride} w//{self.stride} {self.width}"]:
        """Return the output map; `depth` has the indices of the blocks in the network and their drop-path rates."""
        x = self.downsample(x)
        stacked = self.depth - self.last_blocks
        if stacked:
            x, _ = self.blocks(x, rng, jax.tree.map(lambda a: a[:stacked], depth))
        for i, block in enumerate(self.last, start=stacked):
            x, _ = block(x, rng, jax.tree.map(lambda a: a[i], depth))  # noqa: B023
        return x


class ConvNeXt(nn.Module):
    """Encodes images with a ConvNeXt without a classifier.

    The blocks of a stage are one scanned stack, every parameter with a leading layer axis, so compile time does not grow with
    depth. The last `last_blocks` blocks of the last stage stand alone, as in the ViT, so that partial fine-tuning tunes them
    without splitting a stacked array.

    Attributes:
      depths: number of blocks of each of the four stages.
      widths: output channels of each stage, C_0 to C_3.
      last_blocks: number of blocks after the scanned stack of the last stage.
      drop_path: rate of the last block; rates grow linearly from 0 at the first.
      dtype: compute dtype. LayerNorm statistics are always float32.
      remat: whether to save nothing inside a block for the backward pass (see `remat.remat`).
      unroll: whether every block is compiled for itself instead of one for all of a stage.
      statistics: mean and standard deviation to normalize pixels with.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    last_blocks: int = 1
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    unroll: bool = False
    statistics: Statistics = IMAGENET

    def setup(self):
        self.stages = [
            Stage(
                width=width,
                depth=depth,
                stride=stride,
                norm_first=i > 0,
                last_blocks=self.last_blocks if i == len(self.depths) - 1 else 0,
                dtype=self.dtype,
                remat=self.remat,
                unroll=self.unroll,
            )
            for i, (width, depth, stride) in enumerate(zip(self.widths, self.depths, STRIDES, strict=True))
        ]
        self.norm = nn.LayerNorm(LAYER_NORM_EPS, self.dtype)

    @property
    def example(self) -> Float[Array, "1 S S 3"]:
        """An input of the smallest valid shape, to create parameters with."""
        return jnp.zeros((1, 32, 32, 3))

    def __call__(
        self,
        images: Images | None,
        td: Maps | None = None,
        rng: Keys | None = None,
        start: Float[Array, "B _ _ _"] | None = None,
        maps: bool = True,
    ) -> tuple[Float[Array, "B C_3"], dict[str, Float[Array, "B h w C_3"] | Maps]]:
        """Look at images and return every named intermediate.

        Args:
          images: of sides that are multiples of 32, uint8, or floats if already normalized.
          td: None, or the top-down input of every stage that is applied, shaped as the input of the stage: `[B, S, S, 3]`,
            `[B, S / 4, S / 4, C_0]`, `[B, S / 8, S / 8, C_1]`, `[B, S / 16, S / 16, C_2]`.
          rng: for drop-path, None at evaluation.
          start: None, or the input of the first stage to apply, one of the last `len(td)`, without its top-down input; the
            images are then not read.
          maps: unused, as there is no attention.

        Returns:
          pooled, and a dict, of the applied stages:
            tokens: `[B, S / 32, S / 32, C_3]`, the last map after the final LayerNorm; compared with the prior.
            fed_back: the last map before the LayerNorm.
            hidden: the maps at the input of every stage (without its top-down input) and the output of the last.
        """
        hidden = self._maps(images, td, rng, start)
        return self.pooled_map(hidden[-1]), {"tokens": self.norm(hidden[-1]), "fed_back": hidden[-1], "hidden": hidden}

    def pooled(
        self,
        images: Images | None,
        td: Maps | None = None,
        rng: Keys | None = None,
        start: Float[Array, "B _ _ _"] | None = None,
    ) -> Float[Array, "B C_3"]:
        """Compute the pooled output of `__call__` alone."""
        return self.pooled_map(self._maps(images, td, rng, start)[-1])

    def pooled_map(self, x: Float[Array, "B h w C_3"]) -> Float[Array, "B C_3"]:
        """Pool the last map."""
        return self.norm(x.mean(axis=(1, 2)))

    def on_grid(self, values: Float[Array, "B h w"]) -> Float[Array, "B h w"]:
        """Return one value per place as it is: it already covers the image."""
        return values

    def maps(self, hidden: Maps, stages: Sequence[int]) -> Maps:
        """Return the outputs of stages; see `ImageBackbone.maps`."""
        last = len(self.depths) - 1
        return tuple(self.norm(hidden[i + 1]) if i == last else hidden[i + 1] for i in stages)

    def _maps(self, images, td, rng, start):
        skipped = 0 if start is None else len(self.stages) - len(td)
        rng = rng if self.drop_path else None
        blocks = sum(self.depths)
        depth = (jnp.arange(blocks), jnp.linspace(0.0, self.drop_path, blocks))
        hidden = [_checked(images, self.statistics) if start is None else start]
        for i, stage in enumerate(self.stages[skipped:]):
            x = hidden[-1] if td is None else hidden[-1] + td[i]
            before = sum(self.depths[: skipped + i])
            hidden.append(stage(x, rng, jax.tree.map(lambda a: a[before : before + stage.depth], depth)))  # noqa: B023
        return tuple(hidden)


def _checked(images, statistics):
    """Return normalized images of a shape that the network takes."""
    if images.shape[-1] != 3 or any(side % 32 or not side for side in images.shape[1:3]):
        raise ValueError(f"images are {images.shape[1:]}; a ConvNeXt takes [S, S, 3], S a multiple of 32")
    return normalize(images, statistics)
