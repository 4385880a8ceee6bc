"""The task that prepares datasets: it skips, goes on and tells. What is prepared here needs no TensorFlow."""

import collections
import importlib.util
import logging
import shutil

import pytest
import requests
import tensorflow_datasets as tfds

from configs import prepare
from tests import small_tfds
from toast_jax.data.images.vtab import records, tasks
from toast_jax.errors import InputError
from toast_jax.tasks import prepare_data

MANUAL = {"resisc45", "diabetic_retinopathy_detection/btgraham-300"}
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def with_tensorflow(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow" or find(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, 1e12))


@pytest.fixture
def failing(monkeypatch):
    """What a dataset is to raise, by its name; the others make three images a split."""
    failing = {}

    def builder(name, data_dir):
        one = small_tfds.builder(name, data_dir, dict.fromkeys(("train", "validation", "test"), 3))
        if (dataset := name.partition(":")[0]) in failing:
            one._split_generators = lambda download_manager: raising(failing[dataset])
        return one

    monkeypatch.setattr(tfds, "builder", builder)
    return failing


def raising(error):
    raise error


def run(root, task="cifar100", **changes):
    config = prepare.get_config(f"task={task}")
    config.update({"root": str(root), **changes})
    prepare_data.run(config, "unused")


def error_of(*args, **kwargs):
    with pytest.raises(InputError) as raised:
        run(*args, **kwargs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_without_tensorflow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "TensorFlow, which is not installed: run `pip install -r requirements-tfds.txt`" in error_of(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_prepared_can_be_read_and_is_skipped_the_next_time(tmp_path, failing, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    run(tmp_path / "new", "clevr_count")
    folder = records.prepared(tmp_path / "new", "clevr")
    assert folder == str(tmp_path / "new/clevr/3.1.0")
    assert len(tfds.builder_from_directory(folder).as_data_source("train")) == 3
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: raising(AssertionError("prepared again")))
    caplog.clear()
    run(tmp_path / "new", "clevr_distance")
    assert f"clevr is prepared already, in {folder}." in caplog.messages


def test_all_of_them_but_those_that_fail(tmp_path, failing, caplog):
    caplog.set_level(logging.INFO)
    failing["dtd"] = requests.ConnectionError("long", request=requests.Request(url="https://host/dtd.tar"))
    failing["kitti"] = ValueError("\n  The checksum is another one.\nDetails\n")
    failing["dmlab"] = RuntimeError()
    message = error_of(tmp_path, "all")
    listed = "dtd, resisc45, diabetic_retinopathy_detection/btgraham-300, dmlab, kitti"
    assert message.startswith(f"5 of 16 datasets are not prepared: {listed}; ")
    for name in tasks.BUILDERS:
        assert bool(records.find(tmp_path, name)) == (name not in {*MANUAL, "dtd", "kitti", "dmlab"}), name
    said = "\n".join(caplog.messages)
    assert "dtd is not prepared: https://host/dtd.tar cannot be downloaded (ConnectionError); if the host is gone" in said
    assert "kitti is not prepared: The checksum is another one.\n" in said and "dmlab is not prepared: RuntimeError" in said


def test_what_has_to_be_downloaded_by_hand_is_listed_first(tmp_path, failing, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "hand/sample").mkdir(parents=True)
    error_of(tmp_path, "diabetic_retinopathy", manual=str(tmp_path / "hand"))
    expected = f"diabetic_retinopathy_detection/btgraham-300 needs train, test, trainLabels.csv in {tmp_path}/hand (from https"
    assert caplog.messages[0].startswith(f"To download by hand: {expected}")
    error_of(tmp_path, "resisc45")
    assert any(f"resisc45 needs NWPU-RESISC45 in {tmp_path}/downloads/manual" in message for message in caplog.messages)
    (tmp_path / "hand/NWPU-RESISC45").mkdir()
    run(tmp_path, "resisc45", manual=str(tmp_path / "hand"))
    assert records.find(tmp_path, "resisc45")
    caplog.clear()
    run(tmp_path, "resisc45")  # from what was downloaded by hand, which is gone by now
    assert not any("by hand" in message for message in caplog.messages)


def test_the_disk_is_looked_at_first(tmp_path, failing, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(1e12, 0, 24.9e9))
    error_of(tmp_path, "patch_camelyon")
    assert asked == [tmp_path] and not (tmp_path / "patch_camelyon").exists()
    expected = (
        f"patch_camelyon is not prepared: it takes about 25 GB with all that is downloaded, and {tmp_path} has 24.9 GB free"
    )
    assert any(message.startswith(expected) for message in caplog.messages)
    run(tmp_path, "patch_camelyon", check_disk=False)
    assert records.find(tmp_path, "patch_camelyon")


def test_another_format_is_not_taken_for_prepared(tmp_path, failing, caplog):
    folder = tmp_path / "dtd/3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    assert "1 of 1 datasets are not prepared: dtd;" in error_of(tmp_path, "dtd")
    assert any("not in array_record format" in message for message in caplog.messages)


def test_the_folder_has_to_be_writable_and_the_task_known(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in (message := error_of(tmp_path / "file/x")) and "give another --config.root." in message
    with pytest.raises(InputError, match="The config argument task is 'clevr'; it must be one of cifar100"):
        prepare.get_config("task=clevr")
    assert prepare.get_config().datasets == tuple(dict.fromkeys(task.builder for task in tasks.TASKS.values()))
    assert set(prepare.get_config().datasets) == set(tasks.BUILDERS)


def test_a_dataset_that_is_not_known_is_answered_by_the_nearest(tmp_path):
    error = error_of(tmp_path / "root", datasets=("cifar100", "oxford_pets"))
    assert error.startswith("config.datasets is 'oxford_pets'; it must be one of ") and "oxford_iiit_pet" in error
    assert not (tmp_path / "root").exists()
