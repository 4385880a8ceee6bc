"""Prediction by a tuned run: the classes it was evaluated with, pictures of where it looks, and what is refused."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from configs import predict as predict_config
from configs import segment as segment_config
from tests.conftest import CLASSES, COUNTS, tiny_config
from toast_jax.analysis import confusion, views
from toast_jax.data.images import image_files, selected
from toast_jax.data.images.verify import Subset
from toast_jax.errors import InputError
from toast_jax.tasks import evaluate, predict, train
from toast_jax.train import image_runs, loop, saved_run


@pytest.fixture(scope="module")
def tuned(image_folder, tmp_path_factory):
    """A run that tells the three colours apart."""
    from toast_jax.model.backbones.vit import network as vit

    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        config = tiny_config(image_folder, "toast")
        config.epochs = config.eval_every = config.checkpoint_every = 20
        config.confusion = True
        train.run(config, str(folder))
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.6
    return folder, result


def rows(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def predicted(run, images, folder, **fields):
    config = predict_config.get_config(f"run={run},images={images}")
    config.update(fields)
    predict.run(config, str(folder))
    return rows(folder)


def test_confusion_counts_what_the_evaluation_counted(tuned):
    with (tuned[0] / "confusion.csv").open(newline="") as file:
        counts = np.array([[int(row[name]) for name in sorted(CLASSES)] for row in csv.DictReader(file)])
    np.testing.assert_array_equal(counts.sum(axis=1), [COUNTS["test"]] * 3)
    assert np.diag(counts).sum() / counts.sum() == pytest.approx(tuned[1]["test"]["accuracy"])


def test_files_that_are_left_out_are_logged_once(tuned, image_folder, tmp_path, monkeypatch, caplog):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data/test/notes.txt").touch()
    config = tiny_config(tmp_path / "data", "toast")
    config.confusion = True
    monkeypatch.setattr(train, "fit", lambda config, _: image_runs.open_sources(config, verified=True) and tuned[1])
    monkeypatch.setattr(confusion, "matrix", lambda run, source: np.eye(len(source.classes), dtype=int))
    monkeypatch.setattr(confusion, "write", lambda *_: None)
    train.run(config, str(tuned[0]))
    assert sum("1 file is left out" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("attention_too", [True, False])
def test_predictions_are_those_of_the_evaluation(tuned, image_folder, tmp_path, attention_too):
    (tmp_path / "attention").mkdir()
    for name in ("00012_earlier.png", "100000_earlier.png", "notes.txt"):
        (tmp_path / "attention" / name).touch()
    found = predicted(tuned[0], image_folder / "test", tmp_path, batch_size=4, attention=attention_too)
    assert (tmp_path / "attention/notes.txt").exists()
    assert len(found) == 3 * COUNTS["test"] and {row["class"] for row in found} <= set(CLASSES)
    right = [row["class"] == row["image"].split("/")[-2] for row in found]
    assert np.mean(right) == pytest.approx(tuned[1]["test"]["accuracy"])
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in found)
    pictures = sorted((tmp_path / "attention").glob("*.png"))
    assert len(pictures) == (len(found) if attention_too else 0)
    if pictures:  # the image, the first look, the selection and the last look
        assert np.asarray(Image.open(pictures[0])).shape == (16, 4 * 16 + 3 * 4, 3)
        assert pictures[0].read_bytes().partition(b"IDAT")[2][:2] == b"\x78\x01"  # the header of fast compression


@pytest.mark.parametrize("fields", [{"probabilities": True}, {"npz": True}, {"probabilities": True, "npz": True}])
def test_arrays_of_a_run_that_segments_are_refused(image_folder, tmp_path, monkeypatch, fields):
    saved = types.SimpleNamespace(config=segment_config.get_config("dataset=folder"))
    monkeypatch.setattr(saved_run, "load_tuned", lambda *_, **__: saved)
    names = " and ".join(f"--config.{name}=False" for name in fields)
    message = f"The run in masks segments images, for which masks alone are written; set {names}."
    with pytest.raises(InputError, match=re.escape(message)):
        predicted("masks", image_folder / "test", tmp_path / "out", **fields)
    assert not (tmp_path / "out").exists()


def test_one_image_will_do(tuned, image_folder, tmp_path):
    path = image_folder / "test" / CLASSES[0] / "0.jpg"
    (row,) = predicted(tuned[0], path, tmp_path)
    assert row["image"] == str(path)


@pytest.mark.parametrize("attention_too", [True, False])
def test_a_broken_image_is_named_and_the_others_are_predicted(tuned, image_folder, tmp_path, attention_too):
    images = tmp_path / "images"
    shutil.copytree(image_folder / "test" / CLASSES[0], images)
    (images / "1: b.jpg").write_bytes((images / "0.jpg").read_bytes()[:500])
    (images / "z.jpg").write_bytes(b"")
    with pytest.raises(InputError) as error:
        predicted(tuned[0], images, tmp_path / "out", batch_size=2, attention=attention_too)
    message = str(error.value)
    assert message.startswith("2 of 5 images were left out: Image ") and "skip_corrupt" not in message
    assert f"{images}/1: b.jpg cannot be decoded (" in message and f"{images}/z.jpg cannot be decoded (" in message
    assert message.endswith(f"The predictions of the others are in {tmp_path}/out/predictions.csv.")
    with pytest.raises(InputError, match=r"1 of 1 images were left out: .*; download them again, or remove them\.$"):
        predicted(tuned[0], images / "z.jpg", tmp_path / "none", batch_size=2, attention=attention_too)
    others = predicted(tuned[0], image_folder / "test" / CLASSES[0], tmp_path / "whole", attention=attention_too)
    assert [row["probability"] for row in rows(tmp_path / "out")] == [row["probability"] for row in others]
    assert len(list((tmp_path / "out/attention").glob("*.png"))) == (3 if attention_too else 0)


def test_rows_are_written_as_they_come(tuned, image_folder, tmp_path, monkeypatch):
    written, draw = [], predict._draw

    def draw_and_count(folder, *args):
        written.append(len(rows(tmp_path)))
        draw(folder, *args)

    monkeypatch.setattr(predict, "_draw", draw_and_count)
    predicted(tuned[0], image_folder / "test", tmp_path, batch_size=3)
    assert written == [0, 0, 0, 3, 3, 3, 6, 6, 6]


@pytest.mark.parametrize(
    ("run", "images", "message"),
    [
        ("", "x", "Nothing to predict; write --config=configs/predict.py:run=RUN,images=FOLDER"),
        ("{run}", "{tmp}/nowhere", "There is nothing at .*nowhere: give a folder with images"),
        ("{run}", "{tmp}", "has no images"),
        ("{tmp}", "{images}", "There are no checkpoints in"),
    ],
)
def test_refusals(tuned, image_folder, tmp_path, run, images, message):
    config = predict_config.get_config()
    config.run = run.format(run=tuned[0], tmp=tmp_path)
    config.images = images.format(images=image_folder, tmp=tmp_path)
    with pytest.raises(InputError, match=message):
        predict.run(config, str(tmp_path / "out"))


def test_pretuned_module_is_no_classifier(image_folder, tmp_path):
    config = tiny_config(image_folder, "toast")
    config.stage, config.epochs = "pretune", 1
    loop.fit(config, tmp_path / "run")
    with pytest.raises(InputError, match="has pre-tuned a top-down module; give one that tuned with it"):
        predicted(tmp_path / "run", image_folder, tmp_path / "out")


def test_runs_that_sorted_numbers_as_text_are_evaluated_in_their_order_and_not_resumed(image_folder, tmp_path, monkeypatch):
    """Class folders 2, 9 and 10: versions before sorted 10 first."""
    from toast_jax.model.backbones.vit import network as vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
    for split in COUNTS:
        (tmp_path / "data" / split).mkdir(parents=True)
        for name, number in zip(CLASSES, ("2", "9", "10"), strict=True):
            (tmp_path / "data" / split / number).symlink_to(image_folder / split / name)
    config = tiny_config(tmp_path / "data", "linear")
    config.epochs = config.eval_every = config.checkpoint_every = 8
    with monkeypatch.context() as before:
        before.setattr(image_files, "_are_numbers", lambda names: False)
        train.run(config, str(tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.5
    config.task = "evaluate"
    evaluate.run(config, str(tmp_path / "run"))
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert again["test"]["accuracy"] == pytest.approx(result["test"]["accuracy"])
    source, _ = selected.open_images(config.data, "test", ("10", "2", "9"))
    assert source.classes == ("10", "2", "9") and {source.classes[label] for label in source.labels} == {"2", "9", "10"}
    assert all(path.split("/")[-2] == source.classes[label] for path, label in zip(source.paths, source.labels, strict=True))
    subset = selected.relabel(Subset(selected.open_images(config.data, "test")[0], (1,)), ("10", "2", "9"))
    assert subset[0]["label"] == 1
    with pytest.raises(InputError, match="The data has the classes 2, 9, 10 and the run 1, 2, 9, in this order: give the data"):
        selected.open_images(config.data, "test", ("1", "2", "9"))
    config.task = "train"
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match="The training data has changed since the run"):
        train.run(config, str(tmp_path / "run"))


def listed_on_stdin(monkeypatch, *lines):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(os.fsencode(f"{line}\n") for line in lines))))


def test_all_probabilities_and_arrays_of_a_list_on_stdin(tuned, image_folder, tmp_path, monkeypatch, caplog):
    images = [str(path) for path in sorted((image_folder / "test").rglob("*.jpg"))]
    options = {"batch_size": 4, "attention": False}
    plain = predicted(tuned[0], image_folder / "test", tmp_path / "plain", **options)
    listed_on_stdin(monkeypatch, *images[::-1], "", "nowhere.jpg", image_folder / os.fsdecode(b"\xff.jpg"))
    with pytest.raises(
        InputError, match=r"^2 of 11 images were left out: Image nowhere.jpg cannot be read .*udcff.jpg is not UTF-8"
    ):
        with caplog.at_level("INFO"):
            predicted(tuned[0], "-", tmp_path / "all", probabilities=True, npz=True, **options)
    every = rows(tmp_path / "all")
    assert [row["image"] for row in every] == images[::-1] and {len(row) for row in every} == {3 + 3}
    assert [{name: row[name] for name in ("image", "class", "probability")} for row in every[::-1]] == plain
    assert all(float(row[f"p({row['class']})"]) == pytest.approx(float(row["probability"]), abs=1e-3) for row in every)
    with np.load(tmp_path / "all/predictions.npz") as arrays:
        assert arrays["images"].tolist() == images[::-1] and arrays["classes"].tolist() == sorted(CLASSES)
        best = arrays["probabilities"].argmax(axis=1)
        assert arrays["probabilities"].shape == (9, 3) and [sorted(CLASSES)[i] for i in best] == [row["class"] for row in every]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["predictions.csv", "predictions.npz"]
    assert re.search(r"9 predictions are in .*predictions.csv, [\d,.]+ images/s after the first batch", caplog.text)


def test_paths_of_a_table_and_of_nothing(tuned, image_folder, tmp_path, monkeypatch):
    images = sorted((image_folder / "test").rglob("*.jpg"))[:2]
    (tmp_path / "all.csv").write_text(f"label,path\nx,{images[1]}\ny,{images[0]}\n")
    assert [row["image"] for row in predicted(tuned[0], tmp_path / "all.csv", tmp_path / "out", attention=False)] == [
        str(images[1]),
        str(images[0]),
    ]
    (tmp_path / "all.csv").write_text(f"image\n{images[0]}\n")
    with pytest.raises(InputError, match=r"all.csv has no column path \(it has image\): add it, or rename one"):
        predicted(tuned[0], tmp_path / "all.csv", tmp_path / "nothing")
    listed_on_stdin(monkeypatch)
    with pytest.raises(InputError, match="There are no images in -: give a folder, a table, or paths, one per line"):
        predicted(tuned[0], "-", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_only_a_few_batches_are_in_memory(tuned, image_folder):
    """Paths are taken as batches leave."""
    taken, path = [], str(next((image_folder / "test").rglob("*.jpg")))
    stream = views.stream(saved_run.load_tuned(tuned[0]), (taken.append(i) or path for i in itertools.count()), 2)
    for number in range(1, 6):
        assert next(stream).paths == {0: path, 1: path} and len(taken) <= 2 * (number + 2)
    stream.close()


@pytest.mark.slow
def test_a_run_holds_out_images_and_names_its_classes(image_folder, tmp_path, monkeypatch):
    """One folder of classes, tuned, resumed after images were added, evaluated, and tuned with another seed."""
    from toast_jax.model.backbones.vit import network as vit

    monkeypatch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
    shutil.copytree(image_folder / "train", tmp_path / "all")
    (tmp_path / "names.txt").write_text("Grey heron\nRed kite\nTawny owl\n")
    config = tiny_config(tmp_path / "all", "linear")
    config.data.update({"held_out": 0.25, "class_names": str(tmp_path / "names.txt")})
    config.epochs, config.confusion = 2, True
    first, second = loop.fit_seeds(config, {1: tmp_path / "run", 2: tmp_path / "other"})
    read = {
        (run, split): json.loads((tmp_path / run / f"splits/{split}.json").read_text())
        for run in ("run", "other")
        for split in ("train", "val")
    }
    assert {place: len(listing) for place, listing in read.items()} == {
        (run, split): count for run in ("run", "other") for split, count in (("train", 18), ("val", 6))
    }
    assert not read["run", "train"].keys() & read["run", "val"].keys() and read["run", "val"] != read["other", "val"]
    assert set(read["run", "val"].values()) == {"Grey heron", "Red kite", "Tawny owl"}
    shutil.copy(tmp_path / "all" / CLASSES[0] / "0.jpg", tmp_path / "all" / CLASSES[0] / "new.jpg")
    config.seed = 1
    (tmp_path / "run/result.json").unlink()
    train.run(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run/result.json").read_text())["val"] == first["val"]
    assert read["run", "val"] == json.loads((tmp_path / "run/splits/val.json").read_text())
    assert (tmp_path / "run/confusion.csv").read_text().startswith("true class,Grey heron,Red kite,Tawny owl")
    config.task = "evaluate"
    evaluate.run(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["val"] == pytest.approx(first["val"])
    (row,) = predicted(tmp_path / "run", tmp_path / "all" / CLASSES[0] / "new.jpg", tmp_path / "out", attention=False)
    assert row["class"] in ("Grey heron", "Red kite", "Tawny owl")
