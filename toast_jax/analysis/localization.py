"""Localization scores: how much of a map falls on a known object.

Maps are `[B, g, g]` and not negative. Masks are bool `[B, S, S]`, S a multiple of g: the object, or the box around it. Scores
are `[B]`, one per image, from 0 to 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from toast_jax.analysis.drawing import interpolated

THRESHOLDS = np.arange(20) / 20  # as fractions of a map's range
BOX_IOUS = np.array([0.3, 0.5, 0.7])  # of MaxBoxAccV2
_MASS = 0.6
_CHUNK = 256  # images to score at once, to bound memory
_WITHIN_PLANES = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])  # neighbors, diagonal ones too


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of one map, each a fraction of its range.

    Attributes:
      region: of the IoU of object and thresholded map.
      boxes: of MaxBoxAccV2, one for each of `BOX_IOUS`.
    """

    region: float
    boxes: tuple[float, ...]


def best_thresholds(maps: np.ndarray, masks: np.ndarray) -> Thresholds:
    """Choose the thresholds with the highest mean scores over the images."""
    region = THRESHOLDS[_in_chunks(iou_at_thresholds, maps, masks).mean(axis=0).argmax()]
    reached = _in_chunks(box_iou_at_thresholds, maps, masks)[..., None] >= BOX_IOUS
    return Thresholds(float(region), tuple(THRESHOLDS[reached.mean(axis=0).argmax(axis=0)].tolist()))


def scores(maps: np.ndarray, masks: np.ndarray, thresholds: Thresholds, shares: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """Compute every score `[B]` by name; `shares` are those of `iou_of_highest`."""
    at = np.array([thresholds.region])
    by_name: dict[str, Callable] = {
        "energy inside": energy_inside,
        "pointing game": pointing_game,
        "IoU, best threshold": lambda maps, masks: iou_at_thresholds(maps, masks, at)[:, 0],
        **{f"IoU of the highest {share:.0%}": functools.partial(iou_of_highest, share=share) for share in shares},
        f"Jaccard of {_MASS:.0%} of the mass": jaccard_of_mass,
        "MaxBoxAccV2": functools.partial(max_box_acc, thresholds=thresholds.boxes),
    }
    return {name: _in_chunks(score, maps, masks) for name, score in by_name.items()}


def _in_chunks(score, maps, masks):
    starts = range(0, len(maps), _CHUNK)
    return np.concatenate([score(maps[start : start + _CHUNK], masks[start : start + _CHUNK]) for start in starts])


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's sum inside the mask; each cell's value is spread evenly over its pixels.

    A uniform map, or a map of zeros, scores the mask's share of the image.
    """
    count, grid, _ = maps.shape
    cell = masks.shape[1] // grid
    covered = masks.reshape(count, grid, cell, grid, cell).mean(axis=(2, 4))
    maps = _not_zero(maps)
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
    scaled = _scaled(maps, masks)
    return np.stack([_iou(scaled >= threshold, masks) for threshold in thresholds], axis=1)


def iou_of_highest(maps: np.ndarray, masks: np.ndarray, share: float) -> np.ndarray:
    """Return the IoU of the mask and the highest `share` of each map's pixels; ties at the cut are included."""
    fine = _at_pixels(maps, masks)
    count = max(1, round(share * fine.shape[1]))
    lowest = np.sort(fine, axis=1)[:, -count, None]
    return _iou(fine >= lowest, masks)


def jaccard_of_mass(maps: np.ndarray, masks: np.ndarray, share: float = _MASS) -> np.ndarray:
    """Return the IoU of the mask and the fewest cells, highest first, that hold `share` of each map's sum.

    Ties at the cut are included, and a map of zeros is the whole image (Caron et al., arXiv 2104.14294, for one map instead of
    the best head).
    """
    flat = _not_zero(maps).reshape(len(maps), -1)
    falling = -np.sort(-flat, axis=1)
    mass_above = np.cumsum(falling, axis=1) - falling
    count = (mass_above < share * flat.sum(axis=1, keepdims=True)).sum(axis=1)
    lowest = np.take_along_axis(falling, count[:, None] - 1, axis=1)
    cell = masks.shape[1] // maps.shape[1]
    cells = (flat >= lowest).reshape(maps.shape)
    return _iou(cells.repeat(cell, axis=1).repeat(cell, axis=2).reshape(len(maps), -1), masks)


def box_iou_at_thresholds(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Return the IoU of the mask's box and the box of the thresholded map's largest component: `[B, T]`.

    Pixels that touch at a corner are connected. The thresholded map is the one of `iou_at_thresholds`.
    """
    scaled, levels = _scaled(maps, masks).reshape(masks.shape), np.reshape(thresholds, (-1, 1, 1))
    ious = [
        [_box_iou(box, actual) for box in _largest_boxes(values >= levels)]
        for values, actual in zip(scaled, map(_edges, masks), strict=True)
    ]
    return np.array(ious)


def max_box_acc(maps: np.ndarray, masks: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the share of `BOX_IOUS` that the map's box reaches, each at a threshold of its own.

    Choe et al., arXiv 2007.04178, with the box of the largest component alone; their MaxBoxAccV2 takes the best component.
    """
    return (box_iou_at_thresholds(maps, masks, np.array(thresholds)) >= BOX_IOUS).mean(axis=1)


def _largest_boxes(planes):
    """Return the box `(top, left, bottom, right)` of the largest component of each plane of bool `[T, S, S]`."""
    labels, _ = ndimage.label(planes, _WITHIN_PLANES)
    sizes = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    largest = {}
    for k in np.argsort(sizes, kind="stable"):
        plane, rows, columns = boxes[k]
        largest[plane.start] = (rows.start, columns.start, rows.stop, columns.stop)
    return [largest[plane] for plane in range(len(planes))]


def _edges(mask):
    """Return the box `(top, left, bottom, right)` of a mask that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def _box_iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    return shared / (area(a) + area(b) - shared)


def _not_zero(maps):
    """Replace maps of zeros by uniform ones."""
    return np.where(maps.any(axis=(1, 2), keepdims=True), maps, 1.0)


def _scaled(maps, masks):
    """Interpolate maps to pixels and scale each to its range, constant ones to 1: `[B, S * S]`."""
    fine = _at_pixels(maps, masks)
    low, high = fine.min(axis=1, keepdims=True), fine.max(axis=1, keepdims=True)
    return np.where(high > low, (fine - low) / np.where(high > low, high - low, 1.0), 1.0)


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
