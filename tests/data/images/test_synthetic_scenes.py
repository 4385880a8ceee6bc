"""Scenes: the same every time, with disjoint digits in the splits, and masks that are where the digit is."""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import demo, pretune
from tests import ROOT
from toast_jax import trees
from toast_jax.data.images import pixels, sources, synthetic_scenes
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.train import loop
from toast_jax.train.setup import load_network


def config(name="green", train="train[:20]"):
    splits = {"train": train, "val": "", "test": ""}
    return ConfigDict({"format": "scenes", "name": name, "splits": splits, "num_classes": 0, "labels": True})


def test_a_scene_is_always_the_same():
    first, again = synthetic_scenes.scene("green", "val", 3), synthetic_scenes.scene("green", "val", 3)
    for field in ("image", "classes", "masks", "boxes"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert first.asked == again.asked
    for split, index in (("val", 4), ("test", 3)):
        assert np.any(first.image != synthetic_scenes.scene("green", split, index).image)


def test_splits_share_no_digit():
    parts = {split: {digit.tobytes() for digit in synthetic_scenes._digits(split)[0]} for split in synthetic_scenes.SPLITS}
    assert not parts["train"] & parts["val"] and not parts["train"] & parts["test"] and not parts["val"] & parts["test"]
    counts = [len(synthetic_scenes._digits(split)[0]) for split in synthetic_scenes.SPLITS]
    assert sum(counts) == 1797 and counts == [1078, 360, 359]


def made(task, count=200, split="train"):
    return [synthetic_scenes.scene(task, split, i) for i in range(count)]


def test_brightest_and_green_ask_about_the_same_scenes():
    scenes = made("green", 500)
    np.testing.assert_array_equal(scenes[7].image, synthetic_scenes.scene("brightest", "train", 7).image)
    same = np.mean([scene.asked["green"] == scene.asked["brightest"] for scene in scenes])
    assert abs(same - 0.25) < 0.06
    labels = np.array([scene.label("green") for scene in scenes])
    names = {synthetic_scenes.CLASSES[label] for label in labels}
    assert names == {f"green {digit}" for digit in range(10)} and np.unique(labels, return_counts=True)[1].min() > 25


def test_digits_of_a_scene_have_four_colors():
    colors = [{synthetic_scenes.CLASSES[label].split()[0] for label in scene.classes} for scene in made("brightest")]
    assert all(len(names) == 4 and "green" in names for names in colors)


def test_generic_scenes_have_one_digit_of_any_color():
    scenes = made("generic")
    assert all(scene.classes.shape == (1,) and scene.masks.shape == (1, 64, 64) for scene in scenes)
    assert len({synthetic_scenes.CLASSES[scene.label("generic")].split()[0] for scene in scenes}) == 7
    assert np.any(scenes[0].image != synthetic_scenes.scene("green", "train", 0).image)


def test_the_green_digit_is_green_where_its_mask_is():
    for scene in made("green", 50):
        image = scene.image.astype(int)
        green = image[..., 1] > image[..., [0, 2]].max(axis=-1) + 35
        mask, cell = (of_digits[scene.asked["green"]] for of_digits in (scene.masks, scene.boxes))
        others = np.delete(scene.masks, scene.asked["green"], axis=0).any(axis=0)
        assert 20 < mask.sum() < 16 * 16 == cell.sum() and cell[mask].all()
        assert (green & mask).sum() > 0.5 * mask.sum() and not (green & others).any()


def test_the_brightest_digit_is_the_brightest():
    for scene in made("brightest", 50):
        bright = [np.percentile(scene.image.max(axis=-1)[mask], 75) for mask in scene.masks]
        assert np.argmax(bright) == scene.asked["brightest"]


def test_scrambled_digits_keep_their_strokes():
    glyph = np.random.default_rng(0).random((16, 16))
    scrambled = synthetic_scenes._scrambled(glyph, np.random.default_rng(1))
    assert np.any(scrambled != glyph)
    np.testing.assert_array_equal(np.sort(scrambled, axis=None), np.sort(glyph, axis=None))


def test_source_gives_the_label_of_its_task():
    for task in synthetic_scenes.TASKS:
        source = sources.open_split(config(task), "train")
        assert len(source) == 20 and source.classes == synthetic_scenes.CLASSES
        record = source[7]
        scene = synthetic_scenes.scene(task, "train", 7)
        assert record["label"] == scene.label(task)
        np.testing.assert_array_equal(pixels.decode(record["image"], record["name"]), scene.image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "color"}, "config.data.name is 'color'; scenes have the tasks generic, brightest, green"),
        ({"train": "train"}, r"config.data.splits.train is 'train'; write how many scenes, as in train\[:500\]"),
        ({"train": "train[:0]"}, r"is 'train\[:0\]'; write how many scenes"),
        ({"train": "all[:5]"}, r"is 'all\[:5\]'; write how many scenes"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(InputError, match=message):
        sources.open_split(config(**change), "train")


@pytest.mark.parametrize(
    ("module", "task", "least"), [("", "generic", 0.8), ("toast", "brightest", 0.6), ("lora", "brightest", 0.8)]
)
def test_shipped_networks_name_their_digit(module, task, least, monkeypatch):
    """The backbone alone the digit among scrambled ones, pre-tuned modules the brightest of four."""
    monkeypatch.chdir(ROOT)
    network = load_network(demo.get_config().runs[module or "linear"], len(synthetic_scenes.CLASSES))
    scenes = made(task, 200, "test")
    logits = jax.jit(functools.partial(steered.apply, network.model, network.method))
    named = logits(trees.merge(network.tuned, network.frozen), np.stack([scene.image for scene in scenes])).argmax(axis=-1)
    assert np.mean(np.asarray(named) == [scene.label(task) for scene in scenes]) > least


@pytest.mark.slow
def test_recipe_of_the_top_down_module_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = pretune.get_config("source=scenes,backbone=vit_nano8")
    config.data.splits.update({"train": "train[:256]", "val": "val[:64]", "test": ""})
    config.epochs, config.warmup_epochs, config.eval_every = 1, 0, 1
    result = loop.fit(config, tmp_path)
    assert result["steps"] == 4 and result["val"]["variational_loss"] < 20
    assert (tmp_path / "top_down.safetensors").exists()
