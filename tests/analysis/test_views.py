"""The images of a source as a tuned run sees them."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.export.runs import tuned
from toast_jax.analysis.views import Views, all_of_run, stream
from toast_jax.data.images import batches, pixels
from toast_jax.data.images.image_files import Files
from toast_jax.errors import InputError


def test_a_broken_image_is_noted_and_black_and_the_others_keep_their_places(tmp_path):
    rng = np.random.default_rng(0)
    paths = tuple(str(tmp_path / f"{i}.png") for i in range(8))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    source = Files(paths, tuple(range(8)), tuple(map(str, range(8))))
    bad, gone = tmp_path / "bad.jpg", tmp_path / "gone.jpg"
    bad.write_bytes(b"nothing")
    broken = Files((str(bad), *source.paths[1:5], str(gone), *source.paths[6:]), source.labels, source.classes)
    views = Views(broken, ConfigDict({"format": "folder", "resize": 20, "image_size": 16}))
    steps = list(batches.eval_batches(views, batch_size=3, resize=16, size=16))
    whole = list(batches.eval_batches(source, batch_size=3, resize=20, size=16))
    for batch, expected in zip(steps, whole, strict=True):
        np.testing.assert_array_equal(batch["index"], expected["index"])
        faulty = np.isin(batch["index"], (0, 5))
        np.testing.assert_array_equal(batch["image"][~faulty], expected["image"][~faulty])
        assert not batch["image"][faulty].any()
    assert views.faults == {
        0: f"Image {bad} cannot be decoded (not an image)",
        5: f"Image {gone} cannot be read (No such file or directory)",
    }
    with pytest.raises(InputError, match="bad.jpg cannot be decoded"):
        list(batches.eval_batches(broken, batch_size=3, resize=20, size=16))


@pytest.mark.parametrize("format", ["folder", "vtab"])
def test_a_new_image_is_seen_as_the_run_was_evaluated(format, tmp_path):
    run = tuned("linear")
    run.config.data.format, run.config.data.resize = format, run.config.data.image_size
    image, size = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8), run.config.data.image_size
    Image.fromarray(image).save(path := tmp_path / "x.png")
    stretched, cropped = pixels.stretch(image, size), pixels.eval_view(image, resize=size, size=size)
    (batch,) = stream(run, [str(path)], 1)
    np.testing.assert_array_equal(batch.image[0], stretched if format == "vtab" else cropped)
    images, _ = all_of_run(run, Files((str(path),), (0,), ("a",)), 1)  # of other tasks than `predict`
    np.testing.assert_array_equal(images, batch.image)
