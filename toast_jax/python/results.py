"""Results of a network in Python: predictions, and where it looks."""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image

from toast_jax.analysis import drawing, maps

_SIDE = 160  # width of a drawn map, in pixels


class Predictions(NamedTuple):
    """Predictions for n images, in their order.

    Attributes:
      images: `[n]`, paths, or positions of images without a path.
      labels: `[n]`, the names of the likeliest classes.
      probabilities: float32 `[n, C]`, in the order of `Net.classes`.
    """

    images: list[str]
    labels: list[str]
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Look:
    """Maps of where a network looks in an image.

    Attributes:
      image: as the network sees it, uint8 `[S, S, 3]`.
      first, last: attention of the class token to each patch in the last block, `[g, g]`, in the first and the last look.
      selection: the mask of the tokens that are fed back, `[g, g]`.

    A map that the network lacks is None: a method that looks once has neither `first` nor `selection`, a ConvNeXt has no
    attention.
    """

    image: np.ndarray
    first: np.ndarray | None
    selection: np.ndarray | None
    last: np.ndarray | None

    def draw(self) -> Image.Image:
        """Draw the image beside its maps; a notebook shows the result."""
        image = drawing.enlarged(self.image, _SIDE)
        by_name = dict(zip(maps.ORDER, (self.first, self.selection, self.last), strict=True))
        panels = {"image": image} | {name: drawing.overlay(image, at) for name, at in by_name.items() if at is not None}
        return Image.fromarray(drawing.side_by_side([drawing.titled(panel, name, lines=1) for name, panel in panels.items()]))
