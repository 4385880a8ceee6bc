"""Sources: what the three formats read, and one clear sentence for everything that can be wrong with them."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from configs import fgvc, folder, pretune
from toast_jax.data.images import image_files, pixels, selected, sources, tfds_records
from toast_jax.data.images import verify as verifying
from toast_jax.errors import InputError

PNG = io.BytesIO()
Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(PNG, "PNG")
PNG = PNG.getvalue()


def config(root, format, **changes):
    data = {
        "format": format,
        "root": str(root),
        "image_dir": "images",
        "name": "",
        "splits": {"train": "train", "val": "val", "test": "test"},
        "num_classes": 0,
        "labels": True,
    }
    return ConfigDict({**data, **changes})


def write(path, data=PNG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def json_root(root, train, image_dir="images", **splits):
    """Split files, and an image for every path in them."""
    for split, listing in {"train": train, **splits}.items():
        write(root / f"{split}.json", json.dumps(listing).encode())
        for name in listing:
            write(root / image_dir / name)
    return root


def folder_root(root, *paths):
    for path in paths:
        write(root / path)
    return root


def error_of(data, split="train"):
    with pytest.raises(InputError) as raised:
        sources.open_split(data, split)
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message
    return message


def names(source):
    return [source[index]["name"] for index in range(len(source))]


def labels(source):
    return [source[index]["label"] for index in range(len(source))]


# JSON split files


def test_json_keeps_the_order_of_the_file_and_gives_the_bytes(tmp_path):
    json_root(tmp_path, {"b/2.png": 7, "a/1.png": 5, "b/3.png": 7}, test={"a/9.png": 5})
    write(tmp_path / "images/a/1.png", b"other bytes")
    source = sources.open_split(config(tmp_path, "json"), "train")
    assert len(source) == 3
    assert source[0] == {"image": PNG, "label": 1, "name": str(tmp_path / "images/b/2.png")}
    assert source[1] == {"image": b"other bytes", "label": 0, "name": str(tmp_path / "images/a/1.png")}
    assert source.classes == ("5", "7")


@pytest.mark.parametrize(
    ("ids", "classes"),
    [([10, 9, 1, 2], ("1", "2", "9", "10")), (["10", "9", "1", "2"], ("1", "10", "2", "9"))],
    ids=["integers", "strings"],
)
def test_json_class_ids_are_sorted_as_they_stand(tmp_path, ids, classes):
    json_root(tmp_path, {f"{class_id}.png": class_id for class_id in ids})
    source = sources.open_split(config(tmp_path, "json"), "train")
    assert source.classes == classes
    assert [source.classes[label] for label in labels(source)] == [str(class_id) for class_id in ids]


def test_json_labels_of_every_split_follow_train(tmp_path):
    json_root(tmp_path, {"a.png": 3, "b.png": 5, "c.png": 8}, val={"d.png": 8})
    source = sources.open_split(config(tmp_path, "json"), "val")
    assert labels(source) == [2] and source.classes == ("3", "5", "8")


def test_json_images_may_lie_in_the_root_and_splits_have_other_names(tmp_path):
    json_root(tmp_path, {}, image_dir="", train800={"jpg/a.png": 1})
    splits = {"train": "train800", "val": "", "test": ""}
    source = sources.open_split(config(tmp_path, "json", image_dir="", splits=splits), "train")
    assert names(source) == [str(tmp_path / "jpg/a.png")]


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    json_root(tmp_path / "birds", {"a.png": 1})
    assert len(sources.open_split(config("~/birds", "json"), "train")) == 1


def test_json_errors(tmp_path):
    data = config(tmp_path, "json")
    assert f"Data folder {tmp_path}/x does not exist" in error_of(config(tmp_path / "x", "json"))
    assert f"Image folder {tmp_path}/images does not exist" in error_of(data) and "data.format" not in error_of(data)
    (tmp_path / "train" / "heron").mkdir(parents=True)
    assert f"folders of classes, as in {tmp_path}/train, need config.data.format=folder." in error_of(data)
    json_root(tmp_path, {"a.png": 1, "b.png": 2}, test={"c.png": 1})
    assert f"Split file {tmp_path}/val.json does not exist" in error_of(data, "val")
    json_root(tmp_path, {"a.png": 1, "b.png": 2}, val={"d.png": 4})
    assert f"{tmp_path}/val.json has class 4, which {tmp_path}/train.json has not" in error_of(data, "val")
    json_root(tmp_path, {"a.png": 1, "b.png": 2}, val={"d.png": "1"})
    assert "has class '1'" in error_of(data, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON (Expecting"),
        ("[1]", "must hold a JSON object"),
        ("{}", "must hold a JSON object"),
        ('{"a.png": 1, "b.png": "2"}', "must be all integers or all strings"),
        ('{"a.png": [1]}', "must be all integers or all strings"),
        ('{"a.png": true}', "must be all integers or all strings"),
        ('{"a.png": 1, "b.png": 2, "a.png": 1}', "has the image 'a.png' twice: leave it in once"),
        ('{"a.png": 1, "b.png": 2, "a.png": 2}', "has the image 'a.png' twice, with the classes 1 and 2: leave it in once"),
        ('{"x/a.png": 1, "x//./a.png": 3}', "has the image 'x//./a.png' twice, with the classes 1 and 3: leave it in once"),
        ("[" * 100_000, "is not valid JSON (maximum recursion depth"),
        ("\ufeff{}", "must hold a JSON object"),
    ],
)
def test_a_malformed_split_file_is_an_input_error(tmp_path, text, message):
    json_root(tmp_path, {"a.png": 1})
    (tmp_path / "train.json").write_text(text)
    error = error_of(config(tmp_path, "json"))
    assert message in error and f"{tmp_path}/train.json" in error


def test_a_list_with_an_image_twice_is_an_input_error(tmp_path):
    json_root(tmp_path, ["a.png", "b.png", "./a.png"])
    assert "has the image './a.png' twice: leave it in once" in error_of(config(tmp_path, "json", labels=False))


def test_a_split_file_that_is_a_folder_is_an_input_error(tmp_path):
    json_root(tmp_path, {"a.png": 1})
    (tmp_path / "val.json").mkdir()
    assert f"{tmp_path}/val.json cannot be read (Is a directory)" in error_of(config(tmp_path, "json"), "val")


def test_missing_images_are_counted(tmp_path):
    json_root(tmp_path, {f"{folder}/{index}.png": 1 for folder in "abc" for index in range(2)})
    (tmp_path / "images/b/1.png").unlink()
    for path in (tmp_path / "images/c").iterdir():
        path.unlink()
    (tmp_path / "images/c").rmdir()
    assert f"3 of 6 images do not exist, the first is {tmp_path}/images/b/1.png" in error_of(config(tmp_path, "json"))


def test_a_root_too_high_or_too_deep_is_answered_by_the_right_one(tmp_path):
    root = tmp_path / "set"
    json_root(root, ["a.png"])
    (root / "images/train/deep").mkdir(parents=True)
    for given, right, format in (
        *((given, root, "json") for given in (tmp_path, root / "images")),
        *((given, root / "images", "folder") for given in (root, root / "images/train")),
    ):
        error = error_of(config(given, format, labels=False))
        assert f"older {given}/{'train' if format == 'folder' else 'images'} does not exist" in error
        assert error.endswith(f": it is in {right}; set --config.data.root to that.")


# Class folders


def test_folders_are_classes_in_the_order_of_their_names(tmp_path):
    folder_root(tmp_path, "train/b/2.PNG", "train/b/1.jpg", "train/a/3.webp", "train/c/4.jpeg")
    folder_root(tmp_path, "test/c/5.gif", "test/b/6.bmp")
    folder_root(tmp_path, "train/a/notes.txt", "train/a/._3.png", "train/.cache/7.png", "train/readme.png")
    train, test = (sources.open_split(config(tmp_path, "folder"), split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    assert names(train) == [str(tmp_path / "train" / name) for name in ("a/3.webp", "b/1.jpg", "b/2.PNG", "c/4.jpeg")]
    assert labels(train) == [0, 1, 1, 2] and labels(test) == [1, 2]
    assert train[0]["image"] == PNG


def test_folder_errors(tmp_path):
    data = config(tmp_path, "folder")
    assert f"Folder {tmp_path}/train does not exist ({tmp_path} has no folders)" in error_of(data)
    folder_root(tmp_path, "Train/a/1.png", "test/a/1.png")
    assert f"Folder {tmp_path}/train does not exist ({tmp_path} has Train, test)" in error_of(data)
    folder_root(tmp_path, "train/1.png")
    assert f"Folder {tmp_path}/train has no class folders" in error_of(data)
    folder_root(tmp_path, "train/a/1.png", "test/b/1.png")
    assert f"Class folder {tmp_path}/test/b has no counterpart in {tmp_path}/train" in error_of(data, "test")
    folder_root(tmp_path, "train/b/notes.txt")
    assert f"Class folder {tmp_path}/train/b has no images (.jpg" in error_of(data)


def test_names_may_be_any_text(tmp_path):
    root = tmp_path / "Vögel und 鳥"
    paths = ("train/grün fink/ein bild.png", "train/鳥/1'\"\n.png", "train/🦉/😀.PNG")
    train = sources.open_split(config(folder_root(root, *paths), "folder"), "train")
    assert train.classes == ("grün fink", "鳥", "🦉") and sorted(names(train)) == sorted(str(root / path) for path in paths)
    assert verifying.verify(train, skip_corrupt=False) is train


@pytest.mark.parametrize("labels", [True, False])
def test_a_name_that_is_no_text_is_refused(tmp_path, labels):
    folder_root(tmp_path, "train/a/1.png")
    write(tmp_path / "train/a" / os.fsdecode(b"owl\xff.png"))
    assert r"train/a/owl\udcff.png is not UTF-8: rename it" in error_of(config(tmp_path, "folder", labels=labels))


def test_links_that_lead_in_a_circle_are_no_classes(tmp_path):
    folder_root(tmp_path, "train/a/1.png")
    (tmp_path / "train/loop").symlink_to("loop")
    assert sources.open_split(config(tmp_path, "folder"), "train").classes == ("a",)
    (tmp_path / "train/a/2.png").symlink_to("2.png")
    source = sources.open_split(config(tmp_path, "folder"), "train")
    with pytest.raises(InputError, match="a/2.png cannot be read .Too many levels of symbolic links.: mend or remove it"):
        verifying.verify(source, skip_corrupt=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder_root(tmp_path, "train/a/1.png")
    os.mkfifo(tmp_path / "train/a/2.png")
    (tmp_path / "train/a/3.png").mkdir()
    source = sources.open_split(config(tmp_path, "folder"), "train")
    with pytest.raises(InputError, match="3.png cannot be read .Is a directory.: mend or remove it"):
        source[2]
    (tmp_path / "train/a/3.png").rmdir()
    with pytest.raises(InputError, match="1 of 2 images cannot be decoded .*a/2.png"):
        verify(tmp_path)


def test_classes_of_one_image(tmp_path):
    source = sources.open_split(config(folder_root(tmp_path, *(f"train/{i:02}/x.png" for i in range(12))), "folder"), "train")
    assert len(source.classes) == len(source) == 12 and labels(source) == list(range(12))


# What the formats share


def test_general_errors(tmp_path):
    folder_root(tmp_path, "train/a/1.png", "train/b/1.png")
    assert "config.data.format is 'zip'; it must be one of json, folder, tfds" in error_of(config(tmp_path, "zip"))
    no_val = config(tmp_path, "folder", splits={"train": "train", "val": "", "test": "test"})
    assert "has no val split: name one with --config.data.splits.val" in error_of(no_val, "val")
    error = error_of(config(tmp_path, "folder", num_classes=3))
    assert "has 2 classes but config.data.num_classes is 3: set --config.data.num_classes=2, or 0" in error
    assert len(sources.open_split(config(tmp_path, "folder", num_classes=2), "train").classes) == 2


def test_one_class_is_refused_unless_labels_are_not_read(tmp_path):
    splits = {"train": "train", "val": "", "test": ""}
    data = config(folder_root(tmp_path, "train/only/1.png"), "folder", splits=splits)
    with pytest.raises(InputError, match="has one class, only, so there is nothing to tell apart: add images"):
        sources.open_splits(data)
    assert len(sources.open_splits(config(tmp_path, "folder", splits=splits, labels=False))["train"]) == 1


def test_classes_whose_names_look_the_same_are_logged(tmp_path, caplog):
    composed, decomposed = "f\u00e9e", "fe\u0301e"
    folder_root(tmp_path, *(f"train/{name}/1.png" for name in ("Cat", "cat", composed, decomposed, "cats")))
    opened = sources.open_splits(config(tmp_path, "folder", splits={"train": "train", "val": "", "test": ""}))
    assert len(opened["train"].classes) == 5
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "'Cat' and 'cat' are two classes",
        f"'{decomposed}' and '{composed}' are two classes",
    ]


def test_class_folders_of_the_same_number_are_two_classes(tmp_path, caplog):
    folder_root(tmp_path, *(f"train/{name}/1.png" for name in ("1", "01", "10", "2")))
    for num_classes in (0, 4):
        of = config(tmp_path, "folder", splits={"train": "train", "val": "", "test": ""}, num_classes=num_classes)
        source = sources.open_splits(of)["train"]
        assert source.classes == ("01", "1", "2", "10") and source.labels == (0, 1, 2, 3)
        assert [path.split("/")[-2] for path in source.paths] == list(source.classes)
    assert not caplog.messages


def test_verify_returns_a_sound_source_as_it_is(tmp_path):
    source = sources.open_split(config(folder_root(tmp_path, "train/a/1.png"), "folder"), "train")
    assert verifying.verify(source, skip_corrupt=False) is source
    assert verifying.verify(source, skip_corrupt=True) is source


@pytest.fixture
def damaged(tmp_path):
    folder_root(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "train/b/4.png")
    write(tmp_path / "train/a/2.png", PNG[:40])
    write(tmp_path / "train/b/3.png", b"")
    return tmp_path


def verify(root, *, skip_corrupt=False):
    return verifying.verify(sources.open_split(config(root, "folder"), "train"), skip_corrupt=skip_corrupt)


def test_verify_names_the_corrupt_images(damaged):
    message = rf"^2 of 4 images .* \({damaged}/train/a/2.png, {damaged}/train/b/3.png\): .*--config.data.skip_corrupt=True\.$"
    with pytest.raises(InputError, match=message):
        verify(damaged)


def test_skip_corrupt_leaves_them_out_with_a_warning(damaged, caplog):
    source = verify(damaged, skip_corrupt=True)
    assert names(source) == [str(damaged / "train/a/1.png"), str(damaged / "train/b/4.png")]
    assert labels(source) == [0, 1] and source.classes == ("a", "b")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "2 of 4 images" in warnings[0] and "train/b/3.png" in warnings[0]


def test_skip_corrupt_may_not_empty_a_class(damaged):
    write(damaged / "train/b/4.png", b"")
    with pytest.raises(InputError, match="^3 of 4 images .* and class b has no other image"):
        verify(damaged, skip_corrupt=True)


def test_evaluation_images_that_are_training_images_are_logged(tmp_path, caplog):
    folder_root(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "test/a/4.png", "test/b/5.png")
    for number, path in enumerate(["train/b/2.png", "val/a/3.png", "test/b/5.png"]):
        write(tmp_path / path, PNG + bytes([number]))  # decoders ignore what follows the image
    opened = sources.open_splits(config(tmp_path, "folder"))
    assert verifying.verify_splits(opened, skip_corrupt=False) == opened
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"1 of the 2 images of test are training images too ({tmp_path}/test/a/4.png is {tmp_path}/train/"
    )


def test_a_long_verification_logs_its_progress(damaged, caplog, monkeypatch):
    caplog.set_level("INFO", "toast_jax")
    monkeypatch.setattr(verifying, "_AT_ONCE", 3)
    monkeypatch.setattr(verifying, "_INTERVAL", -1.0)
    assert labels(verify(damaged, skip_corrupt=True)) == [0, 1]
    progress = [record.message for record in caplog.records if "are verified" in record.message]
    assert progress == ["3 of 4 images are verified.", "4 of 4 images are verified."]


def test_a_long_list_of_corrupt_images_is_cut(tmp_path):
    for index in range(9):
        write(tmp_path / f"train/a/{index}.png", b"")
    with pytest.raises(InputError, match="9 of 9 images") as raised:
        verify(tmp_path)
    assert str(raised.value).count(".png") == 3


def test_corrupt_images_of_all_splits_are_reported_together(tmp_path, caplog):
    paths = ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "test/a/5.png", "test/b/6.png")
    opened = sources.open_splits(config(folder_root(tmp_path, *paths), "folder"))
    corrupt = [str(tmp_path / path) for path in paths[::2]]
    for path in corrupt:
        write(Path(path), b"")
    with pytest.raises(InputError, match=f"^3 of 6 images cannot be decoded .{', '.join(corrupt)}.: download"):
        verifying.verify_splits(opened, skip_corrupt=False)
    with pytest.raises(InputError, match="^3 of 6 images .* and class a has no other image"):
        verifying.verify_splits(opened, skip_corrupt=True)
    write(tmp_path / paths[1], b"")
    caplog.clear()
    with pytest.raises(InputError, match="and 1 more"):
        verifying.verify_splits(opened, skip_corrupt=False)
    (logged,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert logged.count(".png") == 4  # all of them, where the sentence is cut


def test_file_sources_are_picklable(tmp_path):
    source = sources.open_split(config(folder_root(tmp_path, "train/a/1.png", "train/b/2.png"), "folder"), "train")
    subset = verifying.Subset(source, (1,))
    copy = pickle.loads(pickle.dumps(subset))
    assert copy == subset and copy[0] == source[1] and copy.classes == source.classes


# TFDS


@pytest.fixture(scope="module")
def tfds_root(tmp_path_factory):
    """A prepared dataset of 12 training and 5 test images, written without TensorFlow."""

    class ToastDots(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
                "image/filename": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["one", "two", "three"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for index in range(count):
                image, mask = io.BytesIO(), io.BytesIO()
                Image.new("RGB", (8, 8), (index,) * 3).save(image, "PNG")
                Image.new("L", (8, 8)).save(mask, "PNG")
                image.seek(0), mask.seek(0)
                example = {"image": image, "segmentation_mask": mask, "label": index % 3}
                yield index, {**example, "image/filename": f"{index}.png"}

    root = tmp_path_factory.mktemp("tfds")
    ToastDots(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


def tfds_config(root, name="toast_dots", train="train"):
    return config(root, "tfds", name=name, splits={"train": train, "val": "train[10:]", "test": "test"})


def test_tfds_gives_encoded_images_and_their_labels(tfds_root):
    source = sources.open_split(tfds_config(tfds_root), "train")
    assert len(source) == 12 and source.classes == ("one", "two", "three")
    for example in (source[index] for index in range(12)):
        value = int(example["name"].removesuffix(".png"))
        assert (pixels.decode(example["image"], "") == value).all() and example["label"] == value % 3
    assert sorted(names(source)) == sorted(f"{index}.png" for index in range(12))


def test_tfds_splits_can_be_slices(tfds_root):
    train, val = (sources.open_split(tfds_config(tfds_root, train="train[:10]"), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 2)
    assert not set(names(train)) & set(names(val))


def test_tfds_sources_are_picklable(tfds_root):
    source = sources.open_split(tfds_config(tfds_root), "test")
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[index] for index in range(5)] == [source[index] for index in range(5)]


def test_tfds_needs_no_tensorflow(tfds_root, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it fails from here on
    assert len(labels(sources.open_split(tfds_config(tfds_root), "train"))) == 12


def test_tfds_errors(tfds_root, tmp_path):
    message = error_of(tfds_config(tfds_root, name="toast_stripes"))
    assert "TFDS cannot open dataset 'toast_stripes' (Dataset toast_stripes not found): correct" in message
    assert "TFDS cannot open dataset ''" in error_of(tfds_config(tfds_root, name=""))
    message = error_of(tfds_config(tmp_path, name="stanford_dogs"))
    assert f"`tfds build stanford_dogs --file_format=array_record --data_dir={tmp_path}`" in message
    for wrong in (tfds_root.parent, tfds_root / "toast_dots", tfds_root / "toast_dots/1.0.0"):
        message = error_of(tfds_config(wrong))
        assert f"is not prepared under {wrong} but under {tfds_root}: set --config.data.root={tfds_root}." in message
    message = error_of(tfds_config(tfds_root, train="trian"))
    assert "no split 'trian' (it has train, test): correct --config.data.splits.train" in message


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone", "info"])
def test_damaged_tfds_files_are_an_input_error(tfds_root, tmp_path, damage):
    folder = shutil.copytree(tfds_root / "toast_dots", tmp_path / "toast_dots")
    file = next(folder.rglob("dataset_info.json" if damage == "info" else "*train*array_record*"))
    content = file.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "changed": content[:300] + bytes(200) + content[500:]}
    file.unlink() if damage == "gone" else file.write_bytes(damaged.get(damage, b"{"))
    with pytest.raises(InputError, match="TFDS cannot open dataset" if damage == "info" else "is damaged .*prepare it again"):
        verifying.verify(sources.open_split(tfds_config(tmp_path), "train"), skip_corrupt=True)


def test_records_of_any_mode_are_rgb_and_names_need_not_be_utf8(tfds_root, tmp_path, monkeypatch):
    """TFDS's records are read as they are stored: not turned by EXIF, as their published results were not."""
    source = sources.open_split(tfds_config(tfds_root), "train")
    turned = Image.Exif()
    turned[0x0112] = 6
    for image, expected in (
        (Image.new("L", (4, 2), 9), 9),
        (Image.new("LA", (4, 2), (9, 100)), 9),
        (Image.fromarray(np.full((2, 4), 40_000, np.uint16)), 40_000 >> 8),
        (Image.new("RGB", (4, 2), (7, 7, 7)), 7),
    ):
        file = io.BytesIO()
        image.save(file, "PNG", exif=turned)
        record = {"image": file.getvalue(), "label": 1, "image/filename": b"caf\xe9.png"}
        monkeypatch.setattr(tfds_records, "records", lambda *_, record=record: [record])
        example = dataclasses.replace(source)[0]
        assert example["name"] == "caf\\xe9.png"
        np.testing.assert_array_equal(pixels.decode_example(example), np.full((2, 4, 3), expected, np.uint8))


