"""Colours, overlays, titles and grids of panels."""

import numpy as np
import pytest

from toast_jax.analysis import drawing


def test_colours_go_from_dark_blue_to_yellow():
    picture = drawing.coloured(np.linspace(-3, 5, 50)[None])
    assert tuple(picture[0, 0]) == (68, 1, 84) and tuple(picture[0, -1]) == (253, 231, 37)
    brightness = picture[0].astype(float) @ [0.299, 0.587, 0.114]
    assert np.all(np.diff(brightness) > 0)
    assert np.ptp(drawing.coloured(np.ones((2, 2))), axis=(0, 1)).max() == 0


def test_differences_are_white_at_zero_and_as_strong_on_both_sides():
    values = np.array([[-2.0, -1.0, 0.0, 1.0, 0.5]])
    colours = drawing.coloured_difference(values)[0].astype(int)
    assert tuple(colours[0]) == (94, 60, 153) and tuple(colours[2]) == (247, 247, 247)
    assert tuple(colours[1]) == (178, 171, 210) and tuple(colours[3]) == (253, 184, 99)
    assert tuple(drawing.coloured_difference(-values)[0, 0]) == (230, 97, 1)
    assert (drawing.coloured_difference(np.zeros((2, 2))) == 247).all()


def test_overlay_is_brightest_where_the_map_is_highest():
    values = np.zeros((4, 4))
    values[1, 2] = 1
    picture = drawing.overlay(np.zeros((32, 32, 3), np.uint8), values).astype(int).sum(-1)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert (row // 8, column // 8) == (1, 2)
    same = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(drawing.overlay(same, values, strength=0.0), same)
    full = drawing.overlay(same, -values, strength=1.0, colours=drawing.coloured_difference)
    np.testing.assert_array_equal(full, drawing.coloured_difference(drawing.interpolated(-values, 8, 8)))


def test_interpolation_keeps_the_values_of_the_centres():
    values = np.array([[1.0, 3.0], [5.0, 9.0]])
    fine = drawing.interpolated(values, 6, 6)
    np.testing.assert_allclose(fine[1::3, 1::3], values)
    assert fine[1, 2] == pytest.approx(1 + 2 / 3) and fine[0, 0] == 1


@pytest.mark.parametrize(("side", "times"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_enlarging_repeats_pixels(side, times):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    large = drawing.enlarged(image, side)
    assert large.shape == (4 * times, 5 * times, 3)
    np.testing.assert_array_equal(large[::times, ::times], image)


def test_title_is_above_its_panel_and_takes_the_same_room_for_every_text():
    panel = np.full((10, 90, 3), 7, np.uint8)
    shapes = set()
    for title in ("", "short", "quite a long title of many words that do not fit into two lines", "w" * 80):
        drawn = drawing.titled(panel, title)
        np.testing.assert_array_equal(drawn[-10:], panel)
        assert (drawn[:-10].min() < 128) == bool(title) and (drawn[:-10, -1] == 255).all()
        shapes.add(drawn.shape)
    assert len(shapes) == 1


@pytest.mark.parametrize("width", [1, 15])
def test_a_panel_narrower_than_any_title_has_the_room_for_one(width):
    panel = np.full((10, width, 3), 7, np.uint8)
    drawn = drawing.titled(panel, "last look", 1)
    assert drawn.shape == drawing.titled(np.zeros((10, 90, 3), np.uint8), "", 1)[:, :width].shape
    np.testing.assert_array_equal(drawn[-10:], panel)


def test_panels_of_other_sizes_are_filled_up_with_white():
    black, grey = np.zeros((3, 5, 3), np.uint8), np.full((2, 4, 3), 9, np.uint8)
    below = drawing.stacked([black, grey])
    assert below.shape == (3 + 4 + 2, 5, 3) and (below[3:7] == 255).all() and (below[7:, 4] == 255).all()
    beside = drawing.side_by_side([black, grey])
    assert beside.shape == (3, 5 + 4 + 4, 3) and (beside[2, 9:] == 255).all() and (beside[:2, 9:] == 9).all()
