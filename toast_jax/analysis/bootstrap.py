"""Bootstrap intervals of means over images.

Networks, and the two looks of one network, see the same images. The mean of the difference per image has a narrower interval
than the two means suggest, as an image that is hard for both cancels.
"""

from collections.abc import Mapping

import numpy as np

_RESAMPLES = 10_000
_DRAWN = 2_000_000  # indices to draw at once, to bound memory


def interval(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values [n]`, resampled over images."""
    low, high = _percentiles(np.asarray(values, float)[:, None], seed, level)
    return float(low[0]), float(high[0])


def summary(scores: Mapping[str, np.ndarray], seed: int) -> dict[str, dict]:
    """Return the mean and 95 % interval of each score `[n]`; all scores share the resamples."""
    if not scores:
        return {}
    low, high = _percentiles(np.stack(list(scores.values()), axis=1).astype(float), seed, 0.95)
    return {
        name: {"mean": float(np.mean(values)), "interval": (float(low[k]), float(high[k]))}
        for k, (name, values) in enumerate(scores.items())
    }


def difference(after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Subtract the scores `[n]` of the same images, image by image."""
    return {name: np.subtract(values, before[name], dtype=float) for name, values in after.items()}


def _percentiles(values, seed, level):
    """Return the bounds of the means of `values [n, K]`: `[2, K]`."""
    count, rng = len(values), np.random.default_rng(seed)
    rows = max(1, _DRAWN // count)
    means = []
    for start in range(0, _RESAMPLES, rows):
        drawn = rng.integers(count, size=(min(rows, _RESAMPLES - start), count))
        drawn += count * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # how often each image was drawn
        means.append(times @ values / count)
    return np.percentile(np.concatenate(means), [50 * (1 - level), 50 * (1 + level)], axis=0)