def test_tfds_in_another_format_is_an_input_error(tfds_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    version = tmp_path / "toast_dots/1.0.0"
    version.mkdir(parents=True)
    for path in (tfds_root / "toast_dots/1.0.0").iterdir():
        text = path.read_bytes().replace(b'"fileFormat": "array_record"', b'"fileFormat": "tfrecord"')
        (version / path.name.replace("array_record", "tfrecord")).write_bytes(text)
    message = error_of(tfds_config(tmp_path))
    assert "is not in array_record format" in message
    assert f"`tfds convert_format --dataset_version_dir={version} --out_file_format=array_record`" in message


def test_labels_outside_the_classes_are_refused(tmp_path):
    """TFDS gives the label -1 to every image of some test splits."""
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    source = image_files.Files((str(path),), (-1,), ("a", "b"))
    with pytest.raises(InputError, match=r"have a label outside the 2 classes \(.*a.png has -1\): choose a split"):
        verifying.verify(source, skip_corrupt=False)


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    source = image_files.Files((str(tmp_path / "link.jpg"),), (0,), ("a",))
    with pytest.raises(InputError, match="link.jpg cannot be read .*: mend or remove it"):
        verifying.verify(source, skip_corrupt=True)


# Without labels


@pytest.mark.parametrize("listing", [["a/1.png", "b/2.png"], {"a/1.png": 3, "b/2.png": 5}])
def test_json_without_labels_is_a_list_of_paths(tmp_path, listing):
    source = sources.open_split(config(json_root(tmp_path, listing), "json", labels=False), "train")
    assert labels(source) == [0, 0] and source.classes == (image_files.UNLABELLED,)
    assert names(source) == [f"{tmp_path}/images/a/1.png", f"{tmp_path}/images/b/2.png"]


def test_json_with_labels_is_no_list(tmp_path):
    assert "must hold a JSON object" in error_of(config(json_root(tmp_path, ["a/1.png"]), "json"))


def test_folder_without_labels_is_searched_at_every_depth(tmp_path):
    folder_root(tmp_path, "train/1.png", "train/x/y/2.PNG", "train/x/.hidden.png", "train/x/notes.txt", "val/3.png")
    folder_root(tmp_path, "train/.thumbs/4.png", "elsewhere/5.png")
    (tmp_path / "train/z").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "train")
    source = sources.open_split(config(tmp_path, "folder", labels=False), "train")
    assert names(source) == [f"{tmp_path}/train/{name}" for name in ("1.png", "x/y/2.PNG", "z/5.png")]
    assert labels(source) == [0, 0, 0] and source.classes == (image_files.UNLABELLED,)


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    assert "has no images" in error_of(config(tmp_path, "folder", labels=False))


