"""What an image file becomes: every mode, container, bit depth and orientation, against a reading pixel by pixel."""

import io
import struct
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from toast_jax.data.images import pixels
from toast_jax.errors import InputError

SETTINGS = {"deadline": None, "derandomize": True, "database": None}
# Where the upright pixel (row y, column x) of an image of h x w stored pixels is stored, by EXIF orientation (EXIF 2.3, 4.6.4).
STORED = {
    1: lambda y, x, h, w: (y, x),
    2: lambda y, x, h, w: (y, w - 1 - x),
    3: lambda y, x, h, w: (h - 1 - y, w - 1 - x),
    4: lambda y, x, h, w: (h - 1 - y, x),
    5: lambda y, x, h, w: (x, y),
    6: lambda y, x, h, w: (h - 1 - x, y),
    7: lambda y, x, h, w: (h - 1 - x, w - 1 - y),
    8: lambda y, x, h, w: (x, w - 1 - y),
}
PALETTE = [(7 * i % 256, 31 * i % 256, 255 - i) for i in range(256)]


def gray(value):
    return (value,) * 3


# By mode: channels, dtype, the containers that store it without loss, and the color of one pixel.
MODES = {
    "1": (1, np.uint8, ("PNG", "TIFF", "BMP"), lambda v: gray(255 * (v[0] % 2))),
    "L": (1, np.uint8, ("PNG", "TIFF", "BMP", "PPM", "TGA", "GIF"), lambda v: gray(v[0])),
    "LA": (2, np.uint8, ("PNG", "TGA"), lambda v: gray(v[0])),
    "P": (1, np.uint8, ("PNG", "TIFF", "BMP", "GIF"), lambda v: PALETTE[v[0]]),
    "RGB": (3, np.uint8, ("PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "JPEG2000"), lambda v: tuple(v)),
    "RGBA": (4, np.uint8, ("PNG", "TIFF", "TGA"), lambda v: tuple(v[:3])),
    "CMYK": (4, np.uint8, ("TIFF",), lambda v: tuple((255 - v[i]) * (255 - v[3]) / 255 for i in range(3))),
    "I;16": (1, np.uint16, ("PNG", "TIFF", "PPM"), lambda v: gray(v[0] // 256)),
    "F": (1, np.float32, ("TIFF", "PPM"), lambda v: gray(round(float(v[0]) * 255))),
}


def encode(values, mode, container, orientation):
    """The bytes of a file, and the values that it stores."""
    if mode == "1":
        image = Image.fromarray((values[..., 0] % 2 * 255).astype(np.uint8)).convert("1")
    elif mode == "P":
        image = Image.fromarray(values[..., 0])
        image.putpalette([level for color in PALETTE for level in color])
    elif mode == "CMYK":
        image = Image.frombytes("CMYK", values.shape[1::-1], values.tobytes())
    else:
        image = Image.fromarray(values if values.shape[-1] > 1 else values[..., 0])
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(container, {})
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.save(file, container, **options)
    return file.getvalue()


@hypothesis.settings(max_examples=200, **SETTINGS)
@hypothesis.given(data=st.data())
def test_every_mode_container_and_orientation_reads_as_pixel_by_pixel(data):
    mode = data.draw(st.sampled_from(sorted(MODES)), "mode")
    channels, dtype, containers, color = MODES[mode]
    container = data.draw(st.sampled_from(containers), "container")
    has_exif = container in ("PNG", "TIFF", "WEBP")
    orientation = data.draw(st.sampled_from(sorted(STORED)) if has_exif else st.just(1), "orientation")
    height, width = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)), "size")
    rng = np.random.default_rng(data.draw(st.integers(0, 9), "seed"))
    shape = (height, width, channels)
    values = rng.random(shape, np.float32) if dtype == np.float32 else rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    stored = encode(values, mode, container, orientation)
    for orient in (False, True):
        if container == "TIFF" and not orient and orientation != 1:
            continue  # Pillow always turns a TIFF upright
        turned = STORED[orientation if orient else 1]
        swap = orient and orientation >= 5
        decoded = pixels.decode(stored, "x", orient=orient)
        assert decoded.shape == ((width, height, 3) if swap else (height, width, 3)) and decoded.dtype == np.uint8
        for y, x in np.ndindex(decoded.shape[:2]):
            expected = color(values[turned(y, x, height, width)].tolist())
            assert np.abs(decoded[y, x] - np.array(expected, float)).max() <= (0.5 if mode == "CMYK" else 0), (y, x)


@hypothesis.settings(max_examples=40, **SETTINGS)
@hypothesis.given(st.integers(0, 10), st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]), st.booleans())
def test_the_size_in_the_header_is_that_of_the_decoded_image(tmp_path_factory, orientation, format, orient):
    path = tmp_path_factory.mktemp("sizes") / "x"
    tag = Image.Exif()
    tag[0x0112] = orientation
    Image.new("RGB", (7, 4)).save(path, format, exif=tag)
    height, width, _ = pixels.decode(path.read_bytes(), "x", orient=orient).shape
    assert pixels.size_of(path, orient=orient) == (width, height)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_upright():
    file = io.BytesIO()
    Image.new("RGB", (7, 4)).save(file, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert pixels.decode(file.getvalue(), "x", orient=True).shape == (4, 7, 3)


def tiff(width, height, bits, photometric, data, sample_format=1):
    """A TIFF of one gray strip."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\x00" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_12_bits_and_white_is_zero():
    """Two values of 12 bits, 0xABC and 0x123, are three bytes."""
    assert pixels.decode(tiff(2, 1, 12, 1, b"\xab\xc1\x23"), "x")[0, :, 0].tolist() == [0xAB, 0x12]
    levels = np.array([0, 256 * 9, 65535], "<u2").tobytes()
    assert pixels.decode(tiff(3, 1, 16, 1, levels), "x")[0, :, 0].tolist() == [0, 9, 255]
    assert pixels.decode(tiff(3, 1, 16, 0, levels), "x")[0, :, 0].tolist() == [255, 246, 0]
    assert pixels.decode(tiff(3, 1, 32, 0, np.array([0, 0.2, 1], "<f4").tobytes(), 3), "x")[0, :, 0].tolist() == [255, 204, 0]


def test_16_bits_a_channel_keep_their_high_byte():
    """A PNG by hand: Pillow writes no such color image."""
    row = b"\x00" + np.array([[0x1234, 0xFFFF, 0x00FF]], ">u2").tobytes()
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels.decode(file, "x").tolist() == [[[0x12, 0xFF, 0x00]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 300]], np.int32), "its values run from 0 to 300, and only 8 bits, 16 bits and floats from 0 to 1"),
        (np.array([[0, 1.5]], np.float32), "its values run from 0 to 1.5"),
        (np.array([[-0.1, 1]], np.float32), "its values run from -0.1 to 1"),
        (np.array([[0, np.nan]], np.float32), "its values run from nan to nan"),
    ],
)
def test_values_without_a_defined_brightness_are_refused(values, message):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(InputError, match=rf"^Image scan.tif cannot be decoded \({message}"):
        pixels.decode(file.getvalue(), "scan.tif")


# Thin images.


@hypothesis.settings(max_examples=60, **SETTINGS)
@hypothesis.given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 99))
def test_cropping_before_resizing_changes_rounding_only(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    views = {}
    for largest in (2**24, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pixels, "_MAX_RESIZED", largest)
            views[largest] = (
                pixels.eval_view(image, resize=24, size=20),
                pixels.train_view(image, np.random.default_rng(seed), resize=24, size=20),
            )
    for whole, cropped in zip(views[2**24], views[0], strict=True):
        assert whole.shape == cropped.shape == (20, 20, 3)
        assert np.abs(whole.astype(int) - cropped).max() <= 2  # each of two passes rounds


@pytest.mark.parametrize("shape", [(2, 20_000), (20_000, 2), (1, 60_000)])
def test_a_thin_image_is_never_resized_as_a_whole(shape, monkeypatch):
    largest, resize = [], Image.Image.resize

    def spied(image, size, *rest, **options):
        largest.append(max(size))
        return resize(image, size, *rest, **options)

    monkeypatch.setattr(Image.Image, "resize", spied)
    image = np.zeros((*shape, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, max(shape)).reshape((-1, 1) if shape[0] > shape[1] else (1, -1))
    view = pixels.eval_view(image, resize=256, size=224)
    assert view.shape == (224, 224, 3) and np.abs(view[..., 0].astype(int) - 127).max() <= 1
    assert pixels.train_view(image, np.random.default_rng(0), resize=256, size=224).shape == (224, 224, 3)
    assert largest == [224, 224]
