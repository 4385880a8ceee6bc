"""Sets of images with masks: where files are, what values mean, and one sentence for each fault."""

import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.data.images.segmentation import small_set
from toast_jax.data.images.segmentation import masks, sets
from toast_jax.errors import InputError


def opened(root, format="folder", split="train"):
    return sets.open_split(ConfigDict({"format": format, "root": str(root), "splits": {"train": split}}), "train")


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8), mode).save(path)


@pytest.fixture
def root(tmp_path):
    return small_set.write(tmp_path / "set", {"train": 2})


def test_a_folder_has_lists_images_masks_and_classes(root):
    source = opened(root)
    image, labels = source[0]
    assert source.classes == small_set.CLASSES and len(source) == 2
    assert image.shape == (24, 32, 3) and labels.dtype == np.uint8 and set(np.unique(labels)) <= {0, 1, 2, 255}
    (root / "train.txt").write_text("train_1.png\n\n")
    assert opened(root).paths == source.paths[1:]


def test_classes_may_have_indices_or_colors_of_their_own(root):
    save(root / "masks/train_0.png", np.full((24, 32), 7))
    (root / "classes.json").write_text(json.dumps({"a": 9, "b": 7}))
    assert (opened(root)[0][1] == 1).all()
    save(root / "masks/train_0.png", np.broadcast_to([10, 20, 30], (24, 32, 3)))
    (root / "classes.json").write_text(json.dumps({"a": [0, 0, 0], "b": [10, 20, 30]}))
    assert (opened(root)[0][1] == 1).all()
    save(root / "masks/train_0.png", np.broadcast_to([10, 20, 31], (24, 32, 3)))
    with pytest.raises(
        InputError, match=r"train_0.png has 768 pixels of value \(10, 20, 31\), which is none of the 2 classes: "
    ):
        opened(root)[0]


def test_voc_has_a_list_for_each_folder_of_masks(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"JPEGImages/{name}.jpg", np.zeros((4, 4, 3)))
    palette = Image.fromarray(np.array([[0, 20], [255, 3]], np.uint8).repeat(2, 0).repeat(2, 1), "L")
    palette.putpalette(list(range(256)) * 3)
    (tmp_path / "SegmentationClass").mkdir()
    palette.save(tmp_path / "SegmentationClass/a.png")
    save(tmp_path / "SegmentationClassAug/b.png", np.ones((4, 4)))
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stem in {"train": "a", "aug": "b"}.items():
        (lists / f"{name}.txt").write_text(f"{stem}\n")
    source = opened(tmp_path, "voc", "train+aug")
    assert len(source.classes) == 21 and [len(source), source[1][1].max()] == [2, 1]
    np.testing.assert_array_equal(source[0][1][::2, ::2], [[0, 20], [255, 3]])
    (lists / "aug.txt").write_text("b\na\n")
    save(tmp_path / "SegmentationClassAug/a.png", np.ones((4, 4)))
    with pytest.raises(InputError, match=r"The lists of train\+aug name 1 images twice, .*/a.jpg for one: take them out of"):
        opened(tmp_path, "voc", "train+aug")


def test_ade20k_ignores_zero_and_counts_from_one(tmp_path):
    save(tmp_path / "images/training/x.jpg", np.zeros((2, 2, 3)))
    save(tmp_path / "annotations/training/x.png", [[0, 1], [150, 2]])
    source = opened(tmp_path, "ade20k", "training")
    np.testing.assert_array_equal(source[0][1], [[255, 0], [149, 1]])
    assert source.classes == tuple(map(str, range(1, 151)))
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0\t1\t1\t0\tname {i}, other" for i in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    assert opened(tmp_path, "ade20k", "training").classes[149] == "name 150"
    save(tmp_path / "annotations/training/x.png", [[0, 1], [151, 151]])
    with pytest.raises(InputError, match="has 2 pixels of value 151, which is none of the 150 classes"):
        opened(tmp_path, "ade20k", "training")[0]


