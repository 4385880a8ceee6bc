"""Maps scored against known objects, by hand."""

import numpy as np
import pytest

from toast_jax import localization


def test_box_is_the_smallest_around_a_mask():
    mask = np.zeros((6, 8), bool)
    mask[1, 2] = mask[4, 5] = True
    box = localization.box_of(mask)
    assert box.sum() == 4 * 4 and box[1:5, 2:6].all()
    assert not localization.box_of(np.zeros((3, 3), bool)).any()


def test_energy_counts_the_covered_part_of_each_cell():
    maps = np.array([[[1.0, 0.0], [0.0, 3.0]]])
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 0, :2] = True  # half of the first cell
    masks[0, 2:, 2:] = True  # all of the last
    assert localization.energy_inside(maps, masks) == pytest.approx([(0.5 * 1 + 3) / 4])


def test_uniform_map_scores_the_area():
    mask = np.random.default_rng(0).random((5, 12, 12)) < 0.3
    scores = localization.energy_inside(np.ones((5, 3, 3)), mask)
    np.testing.assert_allclose(scores, mask.mean(axis=(1, 2)))
