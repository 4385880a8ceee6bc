"""VTAB-1k: what the 19 tasks are, and that their images come out of prepared datasets as they should."""

import collections
import json
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from configs import vtab as vtab_config
from tests import ROOT, small_tfds
from toast_jax.data.images import pixels, sources
from toast_jax.data.images.vtab import records, tasks
from toast_jax.errors import InputError

PAGE = (ROOT / "docs" / "vtab.md").read_text()
COUNT = 40  # images in each split of the small datasets
SIZE = 24


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN", 8)
    monkeypatch.setattr(tasks, "VAL", 2)


def objects_like_the_real_ones(example, index):
    for i, one in enumerate(example.get("objects", ())):
        if "pixel_coords" in one:  # CLEVR: depths around the edges of the bins
            one["pixel_coords"] = np.float32([0, 0, (8.0, 8.25, 9.0, 9.25, 9.75, 10.5)[index % 6] + i])
        else:  # KITTI: only some are vehicles
            one["type"] = (index + i) % 8 if index % 4 else 4
            one["location"] = np.float32([0, 0, (index % 40) + 3 * i])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All datasets, a few images each."""
    root = tmp_path_factory.mktemp("vtab")
    for name, row in tasks.BUILDERS.items():
        counts = dict.fromkeys(("train", row.val[0], row.test[0]), COUNT)
        small_tfds.prepare(f"{name}:{row.versions[0]}", root, counts, change=objects_like_the_real_ones)
    return root


def config(root, task="cifar100", **changes):
    splits = {"train": "train800val200", "val": "val200", "test": "test"}
    data = {"format": "vtab", "root": str(root), "name": task, "splits": splits, "num_classes": 0, "labels": True}
    return ConfigDict({**data, "split_file": "", "image_size": SIZE, "resize": SIZE, **changes})


def open_split(data, split="train800val200", as_one_of="train"):
    data.splits[as_one_of] = split
    return sources.open_split(data, as_one_of)


def error_of(data, split="train800"):
    with pytest.raises(InputError) as raised:
        open_split(data, split)
    message = str(raised.value)
    assert message.endswith(".") and "\n" not in message
    return message


def names(source):
    return [source[index]["name"] for index in range(len(source))]


# The tasks


def depth(objects):
    nearest = min(float(one[2]) for one in objects["pixel_coords"])
    return sum(nearest > edge for edge in (8.0, 8.5, 9.0, 9.5, 10.0))


def metres(objects):
    ahead = [float(one[2]) for one, kind in zip(objects["location"], objects["type"], strict=True) if kind in (0, 1, 2)]
    return sum(min(ahead) > edge for edge in (8.0, 20.0)) if ahead else 3


# Feature and definition of the tasks that are not simply the feature 'label'.
DEFINED = {
    "clevr_count": lambda record: len(record["objects"]["color"]) - 3,
    "clevr_distance": lambda record: depth(record["objects"]),
    "kitti": lambda record: metres(record["objects"]),
    "dsprites_location": lambda record: record["label_x_position"] // 2,
    "dsprites_orientation": lambda record: 2 * record["label_orientation"] // 5,
    "smallnorb_azimuth": lambda record: record["label_azimuth"],
    "smallnorb_elevation": lambda record: record["label_elevation"],
}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_is_read(task, root):
    row = tasks.TASKS[task]
    data = config(root, task, num_classes=row.num_classes)
    train, val, both, test = (open_split(data, name) for name in ("train800", "val200", "train800val200", "test"))
    assert (len(train), len(val), len(both)) == (8, 2, 10)
    first = tasks.BUILDERS[row.builder].test[1] * COUNT // 100
    assert len(test) == COUNT - first
    if tasks.BUILDERS[row.builder].filename:
        assert names(train) + names(val) == names(both) and not set(names(both)) & set(names(test))
    for example in (train[0], test[len(test) - 1]):
        assert example["image"].shape == (SIZE, SIZE, 3) and example["image"].dtype == np.uint8
    builder = tfds.builder_from_directory(train.directory)
    skip = {key: tfds.decode.SkipDecoding() for key, one in builder.info.features.items() if "image" in key and one.shape}
    records = builder.as_data_source(train.split, decoders=skip)
    expected = [DEFINED.get(task, lambda record: record["label"])(record) for record in records]
    assert [train[index]["label"] for index in range(8)] == expected and len(set(expected)) > 1
    assert "tensorflow" not in sys.modules


def test_class_counts_and_groups():
    rows = tasks.TASKS
    assert [task.num_classes for task in rows.values()] == [
        *(100, 102, 47, 102, 37, 10, 397),  # natural
        *(2, 10, 45, 5),  # specialized
        *(8, 6, 6, 4, 16, 16, 18, 9),  # structured
    ]
    groups = [task.group for task in rows.values()]
    assert groups == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8
    assert all(len(task.names) in (0, task.num_classes) for task in rows.values())
    assert len({task.published for task in rows.values()} - {""}) == 14


def test_the_page_tells_what_the_table_says():
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \| (\d+): .* \| `(.*):(.*)` \| (.*) GB \| (.*) \| (.*) \|$", PAGE, flags=re.M)
    paper = collections.defaultdict(list)
    for (group, name, classes, builder, version, disk, by_hand, accuracy), expected in zip(rows, tasks.TASKS, strict=True):
        task = tasks.TASKS[name]
        row = tasks.BUILDERS[task.builder]
        assert (name, group, int(classes), builder) == (expected, task.group, task.num_classes, task.builder)
        assert (version, float(disk), by_hand == "yes") == (row.versions[0], row.gigabytes, bool(row.manual))
        paper[group].append(float(accuracy))
    means = {group: np.mean(one) for group, one in paper.items()} | {"all": np.mean(sum(paper.values(), []))}
    written = ", ".join(f"{group} {mean:.1f}" for group, mean in means.items())
    assert written in PAGE and written in vtab_config.__doc__
    assert sum(row.gigabytes for row in tasks.BUILDERS.values()) == pytest.approx(210, abs=5)


# How many images the TFDS splits really have, and where val200 and test begin in them.
@pytest.mark.parametrize(
    ("builder", "counts", "val", "test"),
    [
        ("caltech101", {"train": 3059, "test": 6085}, "train[2753:2953]", "test[0:]"),
        ("cifar100", {"train": 50000, "test": 10000}, "train[45000:45200]", "test[0:]"),
        ("oxford_iiit_pet", {"train": 3680, "test": 3669}, "train[2944:3144]", "test[0:]"),
        ("svhn_cropped", {"train": 73257, "test": 26032}, "train[65931:66131]", "test[0:]"),
        ("eurosat/rgb", {"train": 27000}, "train[16200:16400]", "train[21600:]"),
        ("resisc45", {"train": 31500}, "train[18900:19100]", "train[25200:]"),
        ("clevr", {"train": 70000, "validation": 15000, "test": 15000}, "train[63000:63200]", "validation[0:]"),
        ("dsprites", {"train": 737280}, "train[589824:590024]", "train[663552:]"),
        ("smallnorb", {"train": 24300, "test": 24300}, "test[0:200]", "test[12150:]"),
        *(
            (name, {"train": 1000, "validation": 500, "test": 500}, "validation[0:200]", "test[0:]")
            for name in (
                *("dtd", "oxford_flowers102", "sun397/tfds", "patch_camelyon", "dmlab", "kitti"),
                "diabetic_retinopathy_detection/btgraham-300",
            )
        ),
    ],
)
def test_slices(builder, counts, val, test, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN", 800)
    monkeypatch.setattr(tasks, "VAL", 200)
    slices = tasks.slices(tasks.BUILDERS[builder], counts)
    assert slices == {"train800": "train[:800]", "val200": val, "train800val200": f"train[:800]+{val}", "test": test}
    assert not tasks.share_images(tasks.BUILDERS[builder], counts)


@pytest.mark.parametrize(
    ("nearest", "label"), [(0.0, -1), (0.1, 0), (8.0, 0), (8.1, 1), (8.5, 1), (9.5, 3), (10.0, 4), (10.1, 5), (100.5, 6)]
)
def test_distance_of_the_closest_object(nearest, label):
    coordinates = [np.float32([500, 0, 99]), np.float32([1, 2, nearest]), np.float32([0, 0, 100])]
    assert tasks.closest_object({"pixel_coords": coordinates if nearest < 99 else coordinates[1:2]}) == label


@pytest.mark.parametrize(("ahead", "label"), [(-3.0, 0), (8.0, 0), (8.5, 1), (20.0, 1), (20.5, 2), (80.0, 2)])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_distance_of_the_closest_vehicle(ahead, label, kind):
    location = [np.float32([-50, -50, 90]), np.float32([0, 0, -9]), np.float32([1, 1, ahead])]
    assert tasks.closest_vehicle({"type": [0, 3, kind], "location": location}) == label
    assert tasks.closest_vehicle({"type": [3, 4, 7], "location": location}) == 3
    assert tasks.closest_vehicle({"type": [], "location": []}) == 3


def test_bins_of_dsprites():
    assert [tasks.position_bin(one) for one in range(32)] == sorted([*range(16)] * 2)
    bins = [tasks.orientation_bin(one) for one in range(40)]
    assert bins[:6] == [0, 0, 0, 1, 1, 2] and [bins.count(one) for one in range(16)] == [3, 2] * 8
    assert tasks.TASKS["dsprites_orientation"].names[:2] == ("0 to 2 of 40", "3 to 4 of 40")


# Reading


def test_images_are_stretched_and_their_classes_named(root):
    source = open_split(config(root, "dtd"), "train800")
    index = int(source[3]["name"].removeprefix("dtd train_").removesuffix(".png"))
    image = small_tfds.pixels(index, 20 + index % 7, 20 + index % 7, 3)
    np.testing.assert_array_equal(source[3]["image"], pixels.stretch(image, SIZE))
    assert source.classes[:2] == ("banded", "blotchy")
    assert open_split(config(root, "kitti"), "train800").classes[-1] == "no vehicle"


def test_gray_images_have_three_equal_channels_and_dsprites_is_black_and_white(tmp_path):
    def binary(example, index):
        example["image"] = small_tfds.png(np.tile(np.arange(64, dtype=np.uint8)[:, None] // 32, (64, 1, 1)))

    small_tfds.prepare("dsprites:2.0.0", tmp_path, {"train": COUNT}, change=binary)
    image = open_split(config(tmp_path, "dsprites_location"), "train800")[0]["image"]
    assert (image == image[..., :1]).all() and (image[:, :11] == 0).all() and (image[:, 13:] == 255).all()


def test_the_number_of_shards_changes_nothing(tmp_path):
    for shards in (1, 5):
        counts = dict.fromkeys(("train", "validation", "test"), COUNT)
        small_tfds.prepare("dtd:3.0.1", tmp_path / str(shards), counts, num_shards=shards)
    one, five = (open_split(config(tmp_path / str(shards), "dtd")) for shards in (1, 5))
    assert names(one) == names(five) and names(one)[:8] != [f"dtd train_{index}.png" for index in range(8)]
    assert len(list((tmp_path / "5/dtd/3.0.1").glob("*-train.array_record-*"))) == 5


def test_small_splits_are_read_once_and_large_ones_as_they_are_asked_for(root, monkeypatch):
    kept = open_split(config(root), "train800val200")
    assert kept[3]["image"] is kept[3]["image"]
    monkeypatch.setattr(records, "CACHED", 9)
    read = open_split(config(root), "train800val200")
    assert read[3]["image"] is not read[3]["image"]
    np.testing.assert_equal(read[3], kept[3])
    assert len(pickle.dumps(kept)) < 1000
    np.testing.assert_equal(pickle.loads(pickle.dumps(kept))[3], kept[3])


# What can be wrong


def test_a_dataset_that_is_not_prepared(root, tmp_path):
    command = "`python main.py --config=configs/prepare.py:task={} --config.root={}`"
    assert command.format("svhn", tmp_path) in error_of(config(tmp_path, "svhn"))
    assert command.format("clevr_count", tmp_path / "none") in error_of(config(tmp_path / "none", "clevr_distance"))
    for version in ("3.0.0", "3.1.0"):
        (tmp_path / "kitti" / version).mkdir(parents=True)
        (tmp_path / "kitti" / version / "dataset_info.json").touch()
    message = error_of(config(tmp_path, "kitti"))
    assert f"kitti:3.3.0 is not prepared under {tmp_path} (version 3.1.0 is, which has other images)" in message


@pytest.mark.parametrize("task", ["dtd", "eurosat"])  # a folder for each dataset, or below it for each of its kinds
def test_a_root_that_is_too_high_or_too_deep_is_answered_by_the_right_one(task, root):
    """The command that prepares the data would download it once more."""
    folder = root / tasks.TASKS[task].builder
    for wrong in (root.parent, root / tasks.TASKS[task].builder.partition("/")[0], folder, folder / "3.0.1"):
        assert f"is not prepared under {wrong} but under {root}: set --config.data.root={root}." in error_of(
            config(wrong, task)
        )


def test_an_older_version_of_the_same_images_will_do(root, tmp_path):
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti/3.2.0").symlink_to(root / "kitti/3.3.0")
    assert len(open_split(config(tmp_path, "kitti"))) == 10


def test_another_format(root, tmp_path):
    folder = tmp_path / "cifar100/3.0.2"
    folder.mkdir(parents=True)
    info = (root / "cifar100/3.0.2/dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    message = error_of(config(tmp_path))
    assert f"{folder} is not in array_record format" in message
    assert f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record`" in message


def test_too_few_images(root, tmp_path, monkeypatch):
    small_tfds.prepare("dtd:3.0.1", tmp_path, {"train": COUNT, "test": COUNT})
    assert "dtd/3.0.1 has no split 'validation': remove it and prepare it again" in error_of(config(tmp_path, "dtd"))
    small_tfds.prepare("eurosat/rgb:2.0.0", tmp_path, {"train": 12})  # of which val200 would be the 7th and 8th
    assert "too small for train[:8] of eurosat/rgb (it has train 12): remove it and" in error_of(config(tmp_path, "eurosat"))
    assert not any(
        tasks.share_images(row, dict.fromkeys(("train", row.val[0], row.test[0]), 40)) for row in tasks.BUILDERS.values()
    )
    monkeypatch.setattr(tasks, "TRAIN", 800)
    assert "too small for train[:800] of cifar100 (it has train 40, test 40)" in error_of(config(root))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("dtd-test.array_record-00000-of-00001", None, "lacks {folder}/dtd-test.array_record-00000-of-00001: remove it and"),
        ("dtd-train.array_record-00000-of-00001", lambda data: data[: len(data) // 2], "{folder} is damaged ("),
        ("dataset_info.json", lambda data: data[: len(data) // 2], "{folder} is "),
        ("features.json", None, "{folder} is damaged (Cannot restore dtd"),
    ],
)
def test_damaged_files(file, damage, message, root, tmp_path):
    folder = tmp_path / "dtd/3.0.1"
    shutil.copytree(root / "dtd/3.0.1", folder)
    (folder / file).write_bytes(damage((folder / file).read_bytes())) if damage else (folder / file).unlink()
    error = error_of(config(tmp_path, "dtd"))
    assert message.format(folder=folder) in error and "prepare it again" in error


@pytest.mark.parametrize("split", ["train800", "test"])
def test_a_label_outside_the_classes(split, tmp_path, monkeypatch):
    def too_far(example, index):
        objects_like_the_real_ones(example, index)
        example["objects"][0]["pixel_coords"][2] = 101
        del example["objects"][1:]

    small_tfds.prepare("clevr:3.1.0", tmp_path, dict.fromkeys(("train", "validation"), COUNT), change=too_far)
    message = error_of(config(tmp_path, "clevr_distance"), split)
    assert "has class 6 of clevr_distance, which has 0 to 5: remove" in message and "Image clevr " in message


def test_fields_that_do_not_fit(root):
    assert "config.data.name is 'cifar'; it must be one of cifar100" in error_of(config(root, "cifar"))
    message = error_of(config(root), "train")
    assert "config.data.splits.train is 'train'; it must be one of train800, val200, train800val200, test" in message
    assert "are stretched to 24 pixels and not cropped, but config.data.resize is 30" in error_of(config(root, resize=30))
    assert "the images of VTAB have classes" in error_of(config(root, labels=False))
    assert "has 100 classes but config.data.num_classes is 10" in error_of(config(root, num_classes=10))


# The published list


def split_file(path, train, val, task="dtd"):
    path.write_text(json.dumps({tasks.TASKS[task].published: {"train": train, "val": val}}))
    return str(path)


def bare(source):
    return [name.split()[-1] for name in names(source)]


def test_a_list_of_what_the_slices_hold_changes_nothing(root, tmp_path):
    data = config(root, "dtd")
    both = open_split(data)
    data.split_file = split_file(tmp_path / "list.json", sorted(bare(both)[:8]), sorted(bare(both)[8:]))
    assert open_split(data) == both and open_split(data, "val200", "val").split == "validation[0:2]"


def test_a_list_of_other_images_finds_them(root, tmp_path):
    data = config(root, "dtd")
    default, test = open_split(data), open_split(data, "test")
    train, val = [f"train_{index}.png" for index in range(20, 28)], ["validation_7.png", "validation_30.png"]
    data.split_file = split_file(tmp_path / "list.json", train, val)
    source = open_split(data)
    assert sorted(bare(source)) == sorted(train + val) and bare(source)[:8] != bare(default)[:8]
    index = int(bare(source)[0].removeprefix("train_").removesuffix(".png"))
    assert source[0]["label"] == index % 47
    assert sorted(bare(open_split(data, "val200", "val"))) == sorted(val)
    assert open_split(data, "test") == test


def test_what_a_list_can_lack(root, tmp_path):
    file = tmp_path / "list.json"
    data = config(root, "dtd", split_file=str(file))
    assert f"The list {file} cannot be read (No such file or directory)" in error_of(data)
    file.write_text("[]")
    assert f"{file} is no list of VTAB's images" in error_of(data)
    split_file(file, [], [], task="cifar100")
    assert f"{file} has no 'dtd': download it again, or leave --config.data.split_file empty" in error_of(data)
    split_file(file, ["train_1.png", "gone.png", "far.png"], [])
    message = error_of(data)
    assert f"2 of the 3 images that {file} lists are not in train of" in message and "(gone.png, far.png)" in message
    split_file(file, ["train_1.png", "train_1.png"], [])
    assert f"{file} lists train_1.png 2 times" in error_of(data)
    data.name = "smallnorb_azimuth"
    assert "VPT's list has not this task (smallnorb, label_azimuth), whose images have no names" in error_of(data)


def test_a_name_that_two_images_share(tmp_path):
    def same(example, index):
        example["file_name"] = f"{index % 30}.png"

    small_tfds.prepare("dtd:3.0.1", tmp_path, dict.fromkeys(("train", "validation", "test"), COUNT), change=same)
    data = config(tmp_path, "dtd", split_file=split_file(tmp_path / "list.json", ["9.png"], []))
    assert f"2 images of {tmp_path}/dtd/3.0.1 are called 9.png" in error_of(data)
