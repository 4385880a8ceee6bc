"""RandAugment: every operation against a plain statement of what it does, and the random draws."""

import collections

import numpy as np
import pytest
from PIL import Image

from toast_jax.data.images import randaugment as module
from toast_jax.data.images.randaugment import randaugment

NAMES = [
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]
UNSIGNED = {"AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"}
FILL = (124, 116, 104)
SIGNED_LEVELS = [-10, -7.3, -1, 4, 9, 10]


def noise(*shape, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, shape, dtype=np.uint8)


def apply(name, image, level):
    return np.asarray(module.OPERATIONS[name].apply(Image.fromarray(image), level)).astype(int)


def assert_close(actual, expected, atol=1):
    """PIL truncates where the exact value has a fraction, which float64 may put a hair below a whole number."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol + 1e-6)


def sample(image, source):
    """Interpolates bilinearly at source(x, y), in pixels from the corner; outside of the image is the fill colour."""
    height, width, _ = image.shape
    x, y = source(*np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    left, top = np.floor(x - 0.5).astype(int), np.floor(y - 0.5).astype(int)
    right_share, bottom_share = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]

    def pixel(row, column):
        return image[row.clip(0, height - 1), column.clip(0, width - 1)].astype(float)

    upper = pixel(top, left) * (1 - right_share) + pixel(top, left + 1) * right_share
    lower = pixel(top + 1, left) * (1 - right_share) + pixel(top + 1, left + 1) * right_share
    return np.where(inside[..., None], upper * (1 - bottom_share) + lower * bottom_share, FILL)


def test_the_operations_are_those_of_the_increasing_list():
    assert list(module.OPERATIONS) == NAMES
    assert {name for name in NAMES if not module.OPERATIONS[name].signed} == UNSIGNED


def test_auto_contrast_stretches_every_channel_to_the_full_range():
    image = np.stack([noise(20, 30, low=40, high=90), noise(20, 30, low=0, high=200), np.full((20, 30), 77, np.uint8)], -1)
    low, high = image.min((0, 1)).astype(int), image.max((0, 1)).astype(int)
    expected = (image - low) * 255 / np.maximum(high - low, 1)
    expected[..., 2] = 77  # a constant channel has nothing to stretch
    assert_close(apply("AutoContrast", image, 9), expected)


def test_equalize_gives_a_value_the_share_of_pixels_below_it():
    image = noise(256, 256, 3, low=20, high=90)  # PIL counts in whole multiples of 1/255 of the pixels
    result = apply("Equalize", image, 9)
    for channel in range(3):
        values = image[..., channel]
        below = np.vectorize(lambda value, values=values: (values < value).sum())(np.arange(256))
        expected = 255 * below[values] / (values < values.max()).sum()
        assert_close(result[..., channel], expected, atol=2)


def test_invert():
    image = noise(5, 7, 3)
    np.testing.assert_array_equal(apply("Invert", image, 9), 255 - image.astype(int))


# The values of one row of pixels, every one of them in every channel.
RAMP = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1)


@pytest.mark.parametrize(("level", "step"), [(0, 16), (2.4, 16), (2.5, 32), (5, 64), (7.5, 128), (9.9, 128), (10, 256)])
def test_posterize_rounds_down_to_a_multiple_of_the_step(level, step):
    np.testing.assert_array_equal(apply("PosterizeIncreasing", RAMP, level), RAMP.astype(int) // step * step)


@pytest.mark.parametrize(("level", "threshold"), [(0, 256), (0.04, 255), (5, 128), (9, 26), (10, 0)])
def test_solarize_inverts_from_the_threshold_on(level, threshold):
    values = RAMP.astype(int)
    expected = np.where(values < threshold, values, 255 - values)
    np.testing.assert_array_equal(apply("SolarizeIncreasing", RAMP, level), expected)


@pytest.mark.parametrize(("level", "added"), [(0, 0), (0.1, 1), (5, 55), (9, 99), (9.99, 109), (10, 110)])
def test_solarize_add_adds_to_the_dark_half(level, added):
    values = RAMP.astype(int)
    np.testing.assert_array_equal(apply("SolarizeAdd", RAMP, level), np.where(values < 128, values + added, values))


def luma(image):
    return image @ [0.299, 0.587, 0.114]


def smoothed(image):
    """Every pixel averaged with its eight neighbours, itself weighted by 5; the border is left alone."""
    image = image.astype(float)
    height, width, _ = image.shape
    result = image.copy()
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            result[y, x] = (image[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * image[y, x]) / 13
    return result


WITHOUT = {
    "ColorIncreasing": lambda image: luma(image)[..., None],
    "ContrastIncreasing": lambda image: luma(image).mean(),
    "BrightnessIncreasing": lambda image: 0,
    "SharpnessIncreasing": smoothed,
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize(("level", "factor"), [(-10, 0.1), (-9, 0.19), (-2.5, 0.775), (0, 1), (4, 1.36), (10, 1.9)])
def test_enhancements_scale_the_difference_to_an_image_without_the_property(name, level, factor):
    image = noise(12, 15, 3, high=230)
    without = np.rint(WITHOUT[name](image))
    expected = (without + factor * (image - without)).clip(0, 255)
    assert_close(apply(name, image, level), expected)


@pytest.mark.parametrize("level", SIGNED_LEVELS)
def test_rotate_turns_about_the_centre_counter_clockwise(level):
    image = noise(21, 30, 3)
    angle = np.deg2rad(3 * level)

    def source(x, y):
        x, y = x - 15, y - 10.5
        return 15 + x * np.cos(angle) - y * np.sin(angle), 10.5 + x * np.sin(angle) + y * np.cos(angle)

    assert_close(apply("Rotate", image, level), sample(image, source))


def test_rotate_lifts_the_right_end_of_a_centred_bar():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 8:33] = 255
    rows, columns = np.nonzero(apply("Rotate", image, 10)[8:33, 8:33].min(-1) > 100)
    slope = np.polyfit(columns, -rows, 1)[0]
    np.testing.assert_allclose(np.rad2deg(np.arctan(slope)), 30, atol=2)


@pytest.mark.parametrize("level", SIGNED_LEVELS)
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ShearX", lambda level: lambda x, y: (x + 0.03 * level * y, y)),
        ("ShearY", lambda level: lambda x, y: (x, y + 0.03 * level * x)),
        ("TranslateXRel", lambda level: lambda x, y: (x + 0.045 * level * 30, y)),
        ("TranslateYRel", lambda level: lambda x, y: (x, y + 0.045 * level * 21)),
    ],
)
def test_shears_and_translations(name, source, level):
    image = noise(21, 30, 3)
    assert_close(apply(name, image, level), sample(image, source(level)))


def test_translation_by_whole_pixels_shifts_and_fills():
    image = noise(20, 40, 3)
    left, up = apply("TranslateXRel", image, 10), apply("TranslateYRel", image, 10)
    np.testing.assert_array_equal(left[:, :22], image[:, 18:])
    np.testing.assert_array_equal(up[:11], image[9:])
    assert (left[:, 22:] == FILL).all() and (up[11:] == FILL).all()


@pytest.mark.parametrize("name", [*NAMES[3:4], *NAMES[5:]])
def test_level_0_is_the_identity(name):
    image = noise(9, 14, 3)
    np.testing.assert_array_equal(apply(name, image, 0), image)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (13, 6, 3)])
def test_operations_keep_shape_and_mode(name, shape):
    for level in (0, 10) if name in UNSIGNED else (-10, 10):
        result = module.OPERATIONS[name].apply(Image.fromarray(noise(*shape)), level)
        assert np.asarray(result).shape == shape and result.mode == "RGB"


@pytest.fixture
def calls(monkeypatch):
    """Records (name, level) of every operation applied, and applies it."""
    calls = []

    def recording(name, operation):
        def apply(image, level):
            calls.append((name, level))
            return operation.apply(image, level)

        return operation._replace(apply=apply)

    recorded = {name: recording(name, operation) for name, operation in module.OPERATIONS.items()}
    monkeypatch.setattr(module, "OPERATIONS", recorded)
    return calls


def draw(calls, count, *, num_ops=2, magnitude=9.0):
    """Augments a tiny image `count` times; the calls that each took."""
    image, rng, drawn = noise(2, 3, 3), np.random.default_rng(0), []
    for _ in range(count):
        calls.clear()
        randaugment(image, rng, num_ops=num_ops, magnitude=magnitude)
        drawn.append(list(calls))
    return drawn


def test_operations_are_drawn_uniformly_with_replacement_and_half_are_applied(calls):
    drawn = draw(calls, 3000)
    counts = np.bincount([len(each) for each in drawn])
    np.testing.assert_allclose(counts / 3000, [0.25, 0.5, 0.25], atol=0.03)
    shares = collections.Counter(name for each in drawn for name, _ in each)
    assert set(shares) == set(NAMES)
    np.testing.assert_allclose([shares[name] / 3000 for name in NAMES], 1 / 15, atol=0.02)
    pairs = [each for each in drawn if len(each) == 2]
    np.testing.assert_allclose(np.mean([first == second for (first, _), (second, _) in pairs]), 1 / 15, atol=0.03)


def test_levels_are_normal_about_the_magnitude_and_half_of_the_signs_flip(calls):
    levels = {name: [] for name in NAMES}
    for name, level in sum(draw(calls, 600, num_ops=8, magnitude=5.0), []):
        levels[name].append(level)
    everything = np.abs(np.concatenate(list(levels.values())))
    np.testing.assert_allclose([everything.mean(), everything.std()], [5, 0.5], atol=0.05)
    for name in NAMES:
        flipped = np.mean(np.array(levels[name]) < 0)
        assert flipped == 0 if name in UNSIGNED else 0.35 < flipped < 0.65, name


@pytest.mark.parametrize("bound", [0.0, 10.0])
def test_levels_are_clipped(calls, bound):
    drawn = sum(draw(calls, 100, num_ops=8, magnitude=bound), [])
    assert min(level for name, level in drawn if name in UNSIGNED) >= 0
    levels = np.abs([level for _, level in drawn])
    assert levels.max() <= 10
    assert 0.4 < np.mean(levels == bound) < 0.6


def test_operations_are_applied_one_after_the_other(calls):
    image = noise(12, 17, 3)
    result = randaugment(image, np.random.default_rng(0), num_ops=12, magnitude=9.0)
    assert len(calls) > 2
    expected = Image.fromarray(image)
    for name, level in list(calls):
        expected = module.OPERATIONS[name].apply(expected, level)
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_the_result_is_a_function_of_the_generator_and_keeps_the_shape():
    image = noise(18, 25, 3)
    original = image.copy()
    results = []
    for seed in range(20):
        first, again = (randaugment(image, np.random.default_rng(seed), num_ops=2, magnitude=9.0) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert first.shape == image.shape and first.dtype == np.uint8
        results.append(first.tobytes())
    assert len(set(results)) > 10
    np.testing.assert_array_equal(image, original)


def test_a_flipped_view_is_augmented_as_its_copy():
    image = noise(18, 25, 3)[:, ::-1]
    view, copy = (
        randaugment(each, np.random.default_rng(3), num_ops=4, magnitude=9.0) for each in (image, np.ascontiguousarray(image))
    )
    np.testing.assert_array_equal(view, copy)


def test_no_operations_is_the_identity():
    image = noise(6, 5, 3)
    assert randaugment(image, np.random.default_rng(0), num_ops=0, magnitude=9.0) is image
