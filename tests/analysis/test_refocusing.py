"""All measures of one network, by hand: networks that name the color of the object, or of the background."""

import numpy as np
import pytest

from toast_jax.analysis import comparison, maps, refocusing
from toast_jax.errors import InputError

COLORS = np.array([0, 60, 120, 180])  # of the classes
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])


def scenes(labels=LABELS):
    """Gray 4 x 4 images in the color of their class; the object, the upper left quarter, is brighter by 9."""
    images = np.broadcast_to(COLORS[labels][:, None, None, None], (len(labels), 4, 4, 3)).astype(np.uint8)
    masks = np.zeros(images.shape[:3], bool)
    masks[:, :2, :2] = True
    return refocusing.Annotated(images + 9 * masks[..., None].astype(np.uint8), masks, labels)


@pytest.fixture
def networks(monkeypatch):
    """Stands for the networks of runs, here the row and column of the pixel that they read."""

    def in_batches(pixel, function, batch_size, images, labels=None):
        logits = -np.abs(images[:, pixel, pixel, :1].astype(int) - COLORS)
        if function is not maps.look_to_measure:
            return logits
        inside, outside = np.zeros((2, len(images), 2, 2))
        inside[:, 0, 0] = 3.0
        outside[:, 1, 1] = 1.0
        seen = {maps.FIRST: inside + 3 * outside, maps.LAST: inside + outside, maps.SELECTION: inside, maps.ROLLOUT: outside}
        if pixel == 0:
            seen[maps.FIRST_ROLLOUT] = inside
        return logits, dict(sorted(seen.items()))

    monkeypatch.setattr(comparison, "in_batches", in_batches)


def test_one_network_that_follows_the_object_and_one_that_follows_the_background(networks):
    follows_object, follows_background = (refocusing.measure(pixel, scenes()) for pixel in (0, 3))
    for network in (follows_object, follows_background):
        np.testing.assert_array_equal(network.predicted, LABELS)
    shares = {name: values.mean() for name, values in follows_object.exchange.items()}
    assert shares == {
        refocusing.ACCURACY: 1,
        refocusing.OTHER: 1,
        refocusing.DROP: 0,
        refocusing.SAME: 1,
        refocusing.GAP: 0,
        refocusing.FOLLOWED: 0,
    }
    shares = {name: values.mean() for name, values in follows_background.exchange.items()}
    assert shares == {
        refocusing.ACCURACY: 1,
        refocusing.OTHER: 0,
        refocusing.DROP: 1,
        refocusing.SAME: 1,
        refocusing.GAP: 1,
        refocusing.FOLLOWED: 1,
    }


def test_looks_are_compared_image_by_image(networks):
    measured = refocusing.measure(0, scenes())
    assert list(measured.seen) == [maps.FIRST, maps.SELECTION, maps.LAST, maps.FIRST_ROLLOUT, maps.ROLLOUT]
    summary = measured.summary(seed=0)
    assert summary["maps"][maps.FIRST]["energy inside"] == {"mean": 0.5, "interval": (0.5, 0.5)}
    assert summary["refocused"]["attention"]["energy inside"] == {"mean": 0.25, "interval": (0.25, 0.25)}
    assert summary["refocused"]["attention"]["pointing game"]["mean"] == 0.5  # ties before, the object after
    assert summary["refocused"][maps.ROLLOUT]["energy inside"]["mean"] == -1
    assert set(summary["refocused"]) == {"attention", maps.ROLLOUT}
    assert summary["exchange"][refocusing.DROP] == {"mean": 0.0, "interval": (0.0, 0.0)}


def test_thresholds_are_those_of_val(networks, monkeypatch):
    asked = []
    scored = refocusing.scored
    monkeypatch.setattr(refocusing, "scored", lambda *args: asked.append(args) or scored(*args))
    val = scenes(LABELS[:3])
    refocusing.measure(0, scenes(), val, shares=(0.5,))
    ((seen, masks, seen_on_val, of_val, shares),) = asked
    assert (len(masks), len(seen[maps.LAST]), len(seen_on_val[maps.LAST]), shares) == (8, 8, 3, (0.5,)) and of_val is val


def test_images_of_one_class_or_of_none_have_no_exchanged_backgrounds(networks):
    one, unknown = np.zeros(4, int), np.array([0, 1, -1])
    for labels in (one, unknown):
        annotated = scenes(labels)
        assert not annotated.exchangeable and refocusing.measure(0, annotated).summary()["exchange"] == {}


def test_masks_that_do_not_fit_are_refused():
    good = scenes()
    with pytest.raises(InputError, match="The mask of image 0 is 3 x 4, the image 4 x 4: resize the mask to its image."):
        refocusing.Annotated(good.images, good.masks[:, :, :3], good.labels)
    empty = good.masks.copy()
    empty[2] = False
    with pytest.raises(InputError, match="The mask of image 2 is empty: leave out images without an object."):
        refocusing.Annotated(good.images, empty, good.labels)
