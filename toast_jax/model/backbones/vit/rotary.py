"""Rotary positions of image patches (RoPE, arXiv 2104.09864), in the two axes of an image as in DINOv3 (arXiv 2508.10104)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from toast_jax.model.layers.arrays import Array


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotates the queries or keys of patches by angles that depend on their position in the image.

    A patch's row and column are coordinates in (-1, 1), whatever the number of patches, so any resolution is valid. The first
    K / 4 channels rotate by the row and the next K / 4 by the column, at wavelengths from 1 to about `base`. Channel m is
    paired with channel m + K / 2.

    Attributes:
      shape: rows and columns of patches.
      channels: K of a head, a multiple of 4.
      base: ratio of the longest wavelength to the shortest, approached as K grows.
    """

    shape: tuple[int, int]
    channels: int
    base: float

    @property
    def num_patches(self) -> int:
        return self.shape[0] * self.shape[1]

    def angles(self) -> Float[np.ndarray, "P K"]:
        """Compute the angle of every patch, row by row, and channel."""
        periods = self.base ** (4 * np.arange(self.channels // 4) / self.channels)
        centers = np.meshgrid(*(2 * (np.arange(n) + 0.5) / n - 1 for n in self.shape), indexing="ij")
        angles = [2 * np.pi * axis.reshape(-1, 1) / periods for axis in centers]
        return np.concatenate(angles * 2, axis=1).astype(np.float32)

    def __call__(self, x: Float[Array, "B M H K"], special: int) -> Float[Array, "B M H K"]:
        """Rotate queries or keys, in float32.

        Args:
          x: queries or keys of the first M tokens of an image.
          special: how many tokens precede the patches; they have no position and stay as they are.
        """
        patches = x[:, special:].astype(jnp.float32)
        angles = self.angles()[: patches.shape[1], None]
        first, second = jnp.split(patches, 2, axis=-1)
        turned = patches * np.cos(angles) + jnp.concatenate([-second, first], axis=-1) * np.sin(angles)
        return jnp.concatenate([x[:, :special], turned.astype(x.dtype)], axis=1)
