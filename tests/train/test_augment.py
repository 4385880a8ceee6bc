"""What training does to a batch on the device: against slow statements of each, and the same on any number of devices."""

import functools

import jax
import numpy as np
import pytest

from tests.conftest import tiny_config
from toast_jax.data.images.image_files import Files
from toast_jax.train import augment, image_runs

SIDE, CLASSES, MANY = 16, 5, 64
NONE = {"num_classes": CLASSES, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0}


def keys(count=MANY, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def batch():
    """Images of one value each, so that what comes from where can be told; uint8, as the data comes."""
    values = np.arange(MANY, dtype=np.uint8) * 3
    images = np.broadcast_to(values[:, None, None, None], (MANY, SIDE, SIDE, 3)).copy()
    return {"image": images, "label": np.arange(MANY, dtype=np.int32) % CLASSES, "mask": np.ones(MANY, np.float32)}


def augmented(seed=0, given=None, **fields):
    out = augment.augment(given or batch(), keys(seed=seed), **{**NONE, **fields})
    return jax.tree.map(np.asarray, out)


def values(images):
    """The value of each normalised image's corner, back in 0 to 255."""
    mean, std = np.array(augment.normalize(np.zeros((3,), np.uint8))), np.array(augment.normalize(np.full((3,), 255, np.uint8)))
    return (images - mean) / (std - mean) * 255


def test_nothing_asked_for_changes_nothing():
    out = augmented()
    assert out.keys() == batch().keys()
    np.testing.assert_array_equal(out["image"], batch()["image"])


def test_smoothing_spreads_a_share_of_the_label_evenly():
    out = augmented(smoothing=0.2)
    expected = np.full((MANY, CLASSES), 0.2 / CLASSES)
    expected[np.arange(MANY), batch()["label"]] += 0.8
    np.testing.assert_allclose(out["target"], expected, rtol=1e-6)
    np.testing.assert_array_equal(out["image"], batch()["image"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_neighbours_and_their_labels_alike(smoothing):
    out = augmented(mixup=0.8, smoothing=smoothing)
    shown, labels = values(out["image"]), batch()["label"]
    np.testing.assert_allclose(shown, np.broadcast_to(shown[:, :1, :1, :], shown.shape), atol=1e-2)
    own, other = batch()["image"][:, 0, 0, 0].astype(float), batch()["image"][:, 0, 0, 0].reshape(-1, 2)[:, ::-1].reshape(-1)
    share = (shown[:, 0, 0, 0] - other) / (own - other)
    assert share.min() > -1e-2 and share.max() < 1.01 and share.std() > 0.2
    np.testing.assert_allclose(share[::2], share[1::2], atol=1e-2)
    onehot = np.eye(CLASSES) * (1 - smoothing) + smoothing / CLASSES
    partner = labels.reshape(-1, 2)[:, ::-1].reshape(-1)
    expected = share[:, None] * onehot[labels] + (1 - share[:, None]) * onehot[partner]
    np.testing.assert_allclose(out["target"], expected, atol=1e-2)


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    out = augmented(cutmix=1.0)
    shown = values(out["image"]).round().astype(int)[..., 0]
    own = batch()["image"][:, 0, 0, 0].astype(int)
    other = own.reshape(-1, 2)[:, ::-1].reshape(-1)
    shares = []
    for i in range(MANY):
        pasted = shown[i] == other[i]
        assert np.all(pasted | (shown[i] == own[i]))
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert pasted.sum() == len(rows) * len(columns)  # a rectangle
        shares.append(1 - pasted.mean())
        np.testing.assert_allclose(out["target"][i, batch()["label"][i]], shares[-1], atol=1e-6)
        np.testing.assert_allclose(out["target"][i].sum(), 1, atol=1e-6)
    assert np.std(shares) > 0.1 and 0.4 < np.mean(shares) < 0.9


def test_both_mix_half_of_the_pairs_each():
    shown = values(augmented(mixup=1.0, cutmix=1.0)["image"])[..., 0]
    blended = np.array([np.ptp(image) < 0.1 for image in shown]).reshape(-1, 2)
    assert np.all(blended[:, 0] == blended[:, 1])
    assert 8 <= blended[:, 0].sum() <= 26  # of 32 pairs; a paste of nothing, or of all, looks like a blend


def test_erasing_puts_noise_in_a_rectangle():
    out = augmented(erasing=1.0)["image"]
    areas = []
    for before, after in zip(np.asarray(augment.normalize(batch()["image"])), out, strict=True):
        changed = (before != after).all(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle
        assert np.ptp(after[changed]) > 0 or changed.sum() == 1
        areas.append(changed.mean())
    assert 0.005 < min(areas) and max(areas) < 0.45 and 0.1 < np.mean(areas) < 0.25


@pytest.mark.parametrize(("probability", "low", "high"), [(0.25, 6, 28), (0.75, 36, 58)])
def test_erasing_happens_as_often_as_said(probability, low, high):
    out = augmented(erasing=probability)["image"]
    changed = (out != np.asarray(augment.normalize(batch()["image"]))).any((1, 2, 3))
    assert low <= changed.sum() <= high


def test_noise_is_standard_normal():
    noise = augment.erase(np.full((64, 64, 3), 9.0, np.float32), jax.random.key(3), 1.0)
    noise = np.asarray(noise)[np.asarray(noise) != 9.0]
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.1


def test_parts_of_a_batch_are_augmented_as_the_whole():
    """Per-example keys: two devices with a half each see what one sees."""
    fields = {**NONE, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}
    whole = augment.augment(batch(), keys(), **fields)
    for part in (slice(0, 32), slice(32, 64)):
        half = augment.augment({name: array[part] for name, array in batch().items()}, keys()[part], **fields)
        for name in whole:
            np.testing.assert_array_equal(whole[name][part], half[name])


def test_another_key_is_another_augmentation():
    fields = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}
    assert not np.array_equal(augmented(0, **fields)["image"], augmented(1, **fields)["image"])


# A degraded view beside the clean one.


@jax.jit
def degraded(images, keys, strength):
    return jax.vmap(functools.partial(augment.degrade, strength=strength))(images, keys)


def noise_images():
    return np.random.default_rng(0).normal(size=(MANY, SIDE, SIDE, 3)).astype(np.float32)


def test_the_clean_view_is_the_batch_without_degradation():
    fields = {**NONE, "mixup": 0.8, "degradation": 0.5}
    mixed, out = augmented(mixup=0.8), jax.jit(functools.partial(augment.augment, **fields))(batch(), keys())
    assert out.keys() == {*mixed, "clean"}
    np.testing.assert_allclose(out["clean"], mixed["image"], atol=1e-5)
    np.testing.assert_allclose(out["target"], mixed["target"], atol=1e-5)
    own = jax.vmap(lambda key: jax.random.fold_in(key, 102))(keys())  # neither those of mixing nor those of the network
    np.testing.assert_allclose(out["image"], degraded(mixed["image"], own, 0.5), atol=1e-4)


def test_pixels_that_are_not_normalised_yet_are_kept_for_the_clean_view():
    shapes = jax.eval_shape(functools.partial(augment.augment, **{**NONE, "degradation": 0.5}), batch(), keys())
    assert (shapes["clean"].dtype, shapes["image"].dtype) == (np.uint8, np.float32)
    assert shapes["clean"].shape == shapes["image"].shape == batch()["image"].shape


@pytest.mark.parametrize(("stage", "weight"), [("pretune", 1.0), ("pretune", 0.0), ("tune", 1.0)])
def test_a_run_degrades_images_for_the_distillation_loss_alone(stage, weight):
    config = tiny_config("", "toast")
    config.stage, config.distillation_weight = stage, weight
    out = jax.eval_shape(image_runs.augmentation(config, Files((), (), ("a", "b"))), batch(), keys())
    assert ("clean" in out) == (stage == "pretune" and weight > 0)


def test_an_example_is_degraded_by_its_key_alone():
    images = noise_images()
    reversed_order = degraded(images[::-1], keys()[::-1], 0.7)[::-1]
    np.testing.assert_array_equal(degraded(images, keys(), 0.7), reversed_order)
    assert not np.array_equal(degraded(images, keys(seed=1), 0.7), reversed_order)


def test_no_strength_leaves_the_image_and_more_strength_changes_more():
    images = np.kron(noise_images()[:, :4, :4], np.ones((1, 4, 4, 1), np.float32))
    np.testing.assert_allclose(degraded(images, keys(), 0.0), images, atol=1e-5)
    changes = [np.abs(degraded(images, keys(), strength) - images).mean() for strength in (0.1, 0.5, 1.0)]
    assert changes[0] < 0.7 * changes[1] and changes[1] < 0.9 * changes[2]


def test_all_but_a_rectangle_is_hidden():
    shares = []
    for image in np.asarray(degraded(noise_images(), keys(), 1.0)):
        shown = (image != 0).all(-1)
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        assert shown.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        shares.append(shown.mean())
    assert 0.2 < min(shares) < 0.35 and 0.85 < max(shares) and 0.5 < np.mean(shares) < 0.75


def test_lower_resolution_keeps_places_and_loses_detail():
    """A ramp stays a ramp; of stripes one pixel wide nothing is left at a quarter of the resolution."""
    blur = jax.jit(augment._blur, static_argnums=0)
    ramp = np.arange(32.0)
    for scale, contrast in ((1.0, 1.0), (0.7, 0.8), (0.25, 0.1)):
        matrix = np.asarray(blur(32, scale))
        np.testing.assert_allclose(matrix @ np.ones(32), 1, atol=1e-5)
        np.testing.assert_allclose((matrix @ ramp)[6:-6], ramp[6:-6], atol=0.35)
        assert (matrix @ (ramp % 2))[6:-6].std() <= 0.5 * contrast
