"""Data and weights that change under a run are noticed."""

import dataclasses
import json
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from configs import vtab
from tests import small_tfds
from tests.conftest import tiny_config
from toast_jax import trees
from toast_jax.config import task_fields
from toast_jax.data.images import image_files, sources, synthetic_scenes
from toast_jax.data.images.verify import Subset
from toast_jax.data.images.vtab import tasks
from toast_jax.data.text.sequences import Sequences
from toast_jax.errors import InputError, Interrupted
from toast_jax.model import steered
from toast_jax.model.backbones.vit import network as vit
from toast_jax.tasks import evaluate, predict
from toast_jax.train import checkpoint, loop, saved_run
from toast_jax.weights import containers as weight_files
from toast_jax.weights import rename
from toast_jax.workdir import fingerprint


def write_backbone(path, config, seed):
    network, row = steered.build(config, 3)
    params = trees.flat(jax.jit(lambda: steered.init(network, row, jax.random.key(seed)))())
    backbone = {name: np.asarray(leaf) for name, leaf in params.items() if name.startswith("backbone/")}
    weight_files.write(path, rename.to_torch(backbone), {})


@pytest.fixture(scope="module")
def template(image_folder, tmp_path_factory):
    """The place of a run that was stopped after its first epoch, a copy of all that is to be there, and the run's config."""
    place = tmp_path_factory.mktemp("begun") / "here"
    config = tiny_config(shutil.copytree(image_folder, place / "images"), "linear")
    config.backbone.weights = str(place / "weights.safetensors")
    save = checkpoint.save

    def save_and_stop(*args):
        save(*args)
        raise Interrupted("Stopped.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        write_backbone(config.backbone.weights, config, seed=0)
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(Interrupted):
            loop.fit(config, place / "run")
    return place, place.rename(place.with_name("copied")), config


@pytest.fixture
def begun(template):
    """The config of a run that was stopped after its first epoch, in `here / "run"`."""
    place, copied, config = template
    shutil.copytree(copied, place)
    yield config.copy_and_resolve_references()
    shutil.rmtree(place)


@pytest.fixture
def here(template):
    return template[0]


def test_data_that_changed_is_refused_and_data_that_is_back_is_not(begun, here):
    added = here / "images/train/owl/more.jpg"
    shutil.copy(here / "images/train/owl/0.jpg", added)
    told = rf"The training data has changed since the run in {here}/run began \(24 examples then, 25 now, or others\)"
    with pytest.raises(InputError, match=told):
        loop.fit(begun, here / "run")
    added.unlink()
    loop.fit(begun, here / "run")


def test_weights_that_changed_are_refused(begun, here):
    loop.fit(begun, here / "run")
    evaluated = begun.copy_and_resolve_references()
    evaluated.task = "evaluate"
    evaluate.run(evaluated, str(here / "run"))
    saved_run.load(here / "run")
    write_backbone(begun.backbone.weights, begun, seed=1)
    told = f"The run in {here}/run was tuned on another backbone than {begun.backbone.weights} holds now .backbone/"
    with pytest.raises(InputError, match=told):
        evaluate.run(evaluated, str(here / "run"))
    with pytest.raises(InputError, match=told):
        saved_run.load(here / "run")


def test_weights_that_changed_are_refused_when_a_run_goes_on(begun, here):
    write_backbone(begun.backbone.weights, begun, seed=1)
    with pytest.raises(InputError, match="was tuned on another backbone than"):
        loop.fit(begun, here / "run")


def test_rounding_is_no_other_backbone():
    rng = np.random.default_rng(0)
    frozen = {
        "backbone": {"kernel": rng.normal(size=(64, 64)).astype(np.float32), "bias": np.zeros(4, np.float32)},
        "head": None,
    }
    theirs = fingerprint.of_frozen(frozen)
    assert list(theirs) == ["backbone/kernel", "backbone/bias"]
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), frozen)
    fingerprint.check_frozen(fingerprint.of_frozen(half), theirs, "run", "file")
    frozen["backbone"]["bias"][0] = 1e-3
    with pytest.raises(InputError, match="backbone/bias differs"):
        fingerprint.check_frozen(fingerprint.of_frozen(frozen), theirs, "run", "file")


