"""Corruptions: known values, rising severities, the same pictures every time; and the task that evaluates on them."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import corrupt as corruptions_config
from tests.conftest import CLASSES, COUNTS, tiny_config
from toast_jax.analysis import views as analysis_views
from toast_jax.data.images import corruptions, pixels, selected
from toast_jax.data.images.corruptions import CORRUPTIONS
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.tasks import corruptions as task
from toast_jax.train import saved_run

ROUGHER = {("fog", 3)}  # severity 4 is rougher than 3, not thicker


@pytest.fixture(scope="module")
def photos():
    """Smooth shapes with edges and texture, of the side that the published strengths are for."""
    made = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        layers = [Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)) for cells in (6, 50)]
        coarse, fine = (np.asarray(one.resize((224, 224), Image.Resampling.BICUBIC)).astype(int) for one in layers)
        picture = (3 * coarse + fine) // 4
        picture[71:143, 30 + 21 * seed : 113 + 22 * seed] //= 3
        made.append(picture.astype(np.uint8))
    return made


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_rise(name, photos):
    """From the clean image, on average over the images; same shape and dtype."""
    distances = []
    for severity in corruptions.SEVERITIES:
        worse = [corruptions.corrupt(one, name, severity, 0, i) for i, one in enumerate(photos)]
        assert all(one.shape == (224, 224, 3) and one.dtype == np.uint8 for one in worse)
        distances.append(np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in zip(worse, photos, strict=True)]))
    assert distances[0] > 1
    for severity, (one, next_one) in enumerate(zip(distances, distances[1:], strict=False), start=1):
        assert next_one > one or (name, severity) in ROUGHER


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_numbers_give_the_same_picture(name, photos):
    first = corruptions.corrupt(photos[0], name, 3, 7, 5)
    np.testing.assert_array_equal(corruptions.corrupt(photos[0], name, 3, 7, 5), first)
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    for seed, index in ((8, 5), (7, 6)):
        assert (corruptions.corrupt(photos[0], name, 3, seed, index) != first).any() == drawn


def flat(value, side=32):
    return np.full((side, side, 3), value, np.uint8)


def test_brightness_by_hand():
    """More value, the same hue and saturation: all channels by one factor."""
    image = flat((100, 50, 0))
    worse = corruptions.corrupt(image, "brightness", 2, 0, 0)
    value = 100 / 255 + 0.2
    np.testing.assert_array_equal(worse[0, 0], np.round([255 * value, 127.5 * value, 0]))
    np.testing.assert_array_equal(corruptions.corrupt(flat(0), "brightness", 5, 0, 0), flat(128))
    assert (corruptions.corrupt(flat(250), "brightness", 1, 0, 0) == 255).all()


def test_contrast_by_hand():
    image = flat(40)
    image[:16] = 200
    worse = corruptions.corrupt(image, "contrast", 1, 0, 0)
    assert (worse[:16] == 120 + 0.4 * 80).all() and (worse[16:] == 120 - 0.4 * 80).all()


def test_noise_has_its_strength():
    grey = flat(128, side=128)
    for severity, strength in ((1, 0.08), (3, 0.18)):
        worse = corruptions.corrupt(grey, "gaussian_noise", severity, 0, 0) / 255
        assert worse.std() == pytest.approx(strength, rel=0.03) and worse.mean() == pytest.approx(128 / 255, abs=0.01)
    worse = corruptions.corrupt(grey, "impulse_noise", 5, 0, 0)
    assert np.mean(worse != 128) == pytest.approx(0.27, abs=0.01) and set(np.unique(worse)) == {0, 128, 255}
    assert np.mean(worse == 255) == pytest.approx(0.135, abs=0.01)
    for severity, photons in ((1, 60), (3, 12)):
        counts = corruptions.corrupt(flat(51, side=128), "shot_noise", severity, 0, 0) / 255 * photons
        assert counts.mean() == pytest.approx(0.2 * photons, rel=0.02) and counts.var() == pytest.approx(
            0.2 * photons, rel=0.05
        )


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "elastic_transform", "pixelate"])
def test_what_moves_pixels_leaves_a_flat_image_alone(name):
    np.testing.assert_array_equal(corruptions.corrupt(flat((10, 90, 200)), name, 4, 0, 0), flat((10, 90, 200)))


def test_defocus_spreads_a_point_over_a_disk():
    image = np.zeros((224, 224, 3), np.uint8)
    image[112, 112] = 255
    spread = corruptions._disk(6)
    assert spread.shape == (13, 13) and spread.sum() == pytest.approx(1) and spread[0, 0] == 0
    assert spread[6, 6] == spread.max() == pytest.approx(1 / (np.pi * 36), rel=0.01)
    worse = corruptions.corrupt(image, "defocus_blur", 3, 0, 0)
    rows, columns = np.nonzero(worse[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (106, 118, 106, 118)


def test_lengths_scale_with_the_image():
    assert corruptions._scaled(10, np.zeros((112, 112, 3))) == 5


def test_pixelate_makes_blocks():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    worse = corruptions.corrupt(image, "pixelate", 5, 0, 0)
    blocks = worse.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    np.testing.assert_allclose(
        blocks[:, 0, :, 0], image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)), atol=1
    )  # Pillow rounds rows and columns


# The task.


@pytest.fixture
def there(image_folder, monkeypatch):
    """Lets the folders `runs/NAME` hold networks with random parameters."""

    def made_up(folder, *_):
        config = tiny_config(image_folder, str(folder).split("/")[-1])
        network, row = steered.build(config, len(CLASSES))
        shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), shapes)
        return saved_run.SavedRun(config, CLASSES, 0, network, row, params)

    monkeypatch.setattr(saved_run, "load", made_up)
    return made_up


def run(folder, text="runs=runs/linear+runs/bias", **fields):
    config = corruptions_config.get_config(text)
    config.update(fields)
    task.run(config, str(folder))
    return json.loads((folder / "corruptions.json").read_text())


def test_accuracy_is_that_on_the_corrupted_views(there, tmp_path):
    fields = {"kinds": ("contrast", "impulse_noise"), "severities": (1, 4), "batch_size": 4, "seed": 3}
    told = run(tmp_path, **fields)
    assert told["images"] == 3 * COUNTS["test"] and set(told["accuracy"]) == {"clean", "contrast", "impulse_noise"}
    saved = there("linear")
    source, _ = selected.open_images(saved.config.data, "test")
    views = [pixels.eval_view(pixels.decode(one["image"], ""), resize=18, size=16) for one in source]
    labels = np.array([one["label"] for one in source])
    logits = jax.jit(lambda pixels: steered.apply(saved.model, saved.method, saved.params, pixels))

    def accuracy(pixels):
        return np.mean(np.asarray(logits(np.stack(pixels))).argmax(axis=-1) == labels)

    assert told["accuracy"]["clean"]["linear"] == pytest.approx(accuracy(views))
    for name in fields["kinds"]:
        for k, severity in enumerate(fields["severities"]):
            worse = [corruptions.corrupt(one, name, severity, 3, i) for i, one in enumerate(views)]
            assert told["accuracy"][name]["linear"][k] == pytest.approx(accuracy(worse))
    seen = analysis_views.Views(source, saved.config.data, task.corruption("impulse_noise", 4, 3))[2]["image"]
    np.testing.assert_array_equal(seen, corruptions.corrupt(views[2], "impulse_noise", 4, 3, 2))
    table = (tmp_path / "corruptions.md").read_text().splitlines()
    assert table[0] == "| accuracy, % | linear | bias |" and len(table) == 2 + 2 + 2 + 2
    means = [100 * np.mean(told["accuracy"][name]["linear"]) for name in fields["kinds"]]
    assert table[4].startswith(f"| contrast | {means[0]:.1f} |")
    assert table[3].startswith(f"| mean of corruptions | {np.mean(means):.1f} [")
    assert (tmp_path / "corruptions.html").read_text().count("<img") == 2 * 1  # one severity is the middle and the highest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runs": ()}, "Nothing to evaluate; write --config=configs/corrupt.py:runs="),
        (
            {"kinds": ("rain",)},
            "of these 'rain' is refused: it must be one of gaussian_noise, .*",
        ),
        (
            {"severities": (0, 1)},
            r"config.severities is \(0, 1\); of these 0 is refused: .* 1 or more and 5 or less",
        ),
        ({"images": "{folder}/test"}, "have no classes, so no accuracy; give a split"),
    ],
)
def test_refusals(there, image_folder, tmp_path, fields, message):
    fields = {name: value.format(folder=image_folder) if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(InputError, match=message):
        run(tmp_path, **fields)