def test_tfds_labels_need_not_be_read(tfds_root):
    data = tfds_config(tfds_root)
    data.labels = False
    source = sources.open_split(data, "train")
    assert set(labels(source)) == {0} and source.classes == (image_files.UNLABELLED,)


# What is an image, and what is left out


def photo(path, orientation=6):
    """An image of 7 x 4 stored pixels whose EXIF has an orientation."""
    tag, file = Image.Exif(), io.BytesIO()
    tag[0x0112] = orientation
    Image.new("RGB", (7, 4)).save(file, "JPEG", exif=tag)
    write(path, file.getvalue())


def heights(source):
    return [pixels.decode_example(source[index]).shape[0] for index in range(len(source))]


def test_configs_of_folders_turn_photos_upright_and_others_do_not():
    for get_config, text, orient in (
        (folder.get_config, "", True),
        (pretune.get_config, "source=downstream", True),
        (pretune.get_config, "source=imagenet", False),
        (fgvc.get_config, "dataset=cub", False),
    ):
        assert get_config(text).data.exif_orientation is orient


def test_photos_are_upright_if_the_config_asks_for_it(tmp_path):
    photo(tmp_path / "train/a/1.jpg")
    photo(tmp_path / "images/1.jpg")
    write(tmp_path / "train.json", b'{"1.jpg": 1}')
    for labelled in (True, False):
        for format in ("folder", "json"):  # saved by a version without the field
            assert heights(sources.open_split(config(tmp_path, format, labels=labelled), "train")) == [4]
            for orient, height in ((False, 4), (True, 7)):
                data = config(tmp_path, format, labels=labelled, exif_orientation=orient)
                assert heights(sources.open_split(data, "train")) == [height]
    source = image_files.unlabelled(str(tmp_path / "train"))
    assert heights(source) == heights(image_files.unlabelled(str(tmp_path / "train/a/1.jpg"))) == [7]
    assert heights(selected.open_images(config(tmp_path, "folder"), str(tmp_path / "train"))[0]) == [7]
    assert heights(pickle.loads(pickle.dumps(source))) == [7]


