"""Confusion and its scores at the boundaries; `tests/testing/test_segmentation_parity.py` compares with mmsegmentation."""

import numpy as np
import pytest

from toast_jax.train.segmentation import metrics


def test_confusion_has_a_row_per_label_and_drops_ignored_pixels():
    labels, predictions = np.array([[0, 0, 1], [255, 1, 255]], np.uint8), np.array([[0, 2, 1], [1, 1, 2]])
    np.testing.assert_array_equal(metrics.confusion(labels, predictions, 3), [[1, 0, 1], [0, 2, 0], [0, 0, 0]])


def test_a_class_that_is_absent_from_labels_counts_by_either_convention():
    counts = np.array([[1, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    ours, other = metrics.scores(counts), metrics.scores(counts, label_absent="nan")
    np.testing.assert_array_equal(ours["iou"], [0.5, 1, 0, np.nan])
    np.testing.assert_array_equal(other["iou"], [0.5, 1, np.nan, np.nan])
    assert (ours["mean_iou"], other["mean_iou"]) == (0.5, 0.75)
    assert ours["pixel_accuracy"] == other["pixel_accuracy"] == 0.75
    assert ours["mean_class_accuracy"] == 0.75  # of the classes that labels have
    assert metrics.of_split(counts, ("a", "b", "c", "d"))["iou/c"] == 0
    assert "iou/d" not in metrics.of_split(counts, ("a", "b", "c", "d"))


@pytest.mark.parametrize("name", ["mean_iou", "pixel_accuracy", "mean_class_accuracy"])
def test_a_split_without_counted_pixels_has_no_scores(name):
    assert np.isnan(metrics.scores(np.zeros((2, 2), int))[name])


def test_sums_of_confusions_are_the_confusion_of_the_whole():
    rng = np.random.default_rng(0)
    labels, predictions = rng.choice([0, 1, 2, 255], (4, 5, 6)), rng.integers(0, 3, (4, 5, 6))
    parts = sum(metrics.confusion(*pair, 3) for pair in zip(labels, predictions, strict=True))
    np.testing.assert_array_equal(parts, metrics.confusion(labels, predictions, 3))
