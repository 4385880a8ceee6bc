"""Pixels: the views against recorded torchvision crops, and decoding of every kind of file."""

import io
import itertools
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import FIXTURES
from tests.conftest import tiny_config
from toast_jax.data.images import pixels
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.backbones.normalize import normalize

RECORDED = FIXTURES / "preprocess_fgvc.npz"


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(RECORDED))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", ["landscape", "portrait", "small"])
def test_decode_and_eval_view_match_torchvision(recorded, shape):
    image = pixels.decode(recorded[f"{shape}/jpeg_bytes"].tobytes(), shape)
    np.testing.assert_array_equal(image, recorded[f"{shape}/decoded_uint8"])
    view = pixels.eval_view(image, resize=256, size=224)
    np.testing.assert_array_equal(view, recorded[f"{shape}/eval_224_uint8"])


def test_eval_view_at_384_matches_torchvision(recorded):
    view = pixels.eval_view(recorded["landscape/decoded_uint8"], resize=438, size=384)
    np.testing.assert_array_equal(view, recorded["landscape/eval_384_uint8"])


def test_normalize_matches_torchvision(recorded):
    normalized = jax.jit(normalize)(recorded["landscape/eval_224_uint8"][None])
    assert normalized.dtype == jnp.float32 and normalized.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), recorded["landscape/eval_224_normalized_mean"], atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), recorded["landscape/eval_224_normalized_std"], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_leaves_floats_alone(dtype):
    x = jnp.linspace(-2, 2, 12, dtype=dtype).reshape(1, 2, 2, 3)
    assert normalize(x) is x


@pytest.mark.parametrize("backbone", ["vit_ti8", pytest.param("convnext_t", marks=pytest.mark.slow)])
def test_a_backbone_normalizes_with_the_statistics_of_its_config(backbone):
    config = tiny_config("", "linear", backbone)
    config.data.normalize = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    network, _ = steered.build(config, 3)
    images = np.random.default_rng(0).integers(0, 256, (1, config.data.image_size, config.data.image_size, 3), np.uint8)
    floats = (images / np.float32(255) - np.float32(config.data.normalize[0])) / np.float32(config.data.normalize[1])
    params = jax.jit(network.backbone.init)(jax.random.key(0), floats)
    pooled = [jax.jit(network.backbone.apply)(params, x)[0] for x in (images, floats.astype(np.float32), images[:, :, ::-1])]
    np.testing.assert_allclose(pooled[0], pooled[1], rtol=1e-4, atol=1e-5)
    assert np.abs(pooled[0] - pooled[2]).max() > 1e-4


def test_train_view_is_a_random_crop_of_the_resized_image():
    image = noise(40, 61, 3)  # 36.6 pixels long after the resize, which torchvision truncates
    resized = np.asarray(Image.fromarray(image).resize((36, 24), Image.Resampling.BILINEAR))
    windows = {}
    for top, left in itertools.product(range(5), range(17)):
        window = resized[top : top + 20, left : left + 20]
        windows[window.tobytes()] = (top, left, False)
        windows[window[:, ::-1].tobytes()] = (top, left, True)
    rng = np.random.default_rng(0)
    views = [pixels.train_view(image, rng, resize=24, size=20) for _ in range(600)]
    places = [windows[view.tobytes()] for view in views]
    tops, lefts, flips = (np.array(column) for column in zip(*places, strict=True))
    assert set(tops) == set(range(5)) and set(lefts) == set(range(17))
    assert 0.4 < flips.mean() < 0.6


def coordinates(height, width):
    """An image in which every pixel tells where it is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 128)], axis=-1).astype(np.uint8)


def test_random_resized_crop_sees_nothing_outside_of_it():
    """As torchvision's, which crops before it resizes; the numbers are those of the crop alone."""
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    image[10:30, 12:36] = 128
    for size in (16, 64):
        shares, corner = iter((20 * 24 / 50**2, np.log(24 / 20))), iter((10, 12))
        own = SimpleNamespace(uniform=lambda *_, shares=shares: next(shares), integers=lambda _, corner=corner: next(corner))
        view = pixels.train_view(image, own, resize=0, size=size, min_crop_area=0.1, flip=False)
        assert view.shape == (size, size, 3) and (view == 128).all()


