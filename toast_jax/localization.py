"""How much of a map falls on an object, when it is known where the object is."""

import numpy as np


def box_of(mask: np.ndarray) -> np.ndarray:
    """The smallest upright box around a mask `[H, W]`, as a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.zeros_like(mask, bool)
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map that falls inside a mask; each cell's value is spread evenly over its pixels.

    Args:
      maps: `[B, g, g]`, not negative.
      masks: bool `[B, S, S]`, S a multiple of g.

    Returns:
      `[B]`, from 0 to 1. A uniform map scores the share of the image that the mask covers.
    """
    count, grid, _ = maps.shape
    cell = masks.shape[1] // grid
    covered = masks.reshape(count, grid, cell, grid, cell).mean(axis=(2, 4))
    return (maps * covered).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))
