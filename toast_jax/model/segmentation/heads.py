"""Heads of semantic segmentation: from maps of the backbone to logits of their places.

UPerNet (Xiao et al., arXiv 1807.10221) and its auxiliary head have the numbers of mmsegmentation. Channels come last.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array, Keys, Maps
from toast_jax.model.layers.batch_norm import BatchNorm
from toast_jax.model.layers.linear import Linear

POOLS = (1, 2, 3, 6)  # sides of the pyramid's pooled maps


def upsample(x: Float[Array, "B h w C"], sides: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """Resize maps bilinearly, as PyTorch does with `align_corners=False`."""
    return jax.image.resize(x, (len(x), *sides, x.shape[-1]), "linear", antialias=False)


def pool(x: Float[Array, "B h w C"], side: int) -> Float[Array, "B {side} {side} C"]:
    """Average maps over `side * side` bins, which overlap where sides do not divide (PyTorch's `AdaptiveAvgPool2d`)."""

    def along(x, axis):
        length = x.shape[axis]
        borders = ((i * length // side, -(-(i + 1) * length // side)) for i in range(side))
        return jnp.stack([jax.lax.slice_in_dim(x, *border, axis=axis).mean(axis=axis) for border in borders], axis=axis)

    return along(along(x, 1), 2)


class ConvNorm(nn.Module):
    """Applies a convolution without a bias, batch normalization and a ReLU; the map keeps its size."""

    features: int
    kernel: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], training: bool) -> Float[Array, "B h w {self.features}"]:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = nn.Conv(self.features, (self.kernel,) * 2, use_bias=False, kernel_init=init, name="conv")
        return nn.relu(BatchNorm(1e-5, affine=True, name="norm")(conv(x), training))


class Classifier(nn.Module):
    """Classifies every place of a map by itself, after dropping whole channels in training."""

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], rng: Keys | None = None) -> Float[Array, "B h w {self.num_classes}"]:
        if rng is not None and self.dropout:
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, x.shape[-1:]))(rng)
            x = x * kept[:, None, None] / (1 - self.dropout)
        return Linear(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="linear")(x)


class LinearHead(nn.Module):
    """Classifies every place of the last map: a linear probe of the tokens."""

    num_classes: int

    @nn.compact
    def __call__(self, maps: Maps, rng: Keys | None = None) -> tuple[Float[Array, "B h w C"], None]:
        """Return the logits; there is no auxiliary head."""
        return Classifier(self.num_classes, name="classifier")(maps[-1].astype(jnp.float32)), None


class AuxiliaryHead(nn.Module):
    """Classifies the places of one map after one convolution; its loss helps the backbone to train."""

    num_classes: int
    channels: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"], rng: Keys | None = None) -> Float[Array, "B h w {self.num_classes}"]:
        x = ConvNorm(self.channels, 3, name="conv")(x, rng is not None)
        return Classifier(self.num_classes, self.dropout, name="classifier")(x, rng)


class UperNet(nn.Module):
    """Fuses maps from the last to the first, after pooling the last one at several scales.

    Attributes:
      num_classes: C.
      channels: of every convolution.
      auxiliary_channels: of the convolution of the auxiliary head.
      auxiliary_map: number of the map that the auxiliary head reads.
      dropout: rate at which channels are dropped before both classifiers.
    """

    num_classes: int
    channels: int = 512
    auxiliary_channels: int = 256
    auxiliary_map: int = -1
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, maps: Maps, rng: Keys | None = None
    ) -> tuple[Float[Array, "B h w {self.num_classes}"], Float[Array, "B _ _ {self.num_classes}"]]:
        """Compute the logits at the size of the first map, and those of the auxiliary head; keys mean training."""
        training = rng is not None
        conv = lambda name, x, kernel: ConvNorm(self.channels, kernel, name=name)(x, training)  # noqa: E731
        keys = (None, None) if rng is None else jax.vmap(jax.random.split, out_axes=1)(rng)
        maps = tuple(x.astype(jnp.float32) for x in maps)
        *others, last = maps
        pyramid = [upsample(conv(f"pool_{side}", pool(last, side), 1), last.shape[1:3]) for side in POOLS]
        levels = [conv(f"lateral_{i}", x, 1) for i, x in enumerate(others)]
        levels.append(conv("bottleneck", jnp.concatenate([last, *pyramid], axis=-1), 3))
        for i in reversed(range(len(others))):
            levels[i] = levels[i] + upsample(levels[i + 1], levels[i].shape[1:3])
        fused = [conv(f"level_{i}", x, 3) for i, x in enumerate(levels[:-1])] + levels[-1:]
        fused = [upsample(x, fused[0].shape[1:3]) for x in fused]
        x = conv("fusion", jnp.concatenate(fused, axis=-1), 3)
        auxiliary = AuxiliaryHead(self.num_classes, self.auxiliary_channels, self.dropout, name="auxiliary")
        logits = Classifier(self.num_classes, self.dropout, name="classifier")(x, keys[0])
        return logits, auxiliary(maps[self.auxiliary_map], keys[1])