@pytest.mark.parametrize("labelled", [True, False])
def test_every_ending_that_pillow_decodes_is_taken_and_the_others_are_counted(tmp_path, caplog, labelled):
    endings = {".tif": "TIFF", ".TIFF": "TIFF", ".jfif": "JPEG", ".avif": "AVIF", ".webp": "WEBP", ".jp2": "JPEG2000"}
    supported = {ending: format for ending, format in endings.items() if ending.lower() in Image.registered_extensions()}
    for ending, format in supported.items():
        path = tmp_path / f"train/a/photo{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path, format)
    folder_root(
        tmp_path, "train/a/list.csv", "train/a/film.mpg", "train/a/deep/er/scan.heic", "train/a/.DS_Store", "train/x.pdf"
    )
    source = sources.open_split(config(tmp_path, "folder", labels=labelled), "train")
    assert sorted(names(source)) == sorted(f"{tmp_path}/train/a/photo{ending}" for ending in supported)
    assert verifying.verify(source, skip_corrupt=False) is source
    (record,) = [record for record in caplog.records if "left out" in record.message]
    assert f"{tmp_path}/train: 4 files are left out" in record.message
    assert "a/deep/er/scan.heic, a/film.mpg" in record.message


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, caplog):
    sources.open_split(config(folder_root(tmp_path, "train/a/1.png", "train/a/._1.png"), "folder"), "train")
    assert not caplog.records