def test_random_resized_crop_covers_the_areas_and_ratios_of_inception():
    rng = np.random.default_rng(0)
    views = [pixels.train_view(coordinates(200, 240), rng, resize=0, size=32, min_crop_area=0.2) for _ in range(400)]
    # The extent of what is seen, the half pixels at both ends put back.
    heights, widths = (np.array([np.ptp(view[..., axis].astype(float)) * 32 / 31 for view in views]) for axis in (0, 1))
    area, ratio = heights * widths / (200 * 240), widths / heights
    assert 0.18 < area.min() < 0.27 and 0.85 < area.max() < 1.02 and 0.5 < area.mean() < 0.65
    assert 0.72 < ratio.min() < 0.82 and 1.22 < ratio.max() < 1.38
    assert 0.4 < np.mean([view[0, 0, 1] > view[0, -1, 1] for view in views]) < 0.6  # flipped
    assert np.std([view[..., 0].min() for view in views]) > 20 and np.std([view[..., 1].min() for view in views]) > 20


@pytest.mark.parametrize(("shape", "seen"), [((20, 200), 1 / 7.5), ((200, 20), 1 / 7.5)])
def test_random_resized_crop_of_a_strip_is_its_middle(shape, seen):
    view = pixels.train_view(coordinates(*shape), np.random.default_rng(0), resize=0, size=16, min_crop_area=0.99)
    long = int(np.argmax(shape))
    values = view[..., long].astype(float)
    assert values.mean() == pytest.approx(100, abs=1.5) and np.ptp(values) * 16 / 15 == pytest.approx(200 * seen, abs=4)


def test_train_view_is_a_function_of_the_generator():
    image = noise(30, 50, 3)
    first, again, other = (pixels.train_view(image, np.random.default_rng(seed), resize=24, size=16) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("shape", [(1, 50, 3), (50, 1, 3), (16, 16, 3), (400, 17, 3)])
def test_views_of_any_shape_have_the_crop_size(shape):
    image = noise(*shape)
    assert pixels.eval_view(image, resize=16, size=16).shape == (16, 16, 3)
    assert pixels.train_view(image, np.random.default_rng(0), resize=18, size=16).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_decode_gives_rgb_for_every_colour_mode(mode):
    image = Image.fromarray(noise(8, 9, 3)).convert(mode)
    data = encode(image, format="TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    decoded = pixels.decode(data, "x")
    assert decoded.shape == (8, 9, 3) and decoded.dtype == np.uint8
    with Image.open(io.BytesIO(data)) as stored:
        np.testing.assert_array_equal(decoded, np.asarray(stored.convert("RGB")))


def test_decode_drops_transparency():
    image = np.full((4, 4, 4), [10, 20, 30, 0], np.uint8)
    assert (pixels.decode(encode(Image.fromarray(image)), "x") == [10, 20, 30]).all()


DAMAGE = {
    "empty": (lambda data: b"", "the file is empty"),
    "text": (lambda data: b"<html>404</html>", "not an image"),
    "truncated": (lambda data: data[: len(data) // 2], "truncated"),
    "header only": (lambda data: data[:30], "(not an image|[Tt]runcated)"),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_input_error_with_its_name(format, damage):
    spoil, reason = DAMAGE[damage]
    data = spoil(encode(Image.fromarray(noise(64, 64, 3)), format=format))
    with pytest.raises(InputError, match=rf"^Image cats/7\.jpg cannot .*{reason}.*skip_corrupt=True\.$") as raised:
        pixels.decode(data, "cats/7.jpg")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_a_decompression_bomb_is_an_input_error(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="huge.png cannot be decoded .*decompression bomb"):
        pixels.decode(encode(Image.fromarray(noise(20, 20, 3))), "huge.png")


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (40, 200, 90)]
    data = encode(
        frames[0], format=format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.n_frames == 3
    assert (pixels.decode(data, "x") == 40).all()


def test_content_decides_and_not_the_name():
    image = noise(8, 9, 3)
    for format, name in (("PNG", "x.jpg"), ("BMP", "x.png"), ("PNG", "no ending")):
        np.testing.assert_array_equal(pixels.decode(encode(Image.fromarray(image), format=format), name), image)


def test_16_bit_images_keep_their_range():
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, format="PNG")
    np.testing.assert_array_equal(pixels.decode(file.getvalue(), "ramp.png")[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("kind", ["square", "wide", "tall"])
def test_stretch_is_the_recorded_resize(kind):
    """The recording holds floating-point pixels, two of its three images rounded to 16 bits."""
    arrays = np.load(RECORDED.parent / "preprocess_vtab.npz")
    stretched = pixels.stretch(arrays[f"{kind}/image_uint8"], 224)
    assert stretched.shape == (224, 224, 3) and stretched.dtype == np.uint8
    assert np.abs(stretched - arrays[f"{kind}/resized_224_float"].astype(np.float32)).max() <= 0.5


def test_stretch_keeps_an_image_of_the_right_size():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels.stretch(image, 24), image)


def test_pixels_need_no_decoding():
    image = np.zeros((4, 4, 3), np.uint8)
    assert pixels.decode(image, "a") is image
