"""A run as a program: the same logits, without this package."""

import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from PIL import Image

from tests.export.runs import logits, pixels, text_run, tuned
from toast_jax.data.images import pixels as views
from toast_jax.errors import InputError
from toast_jax.export import exported, folder, predict
from toast_jax.model import steered

_TURNED = Image.Exif()
_TURNED[0x0112] = 6
# A finder ahead of all others hides what the tests, but not every user, can import.
_SCRIPT = """
import pathlib, sys

class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("toast_jax", "flax", "ml_collections", "safetensors"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
sys.path.insert(0, {folder!r})
import numpy as np, predict
_, logits = predict.load(pathlib.Path({folder!r}))
np.save({out!r}, logits(np.load({pixels!r})))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Runs by method, each with its folder."""
    folders = {}

    pytest.importorskip("flatbuffers")

    def write(method, *args):
        if (method, *args) not in folders:
            run = tuned(method, *args)
            path = tmp_path_factory.mktemp("exported") / "birds"
            folder.write(path, exported.files(run))
            folders[method, *args] = run, path
        return folders[method, *args]

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        *(("toast_lite", "vit_ti8"), ("toast", "convnext_t"), ("vpt", "vit_ti8"), ("lora", "vit_ti8"), ("lora", "convnext_t")),
        *(("toast_ep", "vit_ti8"), ("ssf", "vit_ti8"), ("adapter_plus", "convnext_t")),
    ],
)
def test_program_computes_the_logits_of_the_run(method, backbone, written):
    run, path = written(method, backbone)
    facts, program = predict.load(path)
    inputs = pixels(run)
    expected = logits(run, inputs)
    np.testing.assert_allclose(program(inputs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(program(inputs[:1]), expected[:1], rtol=1e-5, atol=1e-5)
    assert facts["classes"] == ["heron", "kite", "owl"] and facts["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize("backbone", ["vit_ti8", "convnext_t"])
def test_a_probe_takes_any_number_of_images(backbone):
    run, (count,) = tuned("ep", backbone), export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((count, *pixels(run).shape[1:]), np.uint8)
    shape = jax.eval_shape(functools.partial(steered.apply, run.model, run.method), run.params, images).shape
    assert shape == (count, 3)


def test_view_is_that_of_the_evaluation(tmp_path):
    for shape in ((90, 121, 3), (63, 40, 3), (50, 50, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        Image.fromarray(image).save(tmp_path / "x.png")
        shown = predict.view(tmp_path / "x.png", 37, 32)
        np.testing.assert_array_equal(shown, views.eval_view(image, resize=37, size=32))
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "x.png", exif=on_its_side)
    np.testing.assert_array_equal(predict.view(tmp_path / "x.png", 50, 50), np.rot90(image, -1))


@pytest.mark.parametrize("shape", [(90, 121, 3), (20, 40, 3), (32, 32, 3)])
def test_a_view_without_a_crop_is_stretched_as_vtab_is(shape, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(image).save(path := tmp_path / "x.png")
    shown, expected = predict.view(path, 32, 32, "none").astype(int), views.stretch(image, 32)
    assert np.abs(shown - expected).max() <= 1 and (shown == expected).mean() > 0.99


@pytest.mark.parametrize(
    ("ending", "options"), [("png", {}), ("png", {"exif": _TURNED}), ("tif", {}), ("tif", {"tiffinfo": {262: 0}}), ("pgm", {})]
)
def test_an_image_of_16_bits_is_not_clipped(ending, options, tmp_path):
    gray = np.random.default_rng(0).integers(0, 2**16, (50, 40), np.uint16)
    Image.fromarray(gray).save(path := tmp_path / f"x.{ending}", **options)
    expected = views.eval_view(views.decode(path.read_bytes(), path.name, orient=True), resize=37, size=32)
    np.testing.assert_array_equal(predict.view(path, 37, 32), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_image_of_32_bits_is_refused(dtype, tmp_path):
    Image.fromarray(np.full((50, 40), 70_000, dtype)).save(path := tmp_path / "x.tif")
    with pytest.raises(SystemExit, match="x.tif: only 8 bits, 16 bits and floats from 0 to 1 have a defined"):
        predict.view(path, 37, 32)


@pytest.mark.parametrize(("kind", "photometric"), [(np.float32, 1), (np.float32, 0), (np.uint16, 0)])
def test_tiffs_of_floats_and_of_white_zeros_are_read_as_the_run_did(kind, photometric, tmp_path):
    values = np.random.default_rng(0).random((50, 40)) * (1 if kind == np.float32 else 2**16 - 1)
    Image.fromarray(values.astype(kind)).save(path := tmp_path / "x.tif", tiffinfo={262: photometric, 0x0112: 6})
    expected = views.eval_view(views.decode(path.read_bytes(), path.name, orient=True), resize=37, size=32)
    np.testing.assert_array_equal(predict.view(path, 37, 32), expected)
    assert expected.std() > 20


@pytest.mark.slow
def test_folder_works_without_this_package(written, tmp_path):
    """In a process that finds neither toast_jax nor Flax."""
    run, path = written("toast_lite", "vit_ti8")
    inputs = pixels(run, 2)
    np.save(tmp_path / "pixels.npy", inputs)
    script = _SCRIPT.format(folder=str(path), out=str(tmp_path / "out.npy"), pixels=str(tmp_path / "pixels.npy"))
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), logits(run, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_script_names_the_class_of_an_image(written, image_folder):
    run, path = written("toast_lite", "vit_ti8")
    images = [str(image_folder / "test" / name / "0.jpg") for name in ("heron", "owl")]
    done = subprocess.run([sys.executable, str(path / "predict.py"), *images], check=True, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[2] for line in lines] == images
    assert {line[1] for line in lines} <= set(run.classes)


def test_language_model_is_refused():
    with pytest.raises(InputError, match="as=stablehlo is for networks that read images, and a LLaMA reads text; write as=hf."):
        exported.files(text_run("lora"))