def test_images_deeper_than_the_class_folder_are_of_that_class(tmp_path):
    folder_root(tmp_path, "train/b/day2/3.png", "train/b/day1/x/2.png", "train/b/1.png", "train/a/only/deep.png")
    source = sources.open_split(config(tmp_path, "folder"), "train")
    assert names(source) == [f"{tmp_path}/train/{x}" for x in ("a/only/deep.png", "b/1.png", "b/day1/x/2.png", "b/day2/3.png")]
    assert labels(source) == [0, 1, 1, 1]


def test_two_links_to_a_folder_are_one(tmp_path):
    folder_root(tmp_path, "train/a/1.png", "elsewhere/2.png")
    for name in ("z", "m"):
        (tmp_path / "train/a" / name).symlink_to(tmp_path / "elsewhere")
    assert names(sources.open_split(config(tmp_path, "folder"), "train")) == [
        f"{tmp_path}/train/a/{name}" for name in ("1.png", "m/2.png")
    ]


@pytest.mark.parametrize("labelled", [True, False])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, labelled):
    folder_root(tmp_path, "train/a/1.png", "train/a/closed/2.png")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert "a/closed cannot be read (Permission denied)" in error_of(config(tmp_path, "folder", labels=labelled))


# Classes


def test_class_folders_that_are_numbers_sort_as_numbers(tmp_path):
    folder_root(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in (10, 9, 100, 2)))
    for split in ("train", "val"):
        source = sources.open_split(config(tmp_path, "folder"), split)
        assert source.classes == ("2", "9", "10", "100") and labels(source) == [0, 1, 2, 3]
        assert [name.split("/")[-2] for name in names(source)] == ["2", "9", "10", "100"]
    folder_root(tmp_path, "train/1a/1.png")
    assert sources.open_split(config(tmp_path, "folder"), "train").classes == ("10", "100", "1a", "2", "9")


