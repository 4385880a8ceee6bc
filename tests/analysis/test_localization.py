"""Maps scored against known objects, by hand."""

import numpy as np
import pytest

from toast_jax.analysis import drawing, localization


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


def test_map_of_zeros_scores_as_a_uniform_one():
    mask = np.zeros((2, 4, 4), bool)
    mask[:, :1] = True
    assert localization.energy_inside(np.zeros((2, 2, 2)), mask) == pytest.approx([0.25, 0.25])


def square(top, left, bottom, right, side=8):
    mask = np.zeros((1, side, side), bool)
    mask[0, top:bottom, left:right] = True
    return mask


def test_pointing_game_looks_at_the_centre_of_the_highest_cell():
    maps = np.array([[[1.0, 5.0], [2.0, 0.0]]])  # the centre of its highest cell is at row 2, column 6
    assert localization.pointing_game(maps, square(2, 6, 3, 7)) == [1]
    assert localization.pointing_game(maps, square(0, 4, 2, 8)) == [0]  # half of that cell, but not its centre
    ties = np.array([[[5.0, 5.0], [5.0, 0.0]]])
    assert localization.pointing_game(ties, square(0, 0, 4, 4)) == pytest.approx([1 / 3])
    assert localization.pointing_game(np.ones((1, 2, 2)), square(0, 0, 8, 4)) == [0.5]


def test_iou_at_thresholds_by_hand():
    maps = np.array([[[0.0, 1.0, 2.0, 4.0]] * 4])  # as fine as the image, so nothing is interpolated
    mask = square(0, 2, 4, 4, side=4)
    scores = localization.iou_at_thresholds(maps, mask, np.array([0.0, 0.25, 0.5, 0.51, 1.0]))
    assert scores[0] == pytest.approx([2 / 4, 2 / 3, 2 / 2, 1 / 2, 1 / 2])
    shifted = localization.iou_at_thresholds(3 * maps + 7, mask, np.array([0.0, 0.25, 0.5, 0.51, 1.0]))
    np.testing.assert_array_equal(scores, shifted)


def test_iou_thresholds_the_map_as_it_is_drawn():
    maps = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    drawn = drawing.interpolated(maps[0], 8, 8)
    assert np.ptp(drawn[0]) == 1 and len(np.unique(drawn[0])) > 2
    (score,) = localization.iou_at_thresholds(maps, (drawn >= 0.3)[None], np.array([0.3]))
    assert score == [1.0]


def test_map_without_a_range_is_the_whole_image():
    mask = square(0, 0, 4, 4)
    assert (localization.iou_at_thresholds(np.full((1, 2, 2), 3.0), mask) == 0.25).all()
    assert localization.iou_of_highest(np.full((1, 2, 2), 3.0), mask, 0.1) == [0.25]


def test_iou_of_the_highest_share_by_hand():
    maps = np.arange(16.0).reshape(1, 4, 4)
    mask = square(3, 0, 4, 4, side=4)  # the last row: the four highest
    assert localization.iou_of_highest(maps, mask, 0.25) == [1.0]
    assert localization.iou_of_highest(maps, mask, 0.5) == [0.5]
    assert localization.iou_of_highest(maps, mask, 0.0625) == [0.25]


