"""Boxes and masks: read as they are written, cut as their images are, and refused where they do not fit."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import visualize
from tests import small_tfds
from toast_jax.analysis import annotations
from toast_jax.config.run_fields import base
from toast_jax.data.images import image_files, pixels, selected, sources
from toast_jax.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Two images, 60 x 40 and 30 x 50 (width x height)."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "a" / "wide.png")
    Image.new("RGB", (30, 50)).save(tmp_path / "images" / "tall.jpg")
    return tmp_path


BOXES = {"a/wide.png": [10, 5, 20, 35], "tall.jpg": [0, 0, 30, 25]}


def opened(root, boxes=BOXES, **options):
    (root / "boxes.json").write_text(json.dumps(boxes))
    where = root / "images"
    return annotations.open_objects(str(root / "boxes.json"), image_files.unlabelled(str(where)), str(where), **options)


def seen_by(format, *, resize, size):
    return ConfigDict({"format": format, "resize": resize, "image_size": size})


def test_boxes_are_half_open_pixels(root):
    source, boxes = opened(root)
    assert [path.split("/")[-1] for path in source.paths] == ["wide.png", "tall.jpg"] and len(boxes) == 2
    wide, tall = boxes[0], boxes[1]
    assert wide.shape == (40, 60) and tall.shape == (50, 30)
    assert wide[5:35, 10:20].all() and wide.sum() == 30 * 10
    assert tall[:25].all() and not tall[25:].any()


@pytest.mark.parametrize("format", ["folder", "vtab"])
def test_view_of_an_object_is_that_of_its_image(format):
    """An image that is white in the box and black elsewhere keeps being so."""
    rng = np.random.default_rng(0)
    for size in [(40, 60), (60, 41), (33, 33)]:
        top, left = rng.integers(0, 15, 2)
        mask = np.zeros(size, bool)
        mask[top : top + 13, left : left + 17] = True
        picture = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
        seen = pixels.stretch(picture, 32) if format == "vtab" else pixels.eval_view(picture, resize=36, size=32)
        ours = annotations.view(mask, seen_by(format, resize=36, size=32))
        np.testing.assert_array_equal(ours, seen[..., 0] > 127)
        assert ours.shape == (32, 32) and ours.any()


def test_view_by_hand():
    mask = np.zeros((20, 40), bool)
    mask[:, 20:] = True  # the right half; resized to 10 x 20, the crop takes columns 5 to 15
    expected = np.zeros((10, 10), bool)
    expected[:, 5:] = True
    np.testing.assert_array_equal(annotations.view(mask, seen_by("folder", resize=10, size=10)), expected)
    mask[:, 20:28] = False
    for format, first in (("folder", 9), ("vtab", 7)):  # which stretches the whole width
        expected[:, 5:first] = False
        expected[:, first:] = True
        np.testing.assert_array_equal(annotations.view(mask, seen_by(format, resize=10, size=10)), expected)


def test_masks_are_pictures_with_the_name_of_the_image(root):
    (root / "masks" / "a").mkdir(parents=True)
    grey = np.zeros((40, 60), np.uint8)
    grey[3:9, 4:6], grey[0, 0] = 200, 90
    Image.fromarray(grey).save(root / "masks" / "a" / "wide.png")
    Image.fromarray(np.eye(50, 30, dtype=np.uint8)).save(root / "masks" / "tall.png")  # ones and zeros
    where = str(root / "images")
    _, masks = annotations.open_objects(str(root / "masks"), image_files.unlabelled(where), where)
    assert masks[0].sum() == 6 * 2 and masks[0][3:9, 4:6].all()
    np.testing.assert_array_equal(masks[1], np.eye(50, 30, dtype=bool))
    Image.new("L", (60, 41)).save(root / "masks" / "a" / "wide.png")
    with pytest.raises(InputError, match=r"Mask .*wide.png is 60 x 41, its image 60 x 40: make it as large"):
        annotations.open_objects(str(root / "masks"), image_files.unlabelled(where), where)
    (root / "masks" / "a" / "wide.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"Mask .*wide.png cannot be decoded"):
        annotations.open_objects(str(root / "masks"), image_files.unlabelled(where), where)


def test_objects_lie_in_the_upright_image(root):
    """A photo of 30 x 50 stored pixels that a viewer shows as 50 x 30."""
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("RGB", (30, 50)).save(root / "images" / "tall.jpg", exif=tag)
    source, boxes = opened(root, BOXES | {"tall.jpg": [40, 0, 50, 30]})
    assert boxes[1].shape == (30, 50) == pixels.decode_example(source[1]).shape[:2] and boxes[1].sum() == 300
    source, boxes = opened(root, {"tall.jpg": [40, 0, 50, 30]}, only_annotated=True)
    assert boxes[0].shape == (30, 50) == pixels.decode_example(source[0]).shape[:2]


def test_images_without_a_box_are_named_or_left_out(root):
    with pytest.raises(InputError, match=r"1 of 2 images have no box in .*json \(a/wide.png\): .* --config.only_annotated"):
        opened(root, {"tall.jpg": [0, 0, 1, 1]})
    source, boxes = opened(root, {"tall.jpg": [0, 0, 1, 1]}, only_annotated=True)
    assert len(source) == len(boxes) == 1 and boxes[0].shape == (50, 30)
    with pytest.raises(InputError, match="2 of 2 images have no box"):
        opened(root, {"else.jpg": [0, 0, 1, 1]}, only_annotated=True)


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 61, 10],
        [0, 0, 10, 41],
        [-1, 0, 10, 10],
        [10, 5, 10, 9],
        [10, 9, 12, 5],
        [0, 0, 1],
        "box",
        [0, 0, True, 1],
        [0, 0, None, 1],
    ],
)
def test_boxes_outside_the_image_are_refused(root, box):
    with pytest.raises(InputError, match=r"The box of a/wide.png in .*boxes.json is .*, the image 60 x 40: write"):
        opened(root, BOXES | {"a/wide.png": box})


def test_other_things_are_refused(root):
    where = str(root / "images")
    source = image_files.unlabelled(where)
    (root / "list.json").write_text("[1]")
    (root / "bad.json").write_text("{")
    with pytest.raises(InputError, match="must hold a JSON object from image path to box"):
        annotations.open_objects(str(root / "list.json"), source, where)
    for name in ("bad.json", "none.json"):
        with pytest.raises(InputError, match=f"The boxes in .*{name} cannot be read"):
            annotations.open_objects(str(root / name), source, where)
    with pytest.raises(InputError, match="There are no objects at nowhere: give a JSON file of boxes"):
        annotations.open_objects("nowhere", source, where)


# Other sources.


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """CUB as TFDS prepares it, but for its pixels."""
    import tensorflow_datasets as tfds

    def change(example, index):
        height = 20 + index % 7  # of the made-up images, as wide as high
        example["bbox"] = tfds.features.BBox(ymin=0.25, xmin=0.0, ymax=0.75, xmax=0.5)
        mask = np.zeros((height, height, 1), np.uint8)
        mask[:5, index:] = 255
        mask[5:] = 51  # one annotator of five
        example["segmentation_mask"] = small_tfds.png(mask)

    root = tmp_path_factory.mktemp("birds")
    small_tfds.prepare("caltech_birds2011", root, {"train": 3, "test": 3}, change=change)
    data = base(name="x", method="linear", backbone="vit_ti16").data
    data.update({"format": "tfds", "name": "caltech_birds2011", "root": str(root), "num_classes": 200})
    return data


def test_tfds_features(birds):
    source = sources.open_split(birds, "test")
    _, boxes = annotations.open_objects("bbox", source, "")
    _, masks = annotations.open_objects("segmentation_mask", source, "")
    assert len(boxes) == len(masks) == 3
    shapes = [pixels.decode(source[i]["image"], "x").shape[:2] for i in range(3)]
    assert [boxes[i].shape for i in range(3)] == shapes == [masks[i].shape for i in range(3)]
    for i, (height, width) in enumerate(shapes):
        expected = np.zeros((height, width), bool)
        expected[round(height / 4) : round(0.75 * height), : round(width / 2)] = True
        np.testing.assert_array_equal(boxes[i], expected)
        expected = np.zeros((height, width), bool)
        expected[:5, height - 20 :] = True  # TFDS has shuffled them
        np.testing.assert_array_equal(masks[i], expected)
    with pytest.raises(InputError, match="Of TFDS records objects are the features bbox, segmentation_mask; .* is 'box'"):
        annotations.open_objects("box", source, "")


def test_tfds_mask_of_another_size_than_its_image(birds, monkeypatch):
    _, masks = annotations.open_objects("segmentation_mask", sources.open_split(birds, "test"), "")
    shapes = {"image": (4, 6, 3), "segmentation_mask": (4, 5, 1)}
    record = {name: small_tfds.png(np.zeros(shape, np.uint8)).read() for name, shape in shapes.items()}
    monkeypatch.setattr(annotations, "record_of", lambda *_: record)
    message = "The mask of image test.0. of .*birds.* is 5 x 4, the image 6 x 4: prepare the dataset again, or use boxes."
    with pytest.raises(InputError, match=message):
        masks[0]


def test_tfds_records_that_are_damaged_or_have_no_box(birds, monkeypatch):
    _, boxes = annotations.open_objects("bbox", sources.open_split(birds, "test"), "")
    image = small_tfds.png(np.zeros((4, 6, 3), np.uint8)).read()
    for record, message in (
        ({"image": b"nothing", "bbox": np.array([0, 0, 1, 1.0])}, "Image test.0. of .* cannot be decoded: prepare"),
        ({"image": image, "bbox": np.array([0, 0, np.nan, 1.0])}, r"box of image test.0. of .* is \[0.0, 0.0, nan, 1.0\], not"),
        ({"image": image, "bbox": np.array([0, 0, 9, 1.0])}, r"box of image test.0. of .* is \[0.0, 0.0, 9.0, 1.0\], not"),
        ({"image": None, "bbox": None}, "caltech_birds2011/.* is damaged .a record is empty.: remove it and prepare it again"),
    ):
        monkeypatch.setattr(annotations, "records", lambda *_, record=record: [record])
        with pytest.raises(InputError, match=message):
            dataclasses.replace(boxes)[0]
    empty = {"image": image, "bbox": np.array([0.5, 0.5, 0.5, 0.5])}
    monkeypatch.setattr(annotations, "records", lambda *_: [empty])
    assert not dataclasses.replace(boxes)[0].any()  # left out and counted, like objects that the crop cuts off


def test_scenes_have_the_boxes_of_their_digits():
    from toast_jax.data.images import synthetic_scenes

    source = synthetic_scenes.Scenes("test", 3, "green")
    scene = synthetic_scenes.scene("green", "test", 2)
    for digit in ("brightest", "green"):
        _, boxes = annotations.open_objects(digit, source, "")
        strokes = scene.masks[scene.asked[digit]]
        assert len(boxes) == 3 and boxes[2][strokes].all() and boxes[2].sum() == 16 * 16
    with pytest.raises(InputError, match="Scenes have the digits brightest, green; --config.objects is 'box'"):
        annotations.open_objects("box", source, "")


def mask_of(root, mask, **options):
    """Write a mask of a/wide.png and read it beside its image, or beside another image at its place."""
    (root / "masks/a").mkdir(parents=True, exist_ok=True)
    mask.save(root / "masks/a/wide.png", **options)
    source = image_files.unlabelled(str(root / "images/a"))
    _, masks = annotations.open_objects(str(root / "masks"), source, str(root / "images"))
    return masks[0]


WHITE = np.zeros((40, 60), np.uint8)
WHITE[5:20, 10:30] = 255


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(WHITE),
        Image.fromarray(WHITE > 0),
        Image.fromarray(WHITE.astype(np.uint16) * 257),
        Image.fromarray(np.where(WHITE, 60_000, 300).astype(np.uint16)),  # 300 is not the 255 that Pillow would clip it to
        Image.fromarray((WHITE > 0).astype(np.uint8)),  # 0 and 1
        Image.merge("LA", [Image.new("L", (60, 40), 255), Image.fromarray(WHITE)]),  # marked by what is transparent
        Image.fromarray(WHITE).convert("RGBA"),
    ],
    ids=lambda mask: mask.mode,
)
def test_masks_of_any_mode(root, mask):
    np.testing.assert_array_equal(mask_of(root, mask), WHITE > 0)


def test_masks_of_class_ids_or_colors_are_refused(root):
    ids = np.where(WHITE, 5, 0).astype(np.uint8)
    ids[30:] = 1
    colored = Image.fromarray(ids).convert("P")
    colored.putpalette([0, 0, 0, 128, 0, 0, *[0] * 9, 0, 128, 0])
    for mask in (Image.fromarray(ids), colored):
        with pytest.raises(InputError, match="Mask .*/a/wide.png holds class ids or colors, of which none is the object"):
            mask_of(root, mask)


def test_a_turned_image_has_a_turned_mask_or_a_warning(root, monkeypatch):
    said = []
    monkeypatch.setattr(annotations.log, "warning", lambda text, *values: said.append(text % values))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 40)).save(root / "images/a/wide.png", exif=turned)
    upright = np.rot90(WHITE > 0, -1)
    np.testing.assert_array_equal(mask_of(root, Image.fromarray(WHITE), exif=turned), upright)
    assert not said
    np.testing.assert_array_equal(mask_of(root, Image.fromarray(np.rot90(WHITE, -1))), upright)
    assert len(said) == 1 and "1 images are turned upright by their EXIF orientation" in said[0]
    with pytest.raises(InputError, match="Mask .*/wide.png is 60 x 40, its image 40 x 60: make it as large"):
        mask_of(root, Image.fromarray(WHITE))


def test_damaged_masks_and_boxes_are_refused(root):
    (root / "masks/a").mkdir(parents=True)
    for content in (b"", b"nothing", small_tfds.png(WHITE[..., None]).read()[:60]):
        (root / "masks/a/wide.png").write_bytes(content)
        source = image_files.unlabelled(str(root / "images/a"))
        with pytest.raises(InputError, match="Mask .*/a/wide.png cannot be decoded: make it a PNG again"):
            annotations.open_objects(str(root / "masks"), source, str(root / "images"))[1][0]
    for text, message in (("[" * 100_000, "cannot be read .maximum"), ("\ud800", "cannot be read")):
        (root / "boxes.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError, match=message):
            annotations.open_objects(str(root / "boxes.json"), source, str(root / "images"))
    with pytest.raises(InputError, match=r"write \[x0, y0, x1, y1\] in pixels"):
        opened(root, {**BOXES, "tall.jpg": [0, 0, 10**400, 5]})


# Which images.


def test_chosen_images(root):
    where = root / "images"
    source, base = selected.open_images(ConfigDict(), f"{where}/a+{where}/tall.jpg")
    assert [path.rsplit("/", 1)[1] for path in source.paths] == ["wide.png", "tall.jpg"]
    assert base == str(where) and not selected.labelled(source)
    (root / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="notes.txt is no image by its name"):
        selected.open_images(ConfigDict(), str(root / "notes.txt"))
    with pytest.raises(InputError, match="There is nothing at nowhere"):
        selected.open_images(ConfigDict(), "nowhere")
    with pytest.raises(InputError, match="There are no images to look at"):
        selected.open_images(ConfigDict(), "+")


def test_a_folder_with_a_plus_in_its_name_is_written_with_two(tmp_path):
    for name in ("dir a+b", "c"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    where = f"{tmp_path}/dir a++b+{tmp_path}/c"
    source, _ = selected.open_images(ConfigDict(), where)
    assert source.paths == (f"{tmp_path}/dir a+b/x.png", f"{tmp_path}/c/x.png")
    config = visualize.get_config(f"runs=runs/a++b+runs/c,images={where}")
    assert config.runs == ("runs/a+b", "runs/c") and config.images == where


def test_spread_is_even():
    assert selected.spread(10, 4) == (0, 2, 5, 7) and selected.spread(3, 4) == (0, 1, 2)


def test_images_in_an_archive_have_boxes_too(root):
    with zipfile.ZipFile(root / "images.zip", "w") as file:
        for name in BOXES:
            file.write(root / "images" / name, name)
    (root / "boxes.json").write_text(json.dumps(BOXES))
    paths = tuple(f"{root}/images.zip/{name}" for name in BOXES)
    for kind in (image_files.Files, image_files.UprightFiles):
        _, boxes = annotations.open_objects(str(root / "boxes.json"), kind(paths, (0, 0), ("a",)), f"{root}/images.zip")
        assert [boxes[i].shape for i in range(2)] == [(40, 60), (50, 30)]
