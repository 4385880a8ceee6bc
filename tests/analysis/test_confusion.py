"""Counts of what is taken for what, told in a few lines and saved whole."""

import csv

import numpy as np

from toast_jax.analysis import confusion

CLASSES = ("heron", "kite", "owl")
COUNTS = np.array([[3, 1, 0], [2, 1, 1], [0, 0, 4]])


def test_summary_names_the_worst_first():
    assert confusion.summary(COUNTS, CLASSES).splitlines() == [
        "Confused most often:",
        "  kite taken for heron: 2 of 4",
        "  heron taken for kite: 1 of 4",
        "  kite taken for owl: 1 of 4",
        "Recognised least:",
        "  kite: 1 of 4 (25%)",
        "  heron: 3 of 4 (75%)",
    ]
    assert confusion.summary(COUNTS, CLASSES, most=1).count("\n") == 3


def test_summary_of_a_perfect_network():
    assert confusion.summary(np.diag([2, 0, 5]), CLASSES) == "No image is taken for another class."


def test_class_without_images_is_left_out():
    counts = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 4]])
    assert "  kite:" not in confusion.summary(counts, CLASSES)


def test_file_has_a_row_for_each_true_class(tmp_path):
    confusion.write(tmp_path / "c.csv", COUNTS, CLASSES)
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[int(row[name]) for name in CLASSES] for row in rows] == COUNTS.tolist()
    assert [row["true class"] for row in rows] == list(CLASSES)