def test_every_image_is_scored_by_itself():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 4, 4)), rng.random((3, 8, 8)) < 0.4
    scores = [
        localization.energy_inside,
        localization.pointing_game,
        localization.iou_at_thresholds,
        lambda a, b: localization.iou_of_highest(a, b, 0.3),
        localization.jaccard_of_mass,
        localization.box_iou_at_thresholds,
        lambda a, b: localization.max_box_acc(a, b, (0.1, 0.3, 0.5)),
    ]
    for score in scores:
        alone = np.concatenate([score(maps[i : i + 1], masks[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(score(maps, masks), alone, rtol=1e-12)


def test_centre_prior_is_a_gaussian_and_uniform_is_flat():
    prior = localization.centre_prior(4)
    assert prior[1, 1] == prior.max() == prior[2, 2] and prior[0, 0] == prior[3, 3] == prior.min()
    assert prior[0, 1] / prior[1, 1] == pytest.approx(np.exp(-0.5 * (0.375**2 - 0.125**2) / 0.25**2))
    assert np.ptp(localization.uniform(3)) == 0


def test_jaccard_of_the_cells_that_hold_most_of_the_mass():
    """Of a mass of 10 the cells 4 and 3 hold 60 %, and 4, 3 and 2 hold 80 %."""
    maps = np.array([[[4.0, 3.0], [2.0, 1.0]]])
    assert localization.jaccard_of_mass(maps, square(0, 0, 4, 8)) == [1.0]  # the two upper cells
    assert localization.jaccard_of_mass(maps, square(0, 0, 4, 4)) == [0.5]
    assert localization.jaccard_of_mass(maps, square(0, 0, 4, 2)) == [8 / 32]  # pixels, not whole cells
    assert localization.jaccard_of_mass(maps, square(0, 0, 4, 4), 0.4) == [1.0]
    assert localization.jaccard_of_mass(maps, square(0, 0, 8, 8), 0.8) == [0.75]
    ties = np.array([[[4.0, 2.0], [2.0, 2.0]]])  # the first holds 40 %; of the others all or none
    assert localization.jaccard_of_mass(ties, square(0, 0, 8, 8)) == [1.0]
    assert localization.jaccard_of_mass(np.zeros((1, 2, 2)), square(0, 0, 8, 4)) == [0.5]


# As fine as its image, so nothing is interpolated: one component of five pixels (one of them at a corner), one of two.
PIECES = np.array(
    [
        [4.0, 4.0, 0.0, 0.0, 0.0, 0.0],
        [4.0, 4.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 4.0, 0.0, 0.0, 8.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 8.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)[None]


def test_box_of_the_largest_component_by_hand():
    levels = np.array([0.0, 0.5, 0.51])  # everything; both components, of which the first is larger; the second alone
    first, second = square(0, 0, 3, 3, side=6), square(2, 5, 4, 6, side=6)
    assert localization.box_iou_at_thresholds(PIECES, first, levels)[0] == pytest.approx([9 / 36, 1, 0])
    assert localization.box_iou_at_thresholds(PIECES, second, levels)[0] == pytest.approx([2 / 36, 0, 1])
    overlapping = square(1, 1, 5, 4, side=6)  # 12 pixels, four of them in the first box of nine
    assert localization.box_iou_at_thresholds(PIECES, overlapping, levels[1:2])[0] == pytest.approx([4 / 17])
    ring = square(0, 0, 3, 3, side=6)
    ring[0, 1, 1] = False  # its box counts, not its pixels
    assert localization.box_iou_at_thresholds(PIECES, ring, levels[1:2])[0] == [1.0]


def test_max_box_acc_counts_the_overlaps_that_are_reached_each_at_its_threshold():
    half = square(0, 0, 3, 5, side=6)  # an IoU of 9 / 15 with the first box
    assert localization.max_box_acc(PIECES, half, (0.5, 0.5, 0.5)) == pytest.approx([2 / 3])
    assert localization.max_box_acc(PIECES, half, (0.51, 0.5, 0.5)) == pytest.approx([1 / 3])
    assert localization.max_box_acc(PIECES, half, (0.51, 0.51, 0.5)) == [0.0]


def test_each_overlap_has_the_threshold_that_most_images_reach_it_at():
    """Whole images reach 0.3 at the lowest threshold, the first box reaches 0.7 at the next ones; the first best one counts."""
    maps = np.concatenate([PIECES, np.ones((1, 6, 6)), PIECES])
    masks = np.concatenate([square(0, 0, 3, 3, side=6), square(0, 0, 6, 6, side=6), square(0, 0, 6, 5, side=6)])
    best = localization.best_thresholds(maps, masks)
    # At 0 the boxes overlap by 1/4, 1 and 5/6; at 0.05 to 0.5 by 1, 1 and 9/30; above by 0, 1 and 0.
    assert best.boxes == (0.05, 0.0, 0.0)
    scores = localization.scores(maps, masks, best, shares=(0.25,))
    assert scores["MaxBoxAccV2"] == pytest.approx([1 / 3, 1, 1])
    assert scores["IoU, best threshold"] == pytest.approx(
        localization.iou_at_thresholds(maps, masks, np.array([best.region]))[:, 0]
    )
    assert list(scores) == [
        "energy inside",
        "pointing game",
        "IoU, best threshold",
        "IoU of the highest 25%",
        "Jaccard of 60% of the mass",
        "MaxBoxAccV2",
    ]
