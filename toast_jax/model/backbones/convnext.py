"""ConvNeXt (Liu et al., arXiv 2201.03545) that can be steered.

It knows one optional input, a top-down map for the input of every stage, and no method that makes it. Names follow the
official code, whose numbers it gives (exact GELU, LayerNorm eps 1e-6, layer scale). Channels come last.

Letters in shapes: B batch, S side of the image, C_i channels of stage i, [B, h, w, C] a map.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from toast_jax.errors import choose
from toast_jax.model.layers import dtypes, patches
from toast_jax.model.layers.depthwise import DepthwiseConv
from toast_jax.model.layers.drop_path import drop_path
from toast_jax.model.layers.gelu import gelu
from toast_jax.model.layers.linear import Linear
from toast_jax.model.layers.normalize import normalize
from toast_jax.model.layers.remat import product, remat

LAYER_NORM_EPS = 1e-6
STRIDES = (4, 2, 2, 2)  # by which the stages shrink their input; each down-sampling convolution is as wide as its stride
LAYER_SCALE = 1e-6  # at the start
LORA_KERNELS = r"backbone/stages_\d/(blocks|last_\d+)/pwconv[12]/kernel"  # carry the deltas of method lora


@dataclasses.dataclass(frozen=True)
class Size:
    depths: tuple[int, ...]
    widths: tuple[int, ...]


SIZES = {
    "T": Size(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "S": Size(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "B": Size(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "L": Size(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
}


def build(config, last_blocks: int) -> "ConvNeXt":
    """The ConvNeXt of a config's `backbone` section (`size`, `drop_path`, `dtype`, `remat`).

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
    )


class Block(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, and an MLP at every place, scaled and added to the input."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, rng=None, depth=(0, 0.0)):
        """Maps `x [B, h, w, C]` to the same shape; a second output, None, is for `nn.scan`.

        Args:
          x: the map.
          rng: `[B]` keys, or None for no drop-path.
          depth: index of the block in the network and its drop-path rate.
        """
        width, (index, rate) = x.shape[-1], depth
        y = product(DepthwiseConv(dtype=self.dtype, name="dwconv")(x))
        y = nn.LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(y)
        y = gelu(Linear(4 * width, dtype=self.dtype, name="pwconv1")(y))
        y = Linear(width, dtype=self.dtype, name="pwconv2")(y)
        y = y * self.param("gamma", nn.initializers.constant(LAYER_SCALE), (width,)).astype(y.dtype)
        keys = None if rng is None else jax.vmap(lambda key: jax.random.fold_in(key, index))(rng)
        return x + drop_path(y, keys, rate), None


class Downsample(nn.Module):
    """A convolution whose kernel is its stride, and a LayerNorm: after it in the first stage, before it in the others."""

    width: int
    stride: int
    norm_first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        norm = nn.LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")
        convolution = Linear(self.width, dtype=self.dtype, name="conv")
        if self.norm_first:
            return convolution(patches.split(norm(x), self.stride))
        return norm(convolution(patches.split(x, self.stride)))


class Stage(nn.Module):
    """Down-sampling and `depth` blocks: one scanned stack (`blocks`), then the last `last_blocks` alone (`last_0`, ...)."""

    width: int
    depth: int
    stride: int
    norm_first: bool
    last_blocks: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        block = functools.partial(remat, Block, everything=self.remat)
        self.downsample = Downsample(self.width, self.stride, self.norm_first, self.dtype)
        if self.depth > self.last_blocks:
            self.blocks = nn.scan(
                block(scanned=True),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0),
                length=self.depth - self.last_blocks,
            )(self.dtype)
        self.last = [block(scanned=False)(self.dtype) for _ in range(self.last_blocks)]

    def __call__(self, x, rng, depth):
        """`[B, h, w, C_in]` -> `[B, h / stride, w / stride, width]`; `depth` holds index and drop-path rate of every block."""
        x = self.downsample(x)
        stacked = self.depth - self.last_blocks
        if stacked:
            x, _ = self.blocks(x, rng, jax.tree.map(lambda a: a[:stacked], depth))
        for i, block in enumerate(self.last, start=stacked):
            x, _ = block(x, rng, jax.tree.map(lambda a: a[i], depth))  # noqa: B023
        return x