def test_large_arrays_are_summed_where_they_are(monkeypatch):
    leaf = jax.random.normal(jax.random.key(0), (30, 40))
    here = fingerprint.of_frozen({"a": leaf})
    monkeypatch.setattr(fingerprint, "_LARGE", 1)
    np.testing.assert_allclose(fingerprint.of_frozen({"a": leaf})["a"], here["a"], rtol=1e-4, atol=1e-7)


# Data and weights that move.


def anew(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


@hypothesis.settings(max_examples=8, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_a_run_resumes_wherever_its_data_weights_and_folder_are_moved(begun, data, tmp_path_factory):
    """The same bytes, reached as a user may: renamed, linked, with a slash, relative, or below home."""
    place = tmp_path_factory.mktemp("anywhere")
    origin = Path(begun.data.root).parent
    for part in ("images", "run", "weights.safetensors"):
        (shutil.copytree if (origin / part).is_dir() else shutil.copy)(origin / part, place / part)

    def moved(part, also=()):
        name = data.draw(st.sampled_from([part, f"other {part}", f"a/b+ü/{part}"]))
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if name != part:
            (place / part).rename(place / name)
        if data.draw(st.booleans()):
            (place / f"link to {part}").symlink_to(place / name)
            name = f"link to {part}"
        return data.draw(
            st.sampled_from([str(place / name), f"~/{name}", f"./{name}", *(f"{place / name}{end}" for end in also)])
        )

    folder = moved("run", also="/")
    config = anew(
        begun, **{"data.root": moved("images", also=("/", "//", "/.")), "backbone.weights": moved("weights.safetensors")}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place))
        patch.chdir(place)
        loop.fit(config, folder)
        loop.fit(config, folder)
        evaluate.run(anew(config, task="evaluate"), folder)


@pytest.mark.parametrize("done", [False, True])
def test_other_content_at_another_place_is_refused_each_time(done, begun, here):
    if done:
        loop.fit(begun, here / "run")
    shutil.copytree(here / "images", here / "fewer")
    (here / "fewer/train/owl/0.jpg").unlink()
    write_backbone(here / "other.safetensors", begun, seed=1)
    for changes, message in (
        ({"data.root": str(here / "fewer")}, "The training data has changed"),
        ({"backbone.weights": str(here / "other.safetensors")}, "was tuned on another backbone"),
        ({"backbone.weights": "random"}, "was tuned on another backbone"),
    ):
        for _ in range(2):  # a refusal leaves nothing behind that would let the second one pass
            with pytest.raises(InputError, match=message):
                loop.fit(anew(begun, **changes), here / "run")
    loop.fit(begun, here / "run")


def test_a_finished_run_whose_places_moved_is_checked_and_gives_its_result(begun, here):
    result = loop.fit(begun, here / "run")
    (here / "images").rename(here / "moved")
    config = anew(begun, **{"data.root": str(here / "moved")})
    again = loop.fit(config, here / "run")
    assert {name: again[name] for name in ("steps", "test")} == {name: result[name] for name in ("steps", "test")}
    assert json.loads((here / "run/config.json").read_text())["data"]["root"] == str(here / "moved")


def test_a_task_names_its_own_field_for_a_backbone_that_moved(begun, here):
    (here / "weights.safetensors").rename(here / "moved.safetensors")
    config = task_fields.config_of("predict", run=str(here / "run"), images=str(here / "images"))
    with pytest.raises(InputError, match=r"no weights file at .*, which the run in .* needs; correct --config.weights\."):
        predict.run(config, str(here / "predictions"))
    assert saved_run.load(here / "run", str(here / "moved.safetensors")).step == 3
    for name in ("predict", "visualize", "generate", "corruptions", "attention_metrics", "convert"):
        assert "weights" in task_fields.TASKS[name]


def test_another_start_of_what_is_tuned_is_refused(image_folder, tmp_path):
    """Of method finetune nothing is frozen, so only the start shows which file it began from."""
    config = tiny_config(image_folder, "finetune")
    config.epochs = 2
    for name, seed in (("one", 0), ("other", 1)):
        write_backbone(tmp_path / f"{name}.safetensors", config, seed=seed)
    config.backbone.weights = str(tmp_path / "one.safetensors")
    loop.fit(config, tmp_path / "run")
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "copy.safetensors")
    loop.fit(anew(config, **{"backbone.weights": str(tmp_path / "copy.safetensors")}), tmp_path / "run")
    other = anew(config, **{"backbone.weights": str(tmp_path / "other.safetensors")})
    for _ in range(2):
        with pytest.raises(InputError, match=rf"The run in {tmp_path}/run began from other parameters .*backbone/.* differs\)"):
            loop.fit(other, tmp_path / "run")


