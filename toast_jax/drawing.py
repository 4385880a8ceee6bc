"""Maps over images, as pixels. The colours are viridis, which keeps its order in grey and for the colour-blind."""

import numpy as np
from PIL import Image

_VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
_GAP = 4  # white pixels between panels


def coloured(values: np.ndarray) -> np.ndarray:
    """Colours for a map `[H, W]`, its smallest value dark blue and its largest yellow: uint8 `[H, W, 3]`."""
    low, high = values.min(), values.max()
    place = (values - low) / max(high - low, 1e-12) * (len(_VIRIDIS) - 1)
    anchors = np.arange(len(_VIRIDIS))
    return np.stack([np.interp(place, anchors, _VIRIDIS[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def overlay(image: np.ndarray, values: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Lays a coarse map `[h, w]` over an image.

    Args:
      image: uint8 `[H, W, 3]`.
      values: one number for each patch, interpolated to the image.
      strength: 0 shows the image alone, 1 the map alone.

    Returns:
      uint8 `[H, W, 3]`.
    """
    height, width, _ = image.shape
    fine = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return ((1 - strength) * image + strength * coloured(np.asarray(fine))).round().astype(np.uint8)


def side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    """Panels of one height next to each other, with a white gap."""
    return stacked([panel.transpose(1, 0, 2) for panel in panels]).transpose(1, 0, 2)


def stacked(panels: list[np.ndarray]) -> np.ndarray:
    """Panels of one width below each other, with a white gap."""
    gap = np.full((_GAP, panels[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (gap, panel)][1:])
