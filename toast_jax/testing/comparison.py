"""How close a value is to a recorded one."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Check:
    """Holds one compared quantity."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def relative_error(value, recorded) -> float:
    """Compute `max|value - recorded| / max|recorded|`; infinite if shapes differ or a value is not finite."""
    value, recorded = np.asarray(value, np.float64), np.asarray(recorded, np.float64)
    if value.shape != recorded.shape or not np.isfinite(value).all():
        return float("inf")
    return float(np.abs(value - recorded).max() / max(np.abs(recorded).max(), 1e-30))