def test_a_subset_of_numbered_classes_keeps_its_ids_where_the_number_of_classes_says_so(tmp_path):
    json_root(tmp_path, {"a.png": 7, "b.png": 3}, val={"c.png": 7})
    folder_root(tmp_path, "train/7/a.png", "train/03/b.png", "val/7/c.png")
    for format in ("json", "folder"):
        train, val = (sources.open_split(config(tmp_path, format, num_classes=9), split) for split in ("train", "val"))
        assert sorted(labels(train)) == [3, 7] and labels(val) == [7]
        assert train.classes == val.classes and len(train.classes) == 9
        assert train.classes[7] == "7" and train.classes[3] == ("3" if format == "json" else "03")
        assert sorted(labels(sources.open_split(config(tmp_path, format, num_classes=2), "train"))) == [0, 1]
        assert sorted(labels(sources.open_split(config(tmp_path, format), "train"))) == [0, 1]
        assert "has 2 classes but config.data.num_classes is 7" in error_of(config(tmp_path, format, num_classes=7))
    folder_root(tmp_path, "train/x/a.png")
    assert "has 3 classes but config.data.num_classes is 9" in error_of(config(tmp_path, "folder", num_classes=9))


def test_class_ids_that_are_texts_are_ranks(tmp_path):
    json_root(tmp_path, {"a.png": "7", "b.png": "3"})
    assert "has 2 classes but config.data.num_classes is 9" in error_of(config(tmp_path, "json", num_classes=9))


def test_a_byte_order_mark_is_no_part_of_a_split_file(tmp_path):
    json_root(tmp_path, {"a.png": 1})
    (tmp_path / "train.json").write_text('\ufeff{"a.png": 1}')
    assert len(sources.open_split(config(tmp_path, "json"), "train")) == 1
