"""Metrics of segmentation from a confusion matrix, as mmsegmentation defines them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignored: int = 255) -> np.ndarray:
    """Count pixels by label and prediction, int64 `[C, C]` with a row per label; ignored labels are dropped.

    Args:
      labels, predictions: integers of one shape, below C except for ignored labels.
      ignored: label of ignored pixels.
    """
    counted = labels != ignored
    pairs = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(confusion: np.ndarray, label_absent: str = "zero") -> dict[str, Any]:
    """Compute the scores of a confusion matrix `[C, C]` that is summed over a whole split.

    Args:
      confusion: a row per label, a column per prediction.
      label_absent: how a class counts that is predicted, but in no label: "zero", an IoU of 0, as mmsegmentation has it, or
        "nan", left out of the mean. A class in neither labels nor predictions is always left out.

    Returns:
      `iou [C]` and `class_accuracy [C]`, NaN for classes that are left out; their means `mean_iou` and `mean_class_accuracy`;
      and `pixel_accuracy`. All are fractions; a mean of nothing is NaN.
    """
    counts = confusion.astype(np.float64)
    hits, labelled, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    left_out = labelled == 0 if label_absent == "nan" else labelled + predicted == 0
    iou = _share(hits, np.where(left_out, 0, labelled + predicted - hits))
    accuracy = _share(hits, labelled)
    return {
        "iou": iou,
        "mean_iou": _mean(iou),
        "class_accuracy": accuracy,
        "mean_class_accuracy": _mean(accuracy),
        "pixel_accuracy": float(_share(hits.sum(), labelled.sum())),
    }


def of_split(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Return `scores` by name, with the IoU of each class as `iou/CLASS`, without those that are NaN."""
    values = scores(confusion)
    named = {name: values[name] for name in ("mean_iou", "pixel_accuracy", "mean_class_accuracy")}
    named |= {f"iou/{name}": float(iou) for name, iou in zip(classes, values["iou"], strict=True)}
    return {name: value for name, value in named.items() if np.isfinite(value)}


def _share(part, whole):
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def _mean(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