def test_cityscapes_evaluates_nineteen_of_its_values(tmp_path):
    save(tmp_path / "leftImg8bit/val/bonn/bonn_0_leftImg8bit.png", np.zeros((2, 3, 3)))
    save(tmp_path / "gtFine/val/bonn/bonn_0_gtFine_labelIds.png", [[7, 33, 0], [34, 26, 9]])
    source = opened(tmp_path, "cityscapes", "val")
    np.testing.assert_array_equal(source[0][1], [[0, 18, 255], [255, 13, 255]])
    assert len(source.classes) == 19


def refused(root):
    with pytest.raises(InputError) as error:
        masks.verify(opened(root))
    return str(error.value)


def test_every_fault_of_a_mask_is_a_sentence_before_the_first_step(root):
    masks.verify(opened(root))
    save(root / "masks/train_0.png", np.zeros((24, 31)))
    assert f"Mask {root}/masks/train_0.png is 31 x 24 pixels and its image {root}/images/train_0.png 32 x 24: " in refused(root)
    save(root / "masks/train_0.png", np.pad([[7, 7, 9]], ((0, 23), (0, 29))))
    assert "train_0.png has 2 pixels of value 7, which is none of the 3 classes: add the class" in refused(root)
    save(root / "masks/train_1.png", np.full((32, 24), 3))
    assert refused(root).endswith("correct the mask (2 of 2 images cannot be used).")
    save(root / "masks/train_0.png", np.zeros((24, 32, 3)))
    assert "train_0.png has colors (RGB) where the index of a class is expected: " in refused(root)
    Image.fromarray(np.ones((24, 32), np.uint8)).save(root / "masks/train_0.png", format="JPEG")
    assert "train_0.png is a JPEG, which changes the values of pixels: write it as PNG" in refused(root)
    (root / "masks/train_0.png").write_bytes(b"no image")
    assert "Mask " in refused(root) and "train_0.png cannot be decoded" in refused(root)
    (root / "images/train_0.png").write_bytes(b"no image")
    assert "train_0.png cannot be decoded" in refused(root) and "replace it, or take it out of the list (2 of" in refused(root)


def test_classes_that_no_mask_has_are_said(root, caplog):
    source = opened(root)
    masks.check_classes(source, masks.verify(source))
    assert not caplog.messages
    for i, sides in enumerate([(24, 32), (32, 24)]):
        save(root / f"masks/train_{i}.png", np.pad([[1, 255]], ((0, sides[0] - 1), (0, sides[1] - 2))))
    masks.check_classes(source, masks.verify(source))
    assert "No training mask has a pixel of disc; the value 255 is ignored." in caplog.messages
    for i, sides in enumerate([(24, 32), (32, 24)]):  # a drawn object: 255 in place of 1
        save(root / f"masks/train_{i}.png", np.pad([[255]], ((0, sides[0] - 1), (0, sides[1] - 1))))
    with pytest.raises(InputError, match="masks are of ground, so there is nothing to learn; the value 255 is ignored:"):
        masks.check_classes(source, masks.verify(source))


def test_an_image_that_never_fills_the_crop_is_refused(root):
    masks.verify(opened(root), least=(24, 32), box=(48, 32))
    with pytest.raises(
        InputError, match="train_1.png is 24 x 32 pixels when resized to fit config.data.scale, smaller than the"
    ):
        masks.verify(opened(root), least=(24, 32), box=(32, 24))


def test_a_root_too_high_or_too_deep_is_answered_by_the_right_one(root):
    (root / "below").mkdir()
    for folder in ("images/training", "leftImg8bit/train"):
        (root / folder).mkdir(parents=True)
    answer = f"cannot be read .*: it is in {root}; set --config.data.root to that"
    for other in (root.parent, root / "below"):
        with pytest.raises(InputError, match=f"List .*train.txt {answer}"):
            opened(other)
        with pytest.raises(InputError, match=f"Folder .*images/training {answer}"):
            opened(other, "ade20k", "training")
        with pytest.raises(InputError, match=f"Folder .*leftImg8bit/train {answer}"):
            opened(other, "cityscapes")
    (root / "masks").rename(root / "below/masks")
    with pytest.raises(InputError, match=f"2 of the 2 masks .*masks/train_0.png: it is in {root}/below; move what is there to"):
        opened(root)


