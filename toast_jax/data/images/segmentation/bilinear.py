"""Bilinear resizing along one axis, as PyTorch does with `align_corners=False`."""

import numpy as np


def interpolation(length: int, size: int) -> np.ndarray:
    """Return the matrix float64 [size, length] that resizes `length` values bilinearly to `size` (`align_corners=False`)."""
    before, after, share = neighbors(length, size)
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size), before), 1 - share)
    np.add.at(matrix, (np.arange(size), after), share)
    return matrix


def neighbors(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the value before and after each of `size` places along `length` values, and the distance from the first."""
    centers = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    before = np.floor(centers).astype(int)
    return before, np.minimum(before + 1, length - 1), centers - before
