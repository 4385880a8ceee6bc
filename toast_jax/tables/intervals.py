"""Bootstrap intervals of means over seeds and test images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLED = 2_000


class Interval(NamedTuple):
    """A mean and the ends of its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float


class Resampler:
    """Resamples seeds and images alike wherever their numbers are alike, from a fixed seed, so that intervals repeat."""

    def __init__(self) -> None:
        self._drawn: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}

    def interval(self, tasks: Sequence[np.ndarray]) -> Interval:
        """Estimate the mean over tasks, and its interval.

        Args:
          tasks: for each task values `[seeds, images]`. Seeds and images are resampled, independently of each other and in each
            task; tasks are not.
        """
        means = np.mean([self._means(number, values) for number, values in enumerate(tasks)], axis=0)
        low, high = np.percentile(means, [2.5, 97.5])
        return Interval(float(np.mean([values.mean() for values in tasks])), float(low), float(high))

    def _means(self, number, values):
        """Return the mean of every resample, `[resamples]`."""
        seeds, images = self._weights(number, *values.shape)
        return np.einsum("rs,sn,rn->r", seeds, values, images, optimize=True)

    def _weights(self, number, num_seeds, num_images):
        """Return the weights of seeds `[resamples, seeds]` and of images `[resamples, images]`, which sum to 1."""
        key = number, num_seeds, num_images
        if key not in self._drawn:
            rng = np.random.default_rng(key)
            counts = [rng.multinomial(n, np.full(n, 1 / n), _RESAMPLED) / n for n in (num_seeds, num_images)]
            self._drawn[key] = counts[0], counts[1].astype(np.float32)
        return self._drawn[key]
