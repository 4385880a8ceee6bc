"""Objects on the backgrounds of other images, by hand."""

import numpy as np
import pytest

from toast_jax.analysis import background
from toast_jax.errors import InputError


@pytest.mark.parametrize("labels", ["aabb", "aabbc", "abcabcabc", "aaabbc", "aab", "aaaaaabc"])
def test_no_image_gets_a_background_of_its_class(labels):
    labels = np.array(list(labels))
    drawn = [background.donors(labels, seed) for seed in range(20)]
    for donors in drawn:
        assert (labels[donors] != labels).all()
        if 2 * max(np.unique(labels, return_counts=True)[1]) <= len(labels):
            assert sorted(donors) == list(range(len(labels)))
    assert len({tuple(donors) for donors in drawn}) > 1
    np.testing.assert_array_equal(background.donors(labels, 7), drawn[7])


def test_control_keeps_the_class_and_changes_the_image():
    labels = np.array(list("abacbba"))
    donors = background.donors(labels, 0, same=True)
    assert (labels[donors] == labels).all() and sorted(donors) == list(range(7))
    assert [i for i in range(7) if donors[i] == i] == [3]  # alone in its class


def test_one_class_has_no_other_background():
    with pytest.raises(InputError, match="All images have the same class.*: pass images of two classes or more"):
        background.donors(np.zeros(3), 0)


def test_object_is_painted_over_with_the_nearest_background():
    """The margin of a small image is a pixel: of columns 0 to 5, the object at 2 hides 1 to 3."""
    image = np.broadcast_to(np.array([10, 20, 30, 40, 50, 60], np.uint8)[:, None], (4, 6, 3)).copy()
    mask = np.zeros((4, 6), bool)
    mask[:, 2] = True
    painted = background.without_object(image, mask)
    for row in painted[..., 0].tolist():
        assert row in ([10, 10, 10, 50, 50, 60], [10, 10, 50, 50, 50, 60])  # column 2 is as far from both
    assert (background.without_object(image, np.ones((4, 6), bool)) == (124, 116, 104)).all()


def test_exchange_by_hand():
    """Two images of two classes: each object, a corner of two colors, on the other image's plain background."""
    images = np.stack([np.full((6, 6, 3), 10, np.uint8), np.full((6, 6, 3), 200, np.uint8)])
    masks = np.zeros((2, 6, 6), bool)
    masks[0, :2, :2] = masks[1, 4:, 4:] = True
    images[masks] = np.repeat([[1, 2, 3], [7, 8, 9]], 4, axis=0)
    before = images.copy()
    exchanged, donors = background.exchange(images, masks, np.array([0, 1]), seed=0)
    assert donors.tolist() == [1, 0]
    expected = np.stack([np.full((6, 6, 3), 200, np.uint8), np.full((6, 6, 3), 10, np.uint8)])
    expected[masks] = np.repeat([[1, 2, 3], [7, 8, 9]], 4, axis=0)
    np.testing.assert_array_equal(exchanged, expected)
    np.testing.assert_array_equal(images, before)
    again, itself = background.exchange(images, masks, np.array([0, 1]), seed=0, same=True)
    assert itself.tolist() == [0, 1]
    np.testing.assert_array_equal(again, images)


def test_masks_of_another_size_are_refused_by_name():
    images, labels = np.zeros((3, 4, 6, 3), np.uint8), np.arange(3)
    message = "^The mask of image 1 is 5 x 4, the image 6 x 4: resize the mask to its image.$"
    with pytest.raises(InputError, match=message):
        background.exchange(images, [np.ones((4, 6)), np.ones((4, 5)), np.ones((4, 6))], labels, 0)
    with pytest.raises(InputError, match="There are 3 images and 2 masks: pass one mask for each image."):
        background.exchange(images, np.ones((2, 4, 6)), labels, 0)
