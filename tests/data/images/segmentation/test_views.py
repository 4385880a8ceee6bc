"""Views of images with labels, and the matrices that bring logits back to their pixels."""

import numpy as np
import pytest

from tests.data.images.segmentation import small_set
from toast_jax.data.images.segmentation import batches, masks, views
from toast_jax.data.images.segmentation.bilinear import interpolation

CLASSES = small_set.CLASSES


def train_view(**changes):
    fields = {"scale": (48, 32), "factors": (0.5, 2.0), "crop": (24, 32), "flip": True, "distort": True}
    return views.TrainView(**fields | changes)


def test_labels_stay_with_their_pixels():
    """Two colors that differ by hue alone: the labels can be read from the view."""
    rng = np.random.default_rng(0)
    labels = (rng.random((6, 8)) < 0.5).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.where(labels[..., None] == 1, [200, 40, 40], [40, 40, 200]).astype(np.uint8)
    agreed = []
    for seed in range(20):
        view, seen, (height, width) = train_view()(image, labels, np.random.default_rng(seed))
        assert view.shape == (24, 32, 3) and seen.shape == (24, 32) and view.dtype == seen.dtype == np.uint8
        part = slice(height), slice(width)
        assert (seen == 255).sum() == seen.size - height * width and (view[height:] == 0).all() and (view[:, width:] == 0).all()
        agreed.append(((view[part][..., 0] > view[part][..., 2]) == seen[part]).mean())
    assert min(agreed) > 0.8 and np.mean(agreed) > 0.9


def test_a_crop_of_several_classes_is_preferred():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 48:] = 1
    view = train_view(scale=(64, 64), factors=(1.0, 1.0), crop=(16, 16), flip=False, distort=False)
    image = np.zeros((64, 64, 3), np.uint8)
    mixed = [len(np.unique(view(image, labels, np.random.default_rng(seed))[1])) for seed in range(40)]
    assert np.mean(np.array(mixed) == 2) > 0.7  # a single crop has both classes in 29 %


def test_resizing_has_the_places_of_opencv():
    np.testing.assert_array_equal(views.resize_labels(np.array([[0, 1, 2, 3, 4]]), (1, 3)), [[0, 1, 3]])
    image = np.array([[[0] * 3, [100] * 3]], np.uint8)
    np.testing.assert_array_equal(views.resize(image, (1, 4))[0, :, 0], [0, 25, 75, 100])
    np.testing.assert_allclose(interpolation(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


@pytest.mark.parametrize(("window", "count"), [((0, 0), (1, 1)), ((16, 16), (2, 3))])
def test_logits_of_pixels_are_those_of_the_reference_computed_in_steps(window, count):
    """Upsample to the window, average overlapping windows, upsample to the image; padding of windows is stretched."""
    view = views.EvalView((60, 30), window, (10, 10), multiple=8, cell=4, canvas=64)
    rng, sides = np.random.default_rng(0), (20, 27)
    arrays = view(*(array[:20, :27] for array in small_set.scene(rng, (32, 32))))
    height, width = masks.fitted(sides, view.scale)
    rows, columns, padded_height, padded_width, _ = arrays["image"].shape
    assert (height, width) == (30, 41) if window == (0, 0) else (rows, columns) == (3, 4)
    logits = rng.normal(size=(rows, columns, padded_height // 4, padded_width // 4))
    total, covered = np.zeros((height, width)), np.zeros((height, width))
    side = [min(own or length, length) for own, length in zip(window, (height, width), strict=True)]
    for i in range(rows):
        for j in range(columns):
            top, left = min(i * 10, height - side[0]), min(j * 10, width - side[1])
            up, along = (interpolation(n, m) for n, m in zip(logits.shape[2:], side, strict=True))
            total[top : top + side[0], left : left + side[1]] += up @ logits[i, j] @ along.T
            covered[top : top + side[0], left : left + side[1]] += 1
    assert covered.min() > 0
    expected = interpolation(height, 20) @ (total / covered) @ interpolation(width, 27).T
    joined = logits.transpose(0, 2, 1, 3).reshape(logits.shape[0] * logits.shape[2], -1)
    result = arrays["rows"] @ joined @ arrays["columns"].T
    np.testing.assert_allclose(result[:20, :27], expected, atol=1e-5)
    assert result.shape == arrays["label"].shape == (64, 64) and (arrays["label"][20:] == 255).all()
    assert view.shapes(sides) == tuple(zip(arrays["image"].shape[:2], arrays["image"].shape[2:4], (64, 64), strict=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = small_set.write(tmp_path_factory.mktemp("set"), {"train": 7})
    names = [f"train_{i}.png" for i in range(7)]
    files = {part: tuple(str(root / part / name) for name in names) for part in ("images", "masks")}
    return masks.MaskedImages(files["images"], files["masks"], CLASSES, (0, 1, 2))


def test_a_batch_depends_on_its_number_and_the_seed_alone(source):
    fields = {"view": train_view(), "batch_size": 2, "steps": 8, "seed": 3}
    every = list(batches.train_batches(source, **fields))
    assert len(every) == 8 and every[0]["image"].shape == (2, 24, 32, 3) and every[0]["label"].shape == (2, 24, 32)
    assert len({index for batch in every[:3] for index in batch["index"].tolist()}) == 6  # a pass of three whole batches
    later = list(batches.train_batches(source, **fields, start_step=5))
    second = list(batches.train_batches(source, **fields, shard=(1, 2)))
    for batch, other in zip(every[5:], later, strict=True):
        assert all((batch[name] == other[name]).all() for name in batch)
    assert all((batch["image"][1:] == other["image"]).all() for batch, other in zip(every, second, strict=True))
    assert (next(batches.train_batches(source, **fields | {"seed": 4}))["image"] != every[0]["image"]).any()


def test_an_evaluation_has_every_image_once_and_one_shape_a_batch(source):
    view = views.EvalView((60, 30), (0, 0), (1, 1), multiple=8, cell=4, canvas=64)
    every = list(batches.eval_batches(source, view=view, batch_size=2))
    counted = [index for batch in every for index in batch["index"].tolist() if index >= 0]
    assert sorted(counted) == list(range(7)) and len({batch["image"].shape for batch in every}) == 3
    for batch in every:
        assert ((batch["index"] < 0) == (batch["mask"] == 0)).all() and (batch["label"][batch["mask"] == 0] == 255).all()
