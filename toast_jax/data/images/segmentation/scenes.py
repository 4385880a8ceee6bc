"""Scenes of the demo with masks: the cell of the green one of four digits, against everything else."""

import dataclasses
import functools

import numpy as np

from toast_jax.data.images import synthetic_scenes

TARGET = "green digit"


@dataclasses.dataclass(frozen=True)
class MaskedScenes:
    """A source (see `masks.MaskedSource`) of the first `count` scenes of a split."""

    split: str
    count: int
    classes: tuple[str, ...] = ("background", TARGET)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return _masked(self.split, index)

    def name(self, index: int) -> str:
        """Return the place of a scene in its split."""
        return f"{self.split}[{index}]"

    def sides(self, index: int) -> tuple[int, int]:
        """Return height and width of a scene."""
        return synthetic_scenes.SIDE, synthetic_scenes.SIDE


@functools.lru_cache(maxsize=25_000)  # composing takes longer than a step of a small network; 16 kB each
def _masked(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    scene = synthetic_scenes.scene("green", split, index)
    return scene.image, scene.boxes[scene.asked["green"]].astype(np.uint8)
