"""Images that are read out of a zip archive."""

import concurrent.futures
import io
import json
import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from toast_jax.data.images import image_files, pixels, sources
from toast_jax.errors import InputError
from toast_jax.workdir import fingerprint

NAMES = [f"images/{name}/{i}.JPEG" for name in ("heron", "kite") for i in range(8)]


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data(tmp_path):
    """A stored and a compressed archive of the same images, and a split file."""
    for name, compression in (("images.zip", zipfile.ZIP_STORED), ("small.ZIP", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", compression) as file:
            file.mkdir("images")
            for seed, member in enumerate(NAMES):
                file.writestr(member, picture(seed))
    (tmp_path / "train.json").write_text(json.dumps({name: name.split("/")[1] for name in NAMES}))
    splits = {"train": "train", "val": "", "test": ""}
    return ConfigDict(
        {"format": "json", "root": str(tmp_path), "image_dir": "images.zip", "splits": splits, "num_classes": 0, "labels": True}
    )


@pytest.mark.parametrize("name", ["images.zip", "small.ZIP"])
@pytest.mark.parametrize("labels", [True, False])
def test_images_are_read_in_place(data, name, labels):
    data.image_dir, data.labels = name, labels
    source = sources.open_split(data, "train")
    assert source.classes == (("heron", "kite") if labels else (image_files.UNLABELLED,))
    for index in (0, 9, 15):
        example = source[index]
        assert example["image"] == picture(index) and example["name"].endswith(f"{name}/{NAMES[index]}")
        assert example["label"] == (index // 8 if labels else 0)
        assert pixels.decode_example(example).shape == (20, 30, 3)


@pytest.mark.parametrize("folder", ["images.zip/images", "images.zip/images/"])
def test_the_images_may_be_in_a_folder_of_the_archive(data, tmp_path, folder):
    inside = [name.removeprefix("images/") for name in NAMES]
    (tmp_path / "train.json").write_text(json.dumps({name: name.split("/")[0] for name in inside}))
    data.image_dir = folder
    assert sources.open_split(data, "train")[9]["image"] == picture(9)
    (tmp_path / "train.json").write_text(json.dumps({**dict.fromkeys(inside, 0), "owl/1.JPEG": 1}))
    with pytest.raises(InputError, match="1 of 17 images do not exist, the first is .*images.zip/images/owl/1.JPEG"):
        sources.open_split(data, "train")


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_folder_too_high_or_too_deep_is_answered_by_the_right_one(data, tmp_path, unpacked):
    name = "images.zip"
    if unpacked:
        name = "unpacked"
        with zipfile.ZipFile(tmp_path / "images.zip") as packed:
            packed.extractall(tmp_path / name)
    (tmp_path / "train.json").write_text(json.dumps({path: 0 for path in NAMES}))
    data.image_dir = f"{name}/images"
    with pytest.raises(InputError, match=f"16 of 16 images .*{name}/images/images/heron/0.JPEG: it is in .*/{name}; set "):
        sources.open_split(data, "train")
    (tmp_path / "train.json").write_text(json.dumps({path.removeprefix("images/"): 0 for path in NAMES}))
    data.image_dir = name
    with pytest.raises(InputError, match=f"16 of 16 images .*{name}/heron/0.JPEG: it is in .*/{name}/images; set "):
        sources.open_split(data, "train")


def test_the_right_folder_is_named_also_where_it_is_the_current_one(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "owl.jpg").touch()
    (tmp_path / "train.json").write_text(json.dumps({"owl.jpg": 0}))
    data.root, data.image_dir = ".", "images"
    with pytest.raises(InputError, match=r"images/owl.jpg: it is in \.; set "):
        sources.open_split(data, "train")


def test_threads_and_other_processes_read_it(data):
    source = sources.open_split(data, "train")
    order = np.random.default_rng(0).integers(0, len(NAMES), 200).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert [example["image"] for example in pool.map(source.__getitem__, order)] == [picture(i) for i in order]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(pickle.loads(pickle.dumps(source)).__getitem__, (3,))["image"] == picture(3)


def test_an_archive_may_move(data, tmp_path):
    before = fingerprint.of_source(sources.open_split(data, "train"))
    (tmp_path / "moved").mkdir()
    for name in ("images.zip", "train.json"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    data.root = str(tmp_path / "moved")
    assert fingerprint.of_source(sources.open_split(data, "train")) == before


def test_a_listed_image_that_the_archive_lacks(data, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({**dict.fromkeys(NAMES, 0), "images/owl/1.JPEG": 1}))
    with pytest.raises(InputError, match="1 of 17 images do not exist, the first is .*images.zip/images/owl/1.JPEG"):
        sources.open_split(data, "train")


def test_a_damaged_archive_is_refused_by_name(data, tmp_path):
    content = (tmp_path / "images.zip").read_bytes()
    (tmp_path / "images.zip").write_bytes(content[:300] + bytes(50) + content[350:])
    with pytest.raises(InputError, match=r"images/heron/0.JPEG in .*images.zip cannot be read \(Bad CRC-32"):
        sources.open_split(data, "train")[0]
    (tmp_path / "half.zip").write_bytes(content[:2000])
    data.image_dir = "half.zip"
    with pytest.raises(InputError, match="half.zip cannot be read as a zip file .*copy or download it again"):
        sources.open_split(data, "train")


def test_a_folder_named_like_an_archive_is_a_folder(data, tmp_path):
    (tmp_path / "folder.zip/images").mkdir(parents=True)
    (tmp_path / "folder.zip/images/a.png").write_bytes(picture(7))
    (tmp_path / "train.json").write_text(json.dumps({"images/a.png": 0}))
    data.image_dir = "folder.zip"
    assert sources.open_split(data, "train")[0]["image"] == picture(7)
    (tmp_path / "images.zip").rename(tmp_path / "folder.zip/images.zip")
    data.image_dir = "folder.zip/images.zip"
    (tmp_path / "train.json").write_text(json.dumps({NAMES[5]: 0}))
    assert sources.open_split(data, "train")[0]["image"] == picture(5)


def test_an_archive_that_is_replaced_is_read_anew(data, tmp_path):
    path = f"{tmp_path}/images.zip/{NAMES[0]}"
    former = image_files.Files((path,), (0,), ("a",))[0]["image"]
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
        file.writestr(NAMES[0], picture(99))
    (tmp_path / "new.zip").replace(tmp_path / "images.zip")
    assert former == picture(0) and image_files.Files((path,), (0,), ("a",))[0]["image"] == picture(99)
    assert image_files.absent(f"{tmp_path}/images.zip", NAMES[:2]) == NAMES[1:2]
