"""Scenes: the same every time, with disjoint digits in the splits, and masks that are where the digit is."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import demo, pretrain, pretune
from tests import ROOT
from toast_jax import trees
from toast_jax.data.images import pixels, sources, synthetic_scenes
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.train import loop
from toast_jax.train.setup import load_network

SHIPPED = 0.758  # how often the shipped networks name the brightest of 2,000 test scenes


def config(name="target", train="train[:20]"):
    splits = {"train": train, "val": "", "test": ""}
    return ConfigDict({"format": "scenes", "name": name, "splits": splits, "num_classes": 0, "labels": True})


def test_a_scene_is_always_the_same():
    one, again = synthetic_scenes.scene("val", 3), synthetic_scenes.scene("val", 3)
    np.testing.assert_array_equal(one.image, again.image)
    assert one.labels == again.labels and one.digits == again.digits
    assert np.any(one.image != synthetic_scenes.scene("val", 4).image) and np.any(
        one.image != synthetic_scenes.scene("test", 3).image
    )


def test_splits_share_no_digit():
    parts = {split: {digit.tobytes() for digit in synthetic_scenes._digits(split)[0]} for split in synthetic_scenes.SPLITS}
    assert not parts["train"] & parts["val"] and not parts["train"] & parts["test"] and not parts["val"] & parts["test"]
    counts = [len(synthetic_scenes._digits(split)[0]) for split in synthetic_scenes.SPLITS]
    assert sum(counts) == 1797 and counts == [1078, 360, 359]


def test_tasks_ask_for_different_digits():
    made = [synthetic_scenes.scene("train", i) for i in range(500)]
    salient, target = (np.array([scene.digits[name] for scene in made]) for name in synthetic_scenes.TASKS)
    assert abs(np.mean(salient == target) - 0.1) < 0.05  # independent
    assert np.bincount(target, minlength=10).min() > 25 and np.bincount(salient, minlength=10).min() > 25
    assert all(scene.labels["target"] == scene.digits["target"] for scene in made)


def test_labels_of_the_salient_task_name_one_of_the_digits_and_mostly_the_brightest():
    made = [synthetic_scenes.scene("train", i) for i in range(1000)]
    assert all(scene.labels["salient"] in scene.digits.values() for scene in made)
    shares = {name: np.mean([scene.labels["salient"] == scene.digits[name] for scene in made]) for name in made[0].digits}
    # Two digits of a scene are the same a tenth of the time.
    for name, share in {"salient": 0.6 + 0.4 * 0.1, "target": 0.2 + 0.8 * 0.1, "other": 0.2 + 0.8 * 0.1}.items():
        assert shares[name] == pytest.approx(share, abs=0.05)


def test_the_target_alone_is_green_and_its_mask_is_on_it():
    for i in range(100):
        made = synthetic_scenes.scene("train", i)
        image = made.image.astype(int)
        green = image[..., 1] > image[..., [0, 2]].max(axis=-1) + 35
        mask = made.masks["target"]
        assert 20 < mask.sum() < 19 * 19
        assert (green & mask).sum() > 0.5 * mask.sum() or (made.masks["salient"] & mask).any()
        assert (green & ~mask).sum() < 0.35 * mask.sum() + 8  # the rim of the strokes


def test_the_salient_digit_is_the_brightest():
    for i in range(100):
        made = synthetic_scenes.scene("train", i)
        bright = made.image.max(-1).astype(float)
        free = made.masks["salient"] & ~made.masks["target"]
        assert np.percentile(bright[free], 75) > np.percentile(bright[~made.masks["salient"]], 99) - 60


def test_source_gives_the_label_of_its_task():
    for task in synthetic_scenes.TASKS:
        source = sources.open_split(config(task), "train")
        assert len(source) == 20 and source.classes == tuple("0123456789")
        record = source[7]
        assert record["label"] == synthetic_scenes.scene("train", 7).labels[task]
        np.testing.assert_array_equal(pixels.decode(record["image"], record["name"]), synthetic_scenes.scene("train", 7).image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "color"}, "config.data.name is 'color'; scenes have the tasks salient and target"),
        ({"train": "train"}, r"config.data.splits.train is 'train'; write how many scenes, as in train\[:500\]"),
        ({"train": "train[:0]"}, r"is 'train\[:0\]'; write how many scenes"),
        ({"train": "all[:5]"}, r"is 'all\[:5\]'; write how many scenes"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(InputError, match=message):
        sources.open_split(config(**change), "train")


@pytest.mark.slow
def test_recipe_of_the_backbone_runs(tmp_path):
    config = pretrain.get_config()
    pretrain.scenes(config, task="salient", train=256, val=64, test=64)
    config.epochs, config.warmup_epochs, config.batch_size = 1, 0, 64
    result = loop.fit(config, tmp_path)
    assert result["steps"] == 4 and np.isfinite(result["val"]["loss"]) and result["val"]["count"] == 64


@pytest.mark.parametrize("row", ["linear", "toast"])
def test_shipped_networks_name_the_bright_digit_and_not_the_green_one(row, monkeypatch):
    """The backbone alone, and with its top-down module, before anything is tuned."""
    monkeypatch.chdir(ROOT)
    network = load_network(demo.get_config().runs[row], num_classes=10)
    made = [synthetic_scenes.scene("test", i) for i in range(400)]
    logits = jax.jit(functools.partial(steered.apply, network.model, network.method))
    images = np.stack([scene.image for scene in made])
    named = np.asarray(logits(trees.merge(network.tuned, network.frozen), images)).argmax(axis=-1)
    right = {name: np.mean(named == np.array([scene.digits[name] for scene in made])) for name in made[0].digits}
    assert right["salient"] > SHIPPED - 0.06 and right["target"] < 0.3


@pytest.mark.slow
def test_recipe_of_the_top_down_module_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = pretune.get_config("source=scenes,backbone=vit_mini16")
    pretrain.scenes(config, task="salient", train=256, val=64, test=64)
    config.epochs, config.warmup_epochs, config.batch_size = 1, 0, 64
    result = loop.fit(config, tmp_path)
    assert result["steps"] == 4 and result["val"]["variational_loss"] < 6
    assert (tmp_path / "top_down.safetensors").exists()