def test_names_are_relative_to_the_folder_that_all_are_in(tmp_path, monkeypatch):
    names = ("a/1.jpg", "a/x/2.jpg", "b/1.jpg")
    monkeypatch.chdir(tmp_path)
    roots = ("data/", "data", "./data", "x/../data", str(tmp_path), "/elsewhere//data")
    made = [image_files.Files(tuple(f"{root}/{name}" for name in names), (0, 0, 1), ("a", "b")) for root in roots]
    assert len({fingerprint.of_source(source)["content"] for source in made}) == 1
    renamed = dataclasses.replace(made[0], paths=("data/a/1.jpg", "data/a/y/2.jpg", "data/b/1.jpg"))
    assert fingerprint.of_source(renamed) != fingerprint.of_source(made[0])


FILES = image_files.Files(("a.jpg", "b.jpg"), (0, 1), ("x", "y"))
TEXT = Sequences(*(np.arange(6, dtype=np.int32).reshape(2, 3) for _ in range(2)), np.ones((2, 3), bool))


@pytest.mark.parametrize(
    ("source", "other"),
    [
        (FILES, dataclasses.replace(FILES, labels=(1, 0))),
        (FILES, dataclasses.replace(FILES, paths=("a.jpg", "c.jpg"))),
        (FILES, dataclasses.replace(FILES, classes=("x", "z"))),
        (Subset(FILES, (0,)), Subset(FILES, (1,))),
        (Subset(FILES, (0,)), Subset(dataclasses.replace(FILES, labels=(1, 1)), (0,))),
        (synthetic_scenes.Scenes("train", 5, "green"), synthetic_scenes.Scenes("train", 6, "green")),
        (TEXT, dataclasses.replace(TEXT, tokens=TEXT.tokens + 1)),
        (TEXT, dataclasses.replace(TEXT, answers=~TEXT.answers)),
    ],
)
def test_sources_are_told_apart(source, other):
    assert fingerprint.of_source(source) == fingerprint.of_source(dataclasses.replace(source)) != fingerprint.of_source(other)


def test_prepared_data_is_told_by_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "TRAIN", 8)
    monkeypatch.setattr(tasks, "VAL", 8)
    found = []
    for i, count in enumerate((90, 91)):
        row = tasks.BUILDERS["cifar100"]
        small_tfds.prepare(f"cifar100:{row.versions[0]}", tmp_path / f"{i}", dict.fromkeys({"train", row.test[0]}, count))
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        (tmp_path / f"{i}").rename(tmp_path / "data")
        config = vtab.get_config("task=cifar100,split=selection,backbone=vit_ti8")
        config.data.update({"root": str(tmp_path / "data"), "image_size": 16, "resize": 16})
        found.append(fingerprint.of_source(sources.open_split(config.data, "train")))
    assert found[0]["count"] == found[1]["count"] == 8 and found[0] != found[1]
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    config.data.root = f"{tmp_path}/elsewhere/"
    assert fingerprint.of_source(sources.open_split(config.data, "train")) == found[1]