def test_missing_files_and_lists_are_named(root):
    (root / "train.txt").write_text("train_0\nnowhere\nelsewhere\n")
    with pytest.raises(InputError, match="2 of the 3 images of .*train.txt do not exist, the first is .*images/nowhere.jpg: "):
        opened(root)
    (root / "train.txt").write_text("train_0\n")
    (root / "masks/train_0.png").unlink()
    for there, remedy in ((False, "unpack all of them"), (True, "write the JPEG there as PNG")):
        if there:
            save(root / "masks/train_0.jpg", np.zeros((24, 32)))
        message = f"1 of the 1 masks of .*train.txt do not exist, the first is .*masks/train_0.png: {remedy}, "
        with pytest.raises(InputError, match=message):
            opened(root)
    for split, content in {"none": None, "empty": "\n"}.items():
        if content:
            (root / f"{split}.txt").write_text(content)
        with pytest.raises(InputError, match=f"List .*{split}.txt (cannot be read|names no image)"):
            opened(root, split=split)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_cannot_be_read_are_named(root, kind):
    file = next((root / kind).glob("train_0.*"))
    source = opened(root)
    file.unlink()
    file.mkdir()
    remedy = "replace it, or take it out of the list."
    with pytest.raises(InputError, match=re.escape(f"{file} cannot be read (Is a directory): {remedy}")):
        source[0]


NOT_NAMES, TWICE = ('[["a"], ["b"]]', '[{"name": "a"}]', '["a", null]'), ('["a", "b", "a"]', '{"a": 0, "b": 1, "a": 2}')


@pytest.mark.parametrize(
    "content", ["[", "[]", '{"a": "b"}', '{"a": [1, 2]}', '{"a": 255}', '{"a": 1, "b": 1}', *NOT_NAMES, *TWICE]
)
def test_wrong_classes_are_refused(root, content):
    (root / "classes.json").write_text(content)
    with pytest.raises(InputError, match="classes.json (is not valid JSON|must hold|gives two|has the class 'a' twice)"):
        opened(root)


def test_photographs_are_turned_as_the_masks_that_were_drawn_on_them(root):
    """Of the format folder; published sets keep their stored pixels."""
    exif, stored = Image.Exif(), np.zeros((32, 24, 3), np.uint8)
    stored[:8] = 255
    for orientation, white in ((3, np.s_[24:]), (6, np.s_[:, 24:])):
        exif[0x0112] = orientation
        upright = np.zeros((24, 32) if orientation == 6 else (32, 24), np.uint8)
        upright[white] = 1
        Image.fromarray(stored).save(root / "images/train_0.jpg", exif=exif, quality=95)
        Image.fromarray(upright).save(root / "masks/train_0.png")
        for kind in (masks.UprightMaskedImages, type(opened(root))):
            source = kind((str(root / "images/train_0.jpg"),), (str(root / "masks/train_0.png"),), ("black", "white"), (0, 1))
            image, labels = source[0]
            assert image.shape[:2] == labels.shape == source.sides(0) == upright.shape
            assert image[labels == 1].min() > 200 and image[labels == 0].max() < 50
    Image.fromarray(stored[..., 0] // 255).save(root / "masks/train_0.png", exif=exif)  # with a tag of its own
    np.testing.assert_array_equal(source[0][1], upright)
    assert not masks.MaskedImages.orient


def test_a_list_names_each_image_once_and_endings_may_be_upper_case(root):
    (root / "images/train_0.png").rename(root / "images/train_0.PNG")
    (root / "train.txt").write_text("train_0.PNG\ntrain_1\n")
    assert [path.split("/")[-1] for path in opened(root).paths] == ["train_0.PNG", "train_1.png"]
    for other in ("train_0.jpg", "train_1.Png"):  # a name that is a file is that file
        save(root / "images" / other, np.zeros((24, 32, 3)))
    (root / "train.txt").write_text("train_0.PNG\ntrain_1.Png\n")
    assert [path.split("/")[-1] for path in opened(root).paths] == ["train_0.PNG", "train_1.Png"]
    (root / "train.txt").write_text("train_0\ntrain_1\ntrain_0.PNG\n")
    with pytest.raises(InputError, match=r"List .*train.txt names the image 'train_0' twice: leave it in once\."):
        opened(root)
