"""How much of a map falls on an object, when it is known where the object is; and how sure a mean over images is.

Maps are `[B, g, g]`, not negative, and masks bool `[B, S, S]`, S a multiple of g: the object, or the box around it. Scores are
`[B]`, one for each image, from 0 to 1.
"""

import numpy as np

from toast_jax.analysis.drawing import interpolated

THRESHOLDS = np.arange(20) / 20  # shares of the way from a map's smallest value to its largest


def box_of(mask: np.ndarray) -> np.ndarray:
    """The smallest upright box around a mask `[H, W]`, as a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.zeros_like(mask, bool)
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each map that falls inside a mask; each cell's value is spread evenly over its pixels.

    A uniform map scores the share of the image that the mask covers, and so does a map of zeros.
    """
    count, grid, _ = maps.shape
    cell = masks.shape[1] // grid
    covered = masks.reshape(count, grid, cell, grid, cell).mean(axis=(2, 4))
    maps = np.where(maps.any(axis=(1, 2), keepdims=True), maps, 1.0)
    return (maps * covered).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Whether the centre of the highest cell is inside the mask (Zhang et al., arXiv 1608.00507, without a tolerance).

    Of cells that are equally high one would be drawn: the score is then the chance to hit. A uniform map scores the share of
    cells whose centres the mask covers.
    """
    cell = masks.shape[1] // maps.shape[1]
    centres = masks[:, cell // 2 :: cell, cell // 2 :: cell]
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    return (highest & centres).sum(axis=(1, 2)) / highest.sum(axis=(1, 2))


def iou_at_thresholds(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Intersection over union of a mask and the pixels where the map, as it is drawn, reaches a threshold: `[B, T]`.

    A threshold is a share of the way from the smallest value of the map to the largest; a map without a range reaches them all.
    """
    fine = _as_drawn(maps, masks)
    low, high = fine.min(axis=1, keepdims=True), fine.max(axis=1, keepdims=True)
    place = np.where(high > low, (fine - low) / np.where(high > low, high - low, 1.0), 1.0)
    return np.stack([_iou(place >= one, masks) for one in thresholds], axis=1)


def iou_of_highest(maps: np.ndarray, masks: np.ndarray, share: float) -> np.ndarray:
    """The same of this share of the pixels, the highest of each map, and of all that are as high as the lowest of them."""
    fine = _as_drawn(maps, masks)
    count = max(1, round(share * fine.shape[1]))
    lowest = np.sort(fine, axis=1)[:, -count, None]
    return _iou(fine >= lowest, masks)


def _as_drawn(maps, masks):
    return np.stack([interpolated(one, *masks.shape[1:]).ravel() for one in maps])


def _iou(found, masks):
    """Of bools `[B, S * S]` and `[B, S, S]`; the masks are not empty."""
    masks = masks.reshape(len(masks), -1)
    return (found & masks).sum(axis=1) / (found | masks).sum(axis=1)


def uniform(grid: int) -> np.ndarray:
    """A map `[g, g]` that knows nothing."""
    return np.ones((grid, grid))


def centre_prior(grid: int) -> np.ndarray:
    """A map `[g, g]` that knows only that things are in the middle: a Gaussian with a deviation of a quarter of the side."""
    place = (np.arange(grid) + 0.5) / grid - 0.5
    along = np.exp(-0.5 * (place / 0.25) ** 2)
    return along[:, None] * along


def interval(values: np.ndarray, seed: int, resamples: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """The bootstrap interval of the mean of `values [B]`: percentiles of the means of images drawn anew with replacement."""
    values, rng = np.asarray(values, float), np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