class ConvNeXt(nn.Module):
    """ConvNeXt without a classifier.

    The blocks of a stage are one scanned stack, every parameter with a leading layer axis, so compile time does not grow with
    depth. The last `last_blocks` blocks of the last stage stand alone, as those of the ViT do, so that partial fine-tuning
    tunes them without touching part of a stacked array.

    Attributes:
      depths: blocks of each of the four stages.
      widths: channels of each, C_0 to C_3.
      last_blocks: how many blocks stand after the scanned stack of the last stage.
      drop_path: rate of the last block; it grows linearly from 0 at the first.
      dtype: compute dtype. LayerNorm statistics are float32 whatever it is.
      remat: store nothing inside of a block for the backward pass, instead of its products (see `remat.remat`).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    last_blocks: int = 1
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

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
            )
            for i, (width, depth, stride) in enumerate(zip(self.widths, self.depths, STRIDES, strict=True))
        ]
        self.norm = nn.LayerNorm(LAYER_NORM_EPS, self.dtype)

    @property
    def example(self) -> jax.Array:
        """The smallest input that the network takes, to create its parameters from."""
        return jnp.zeros((1, 32, 32, 3))

    def __call__(self, images, td=None, rng=None):
        """Looks at images and returns every named intermediate.

        Args:
          images: `[B, S, S, 3]`, S a multiple of 32, uint8 (normalised here) or floats that are normalised already.
          td: None, or the top-down input of every stage, which has the shape of what the stage gets: `[B, S, S, 3]`, the image,
            then `[B, S / 4, S / 4, C_0]`, `[B, S / 8, S / 8, C_1]`, `[B, S / 16, S / 16, C_2]`.
          rng: `[B]` keys for drop-path, None at evaluation.

        Returns:
          pooled `[B, C_3]`, and a dict:
            tokens: `[B, S / 32, S / 32, C_3]`, the last map after the final LayerNorm; compared with the prior.
            fed_back: the same before the LayerNorm.
            hidden: five maps, the input of every stage (without its top-down input) and the output of the last.
        """
        hidden = self._maps(images, td, rng)
        return self.pooled_map(hidden[-1]), {"tokens": self.norm(hidden[-1]), "fed_back": hidden[-1], "hidden": hidden}

    def pooled(self, images, td=None, rng=None):
        """The pooled output of `__call__` alone, `[B, C_3]`."""
        return self.pooled_map(self._maps(images, td, rng)[-1])

    def pooled_map(self, x):
        """What `pooled` makes of the last map, `[B, h, w, C_3]`."""
        return self.norm(x.mean(axis=(1, 2)))

    def on_grid(self, values):
        """Lays one value per place over the image, where it is already: `[B, h, w]`."""
        return values

    def _maps(self, images, td, rng):
        if images.shape[-1] != 3 or any(side % 32 or not side for side in images.shape[1:3]):
            raise ValueError(f"images are {images.shape[1:]}; a ConvNeXt takes [S, S, 3], S a multiple of 32")
        rng = rng if self.drop_path else None
        blocks = sum(self.depths)
        depth = (jnp.arange(blocks), jnp.linspace(0.0, self.drop_path, blocks))
        hidden, start = [normalize(images)], 0
        for i, stage in enumerate(self.stages):
            x = hidden[-1] if td is None else hidden[-1] + td[i]
            hidden.append(stage(x, rng, jax.tree.map(lambda a: a[start : start + stage.depth], depth)))  # noqa: B023
            start += stage.depth
        return tuple(hidden)
