"""Masks and looks of several networks in one table of pictures."""

import re

import numpy as np
import pytest

from toast_jax.analysis import maps
from toast_jax.analysis.segmentation import pictures
from toast_jax.analysis.segmentation.looks import Segmented

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, sides, dtype=np.uint8) for sides in ((8, 8, 3), (30, 40, 3))]
TRUTHS = [RNG.integers(0, 3, image.shape[:2]).astype(np.uint8) for image in IMAGES]
FIRST = RNG.random((2, 4, 4))


def looked(*names, factor=1.0):
    values = {name: RNG.random((2, 4, 4)) for name in names} | ({maps.FIRST: factor * FIRST} if maps.FIRST in names else {})
    return [Segmented(TRUTHS[i], {name: value[i] for name, value in values.items()}) for i in range(2)]


def table(truths, **networks):
    text = pictures.grid(IMAGES, ["a", "b"], truths, networks, pictures.colors(3), side=16)
    return text, re.findall("<th>(.*?)</th>", text)


def test_a_row_has_the_image_its_mask_a_shared_first_look_and_the_panels_of_each_network():
    text, header = table(TRUTHS, toast=looked(*maps.ORDER), toast_lite=looked(*maps.ORDER), linear=looked(maps.LAST))
    shown = [f"{name}: {panel}" for name in ("toast", "toast lite") for panel in ("prediction", "selection", "last look")]
    assert header == ["image", "mask", "first look", *shown, "linear: prediction", "linear: last look"]
    assert text.count("<img") == 2 * len(header) and text.count("mIoU 100%") == 2 * 3
    assert set(re.findall(r'width="(\d+)" height="(\d+)"', text)) == {("16", "16"), ("20", "15")}  # of 8 x 8 and 40 x 30


def test_first_looks_that_differ_stand_with_their_networks_and_images_may_have_no_mask():
    text, header = table([None, None], a=looked(maps.FIRST), b=looked(maps.FIRST, factor=2.0))
    assert header == ["image", "a: prediction", "a: first look", "b: prediction", "b: first look"] and "mIoU" not in text


def test_an_image_whose_pixels_are_all_ignored_has_no_score():
    ignored = np.full_like(TRUTHS[0], 255)
    assert pictures.agreement(ignored, TRUTHS[0], 3) is None and pictures.agreement(None, TRUTHS[0], 3) is None
    text, _ = table([ignored, TRUTHS[1]], a=looked(maps.LAST))
    assert text.count("mIoU") == text.count("mIoU 100%") == 1


def test_ignored_pixels_keep_their_color_and_do_not_count():
    labels = TRUTHS[0].copy()
    labels[:2] = 255
    painted = pictures.painted(IMAGES[0], labels, pictures.colors(3))
    np.testing.assert_array_equal(painted[:2], IMAGES[0][:2])
    np.testing.assert_array_equal(painted[2:], (0.4 * IMAGES[0] + 0.6 * pictures.colors(3)[TRUTHS[0]]).round()[2:])
    other = TRUTHS[0].copy()
    other[:2] = (other[:2] + 1) % 3
    assert pictures.agreement(labels, other, 3) == 1.0 and pictures.agreement(TRUTHS[0], other, 3) < 1
    assert pictures.agreement(np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 2]], np.uint8), 3) == pytest.approx(0.75)


def test_an_image_all_of_whose_pixels_are_ignored_has_no_score():
    ignored = np.full_like(TRUTHS[0], 255)
    assert pictures.agreement(ignored, TRUTHS[0], 3) is None
    text, header = table([ignored, TRUTHS[1]], linear=looked())
    assert header[:2] == ["image", "mask"] and text.count("mIoU") == text.count("mIoU 100%") == 1
