"""Localization scores: how much of a map falls on a known object; and bootstrap intervals of their means.

Maps are `[B, g, g]` and not negative. Masks are bool `[B, S, S]`, S a multiple of g: the object, or the box around it. Scores
are `[B]`, one per image, from 0 to 1.
"""

import numpy as np

from toast_jax.analysis.drawing import interpolated

THRESHOLDS = np.arange(20) / 20  # as fractions of a map's range


def box_of(mask: np.ndarray) -> np.ndarray:
    """Return the smallest upright box around a mask `[H, W]`, as a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.zeros_like(mask, bool)
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's sum inside the mask; each cell's value is spread evenly over its pixels.

    A uniform map, or a map of zeros, scores the mask's share of the image.
    """
    count, grid, _ = maps.shape
    cell = masks.shape[1] // grid
    covered = masks.reshape(count, grid, cell, grid, cell).mean(axis=(2, 4))
    maps = np.where(maps.any(axis=(1, 2), keepdims=True), maps, 1.0)
    return (maps * covered).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Score whether the center of the highest cell is inside the mask (Zhang et al., arXiv 1608.00507, without a tolerance).

    Ties score the chance that a randomly drawn highest cell hits. A uniform map scores the share of cells whose centers the
    mask covers.
    """
    cell = masks.shape[1] // maps.shape[1]
    centres = masks[:, cell // 2 :: cell, cell // 2 :: cell]
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    return (highest & centres).sum(axis=(1, 2)) / highest.sum(axis=(1, 2))


def iou_at_thresholds(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Return the IoU of the mask and the thresholded map: `[B, T]`.

    Maps are interpolated to pixels first. A threshold is a fraction of the map's range, from smallest to largest value; a
    constant map reaches every threshold.
    """
    fine = _at_pixels(maps, masks)
    low, high = fine.min(axis=1, keepdims=True), fine.max(axis=1, keepdims=True)
    scaled = np.where(high > low, (fine - low) / np.where(high > low, high - low, 1.0), 1.0)
    return np.stack([_iou(scaled >= threshold, masks) for threshold in thresholds], axis=1)


def iou_of_highest(maps: np.ndarray, masks: np.ndarray, share: float) -> np.ndarray:
    """Return the IoU of the mask and the highest `share` of each map's pixels; ties at the cut are included."""
    fine = _at_pixels(maps, masks)
    count = max(1, round(share * fine.shape[1]))
    lowest = np.sort(fine, axis=1)[:, -count, None]
    return _iou(fine >= lowest, masks)


def _at_pixels(maps, masks):
    return np.stack([interpolated(values, *masks.shape[1:]).ravel() for values in maps])


def _iou(region, masks):
    """Return the IoU of regions `[B, S * S]` and non-empty masks `[B, S, S]`."""
    masks = masks.reshape(len(masks), -1)
    return (region & masks).sum(axis=1) / (region | masks).sum(axis=1)


def uniform(grid: int) -> np.ndarray:
    """Return a constant map `[g, g]`, the baseline without information."""
    return np.ones((grid, grid))


def centre_prior(grid: int) -> np.ndarray:
    """Return the center-bias baseline `[g, g]`: a Gaussian with a standard deviation of a quarter of the side."""
    offset = (np.arange(grid) + 0.5) / grid - 0.5
    along = np.exp(-0.5 * (offset / 0.25) ** 2)
    return along[:, None] * along


def interval(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values [B]`, resampled over images."""
    values, rng = np.asarray(values, float), np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(10_000)])
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
