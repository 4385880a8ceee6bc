"""The Python interface: the numbers of the command line, every kind of input, and a sentence for what cannot be used."""

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import toast_jax
from tests import ROOT
from tests.conftest import CLASSES, COUNTS, are_dropped, noted_steps, tiny_config
from toast_jax import hub, trees
from toast_jax.config import config_files
from toast_jax.data.images import sources
from toast_jax.errors import InputError
from toast_jax.model.backbones.vit import network as vit
from toast_jax.python import data, keywords, loading, net, results
from toast_jax.tasks import train
from toast_jax.train import saved_run

# `tests.conftest.tiny_config` as keyword arguments.
TINY = {
    "backbone": "vit_ti8",
    "size": "tiny",
    "image_size": 16,
    "resize": 18,
    "start": "random",
    "prompts": {"num": 2},
    "queries": 4,
}
TINY |= {"batch_size": 8, "epochs": 2, "warmup_epochs": 0, "eval_every": 1, "checkpoint_every": 1, "optimizer.lr": 0.05}


def tiny(method="toast", **fields):
    return toast_jax.load("random", method=method, **{**TINY, **fields})


def run_page(page, mine, image_folder, folder):
    """Run the Python of a page in an empty folder, as it stands, with a tiny network for the weights that it names."""
    (folder / "data" / "new").mkdir(parents=True)
    (folder / "data" / "mine").symlink_to(mine)
    for i, name in enumerate(CLASSES[:2], 1):
        (folder / "data" / "new" / f"{i}.jpg").symlink_to(image_folder / "test" / name / "0.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
    scope = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        patch.setattr(loading, "_config_of", lambda weights, method, backbone, fields: tiny_config("", method))
        exec("\n".join(blocks), scope)
    assert Image.open(folder / "look.png").width > 4 * 160 and (folder / "runs/mine/result.json").exists()
    assert {path.name for path in folder.iterdir()} <= {"data", "runs", "networks", "look.png"}
    return scope


@pytest.fixture(scope="module")
def readme(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        steps = noted_steps(patch)
        scope = run_page("README.md", image_folder, image_folder, folder)
    assert scope["result"] == json.loads((folder / "runs/mine/result.json").read_text())
    return scope | {"steps": steps}


@pytest.fixture(scope="module")
def tuned(readme):
    return readme["net"]


@pytest.fixture(scope="module")
def fresh():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        return tiny(classes=CLASSES[::-1])


@pytest.fixture
def image(image_folder):
    return str(image_folder / "test" / CLASSES[0] / "0.jpg")


def test_numbers_are_those_of_the_command_line_bit_for_bit(readme, tuned, image_folder, tmp_path):
    assert readme["result"]["test"]["accuracy"] >= 0 and set(readme["labels"]) <= set(CLASSES) and tuned.run.step == 6
    config = tiny_config(image_folder, "toast")
    config.data.root = tuned.run.config.data.root  # a link to the same folder
    (tmp_path / "data").mkdir()
    (tmp_path / config.data.root).symlink_to(image_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train.run(config, "run")
    result, expected = json.loads((tmp_path / "run" / "result.json").read_text()), saved_run.load(tmp_path / "run")
    for name in ("val", "test", "seed", "steps", "tuned_parameters", "config"):
        assert json.loads(json.dumps(readme["result"][name])) == result[name]
    by_path, leaves = trees.flat(expected.params), trees.flat(tuned.params)
    assert leaves.keys() == by_path.keys() and all(np.array_equal(leaf, by_path[path]) for path, leaf in leaves.items())
    assert tuned.run.config.to_dict() == expected.config.to_dict() and tuned.classes == expected.classes


def test_programs_of_a_finished_run_are_dropped(readme):
    assert are_dropped(readme["steps"])


def test_keyword_arguments_make_the_config_that_flags_make(fresh):
    expected = tiny_config("", "toast")
    expected.data.num_classes, expected.confusion, expected.name = 3, True, "folder_toast_vit_ti8"
    assert fresh.config.to_dict() == expected.to_dict()


@pytest.mark.slow
def test_two_processes_compute_the_same_numbers_bit_for_bit(tmp_path):
    """Of the demo's run, small; with the flags of XLA that each sets by itself."""
    fields = {"epochs": 1, "warmup_epochs": 0, "eval_every": 1, "checkpoint_every": 1}
    splits = {"train": "train[:64]", "val": "val[:16]", "test": "test[:16]"}
    (tmp_path / "demo_run.py").write_text(
        "from configs import demo\ndef get_config():\n  return demo.get_config().runs.toast\n"
    )
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    flags += [f"--config.data.splits.{name}={value}" for name, value in splits.items()]
    script = (
        "import toast_jax\n"
        "net = toast_jax.load(toast_jax.read_config('demo').runs.toast)\n"
        f"net.tune(workdir={str(tmp_path / 'python')!r}, splits={splits}, **{fields})"
    )
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    command = ["main.py", f"--config={tmp_path / 'demo_run.py'}", f"--workdir={tmp_path / 'command'}", *flags]
    for arguments in (command, ["-c", script]):
        subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=env)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("command", "python")]
    for name in ("val", "test", "steps", "config", "xla_flags"):
        assert results[0][name] == results[1][name]
    runs = [trees.flat(saved_run.load(tmp_path / name).params) for name in ("command", "python")]
    assert all(np.array_equal(leaf, runs[1][path]) for path, leaf in runs[0].items())


# Use.


def test_paths_pictures_and_arrays_are_predicted_alike(tuned, image_folder):
    folder = image_folder / "test" / CLASSES[0]
    images, labels, probabilities = tuned.predict(folder, batch_size=2)
    assert images == [str(folder / f"{i}.jpg") for i in range(COUNTS["test"])] and set(labels) <= set(CLASSES)
    assert probabilities.shape == (3, 3) and [tuned.classes[i] for i in probabilities.argmax(axis=1)] == labels
    pictures = [Image.open(path) for path in images]
    arrays = [np.asarray(picture) for picture in pictures]
    mixed = [Path(images[0]), pictures[1], arrays[2]]
    for same in (images, np.array(images), pictures, arrays, np.stack(arrays), mixed, (path for path in images)):
        assert np.array_equal(tuned.predict(same, batch_size=2).probabilities, probabilities)
    assert tuned.predict(mixed, batch_size=2).images == [images[0], "1", "2"]
    assert tuned.predict(images[0]).images == images[:1] and len(tuned.predict(pictures[0]).labels) == 1


def test_pictures_are_turned_upright_and_lose_their_alpha_as_files_do(fresh, tmp_path):
    turned, exif = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)), Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    file = fresh.pixels(tmp_path / "turned.png")
    assert file.shape == (1, 16, 16, 3) and file.dtype == np.uint8
    assert np.array_equal(fresh.pixels(Image.open(tmp_path / "turned.png")), file)
    rgba, gray = np.asarray(turned.convert("RGBA")), np.asarray(turned.convert("L"))
    assert np.array_equal(fresh.pixels(rgba), fresh.pixels(turned)) and not np.array_equal(file, fresh.pixels(turned))
    assert np.array_equal(fresh.pixels(gray), fresh.pixels(turned.convert("L")))


@pytest.mark.parametrize("state", ["fresh", "tuned"])
def test_it_looks_before_and_after_it_is_tuned(state, image, request):
    look = request.getfixturevalue(state).look(image)
    assert look.image.shape == (16, 16, 3) and look.first.shape == look.selection.shape == look.last.shape == (2, 2)
    assert 0 < look.first.sum() <= 1 and look.draw().width > 4 * 160


def test_maps_that_a_network_lacks_are_not_drawn():
    look = results.Look(np.zeros((16, 16, 3), np.uint8), None, None, np.eye(2, dtype=np.float32))
    assert look.draw().width == 2 * 160 + 4


def test_a_saved_network_is_read_by_load_and_by_the_tasks(tuned, image, tmp_path, caplog):
    tuned.save(tmp_path / "a" / "saved")
    assert [path.name for path in (tmp_path / "a" / "saved" / "checkpoints").iterdir()] == ["6"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["saved"]
    for loaded in (toast_jax.load(tmp_path / "a" / "saved"), toast_jax.load(tuned.folder)):
        assert loaded.is_tuned and loaded.classes == tuned.classes
        assert np.array_equal(loaded.predict(image).probabilities, tuned.predict(image).probabilities)
    assert not caplog.messages  # such as that its module starts at random, as it did when it was tuned
    assert saved_run.load_tuned(tmp_path / "a" / "saved").step == 6
    with pytest.raises(InputError, match="saved exists already; give another folder"):
        tuned.save(tmp_path / "a" / "saved")


def test_apply_and_params_are_a_pure_function_and_arrays(fresh, image):
    """What users of other libraries take: jit, gradients, and a mask for optax."""
    params, images = fresh.params, fresh.pixels([image, image])
    labels = jax.tree.map(lambda is_tuned: "tuned" if is_tuned else "frozen", fresh.mask)
    tx = optax.multi_transform({"tuned": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)

    def loss(params):
        logits = fresh.apply(params, images)
        return -jax.nn.log_softmax(logits)[:, 0].mean(), logits

    @jax.jit
    def step(params):
        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return optax.apply_updates(params, tx.update(gradients, tx.init(params))[0]), value, logits

    after, before, logits = step(params)
    assert fresh.classes == CLASSES and logits.shape == (2, 3) and step(after)[1] < before
    moved = {path for path, leaf in trees.flat(after).items() if not np.array_equal(leaf, trees.flat(params)[path])}
    assert moved and moved <= {path for path, is_tuned in trees.flat(fresh.mask).items() if is_tuned}


def test_statistics_of_a_probe_are_not_for_an_optimizer():
    mask = tiny("ep", classes=CLASSES, probe={"queries": 4}).mask
    assert mask["probe"] == {"queries": True, "values": True, "norm": {"running_mean": False, "running_var": False}}


# Data to tune on.


def splits_of(given, folder):
    config = config_files.read_config("folder")
    config = keywords.changed(config, data.to_tune_on(given, folder, config, {}, has_format=False))
    return {name: len(source) for name, source in sources.open_splits(config.data).items()}


def test_splits_are_those_of_the_data_or_a_fifth_is_held_out(image_folder, tmp_path):
    assert splits_of(image_folder, tmp_path) == {"train": 24, "val": 6, "test": 9}
    assert splits_of(image_folder / "train", tmp_path) == {"train": 18, "val": 6}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "train").symlink_to(image_folder / "train")
    assert splits_of(str(tmp_path / "alone"), tmp_path) == {"train": 18, "val": 6}
    rows = [(path, path.parent.name) for path in sorted((image_folder / "train").rglob("*.jpg"))]
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    assert splits_of(tmp_path / "a.csv", tmp_path) == {"train": 18, "val": 6}
    lines = (f"{path},{label},{'train' if i % 8 else 'test'}\n" for i, (path, label) in enumerate(rows))
    (tmp_path / "b.csv").write_text("path,label,split\n" + "".join(lines))
    assert splits_of(tmp_path / "b.csv", tmp_path) == {"train": 21, "test": 3}
    for pairs in (rows, iter(rows), [[str(path), label] for path, label in rows]):
        assert splits_of(pairs, tmp_path / "run") == {"train": 18, "val": 6}
    scenes = {"format": "scenes", "name": "green", "splits": {"train": "train[:8]", "val": "", "test": ""}}
    assert splits_of(scenes, tmp_path) == {"train": 8}


def test_a_list_holds_out_the_images_that_its_folder_would(image_folder, tmp_path):
    rows = [(path, path.parent.name) for path in sorted((image_folder / "train").rglob("*.jpg"))]
    held_out = []
    for given in (rows, image_folder / "train"):
        config = config_files.read_config("folder")
        config = keywords.changed(config, data.to_tune_on(given, tmp_path, config, {}, has_format=False))
        held_out.append(sources.open_split(config.data, "val", seed=1).paths)
    assert held_out[0] == held_out[1]


def test_data_of_a_former_run_does_not_reach_the_next(image_folder, tmp_path):
    config = config_files.read_config("folder")
    config.data.root, config.data.held_out, config.data.image_dir, config.data.splits.val = "former", 0.5, "x", ""
    fields = data.to_tune_on(image_folder, tmp_path, config, {}, has_format=False)
    changed = keywords.changed(config, fields).data
    assert (changed.held_out, changed.image_dir, changed.splits.val) == (0.0, "", "val")


def test_how_to_split_can_be_said_before_the_data(image_folder, tmp_path):
    config = config_files.read_config("folder")
    config.data.held_out = 0.4
    train, pairs = image_folder / "train", [(image_folder / "train" / "a.jpg", "a")]
    for given, share in ((train, 0.4), (pairs, 0.4), ({"root": str(train)}, 0.4), ({"root": str(train), "held_out": 0.1}, 0.1)):
        fields = data.to_tune_on(given, tmp_path, config, {}, has_format=False)
        assert keywords.changed(config, fields).data.held_out == share


def test_splits_of_other_names_are_used_as_they_are_named_before_or_with_the_data(image_folder, tmp_path):
    for split, name in (("train", "train"), ("val", "validation")):
        shutil.copytree(image_folder / split, tmp_path / "data" / name)
    rows = [f"{split}/{label}/0.jpg,{label},{split}" for split in ("train", "validation") for label in ("kite", "owl")]
    (tmp_path / "data/all.csv").write_text("\n".join(["path,label,split", *rows]))
    named = {"splits": {"val": "validation"}}
    config = config_files.read_config("folder")
    of_another_run = keywords.changed(config, {"data.root": "former", "data.held_out": 0.5, "data.splits.train": "all"})
    for given, count in ((tmp_path / "data", 6), (tmp_path / "data/all.csv", 2)):
        for before, fields in ((keywords.changed(config, named), {}), (config, named), (of_another_run, named)):
            own = data.to_tune_on(given, tmp_path, before, fields, has_format=False)
            opened = sources.open_splits(keywords.changed(keywords.changed(before, own), fields).data)
            assert {name: len(source) for name, source in opened.items()}["val"] == count and "test" not in opened


def test_without_a_workdir_a_temporary_folder_is_said_and_removed_if_the_run_fails(fresh, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(net.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(net.loop, "fit", lambda config, folder: (_ for _ in ()).throw(InputError(f"No fit in {folder}.")))
    lines = []
    monkeypatch.setattr(net.log, "warning", lambda text, *values: lines.append(text % values))
    with pytest.raises(InputError, match="No fit in"):
        fresh.tune(image_folder)
    assert re.fullmatch(rf"The run is in the temporary folder {tmp_path}/toast_jax_\w+; net.save\(FOLDER\) keeps.*", lines[0])
    with pytest.raises(InputError, match="No fit in"):
        fresh.tune([(f"{image_folder}/train/{name}/{i}.jpg", name) for name in CLASSES for i in (0, 1)], tmp_path / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    for name in ("images.csv", data.LISTING):
        (tmp_path / "mine" / name).write_text("mine")
        with pytest.raises(InputError, match="No fit in"):
            fresh.tune(image_folder, tmp_path / "mine")
        assert (tmp_path / "mine" / name).read_text() == "mine"


def test_the_log_is_printed_unless_the_program_logs_by_itself(capsys, caplog):
    package = logging.getLogger("toast_jax")
    with net._printed_log():
        package.info("printed")
    assert capsys.readouterr().out == "printed\n" and not package.handlers and package.propagate
    with caplog.at_level(logging.INFO), net._printed_log():
        package.info("logged")
    assert capsys.readouterr().out == "" and caplog.messages == ["logged"] and not package.level


# Pages.


@pytest.mark.slow
def test_lines_of_the_page_run(image_folder, tmp_path):
    run_page("docs/python.md", image_folder / "train", image_folder, tmp_path)


def test_the_readme_has_five_lines_and_the_package_has_the_same():
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    lines = [line for line in block.splitlines() if line]
    (example,) = re.findall(r"^(?: {4}.*\n)+", toast_jax.__doc__, flags=re.M)
    assert len(lines) == 5 and [re.sub(" +#.*", "", line) for line in lines] == [line.strip() for line in example.splitlines()]


# What cannot be used.


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (["vit_b16_in21kk"], {}, "'vit_b16_in21kk' is no file of weights, .* the nearest name is 'vit_b16_in21k', and docs/"),
        ([3], {}, "source is 3; give a name of weights, a file, a folder, or a config"),
        (["random"], {}, "The name random does not say which backbone the file holds; name it, as in backbone='vit_b16'"),
        (["random", "tost"], TINY, r"^method is 'tost'; it must be one of linear, .* \(the nearest is 'toast'\)"),
        (["random"], TINY | {"epoch": 1}, "The config has no field epoch; the nearest are epochs"),
        (["random"], TINY | {"optimiser": {"lr": 1}}, "has no field optimiser.lr; the nearest are optimizer.lr"),
        (["random"], TINY | {"batch_size": "8"}, "^batch_size is '8'; it has to be a whole number, 1 or more"),
        (["random"], TINY | {"classes": "cat"}, "classes is 'cat'; give a list of names, a number, or None"),
        (["random"], TINY | {"classes": []}, r"classes is \[\]; give a list of names"),
        (["random"], TINY | {"classes": ["b", 1, "a", "1"]}, "classes has '1' 2 times; name each class once"),
        (["random"], TINY | {"epochs": 1.5}, r"^epochs is 1.5; it has to be a whole number, 1 or more"),
        (["random"], TINY | {"warmup_epochs": 9}, "warmup_epochs is 9 and epochs 2: the run would never leave its warm-up"),
        (["{tmp}"], {}, "There are no checkpoints in {tmp}; give the workdir of a run"),
        (
            ["{run}"],
            {"method": "lora", "lr": 1},
            "The network in {run} is tuned: its lr, method cannot change; weights, module",
        ),
        (["{run}"], {"weights": "gone.pth"}, "no weights file at gone.pth, which the run in {run} needs; correct weights"),
    ],
)
def test_what_cannot_be_loaded(arguments, fields, message, tuned, tmp_path):
    places = {"run": str(tuned.folder), "tmp": str(tmp_path)}
    filled = [text.format(**places) if isinstance(text, str) else text for text in arguments]
    for name, place in places.items():
        message = message.replace(f"{{{name}}}", re.escape(place))
    with pytest.raises(InputError, match=message) as error:
        toast_jax.load(*filled, **fields)
    assert str(error.value).endswith(".") and "--" not in str(error.value)


def test_configs_of_other_tasks_are_not_loaded():
    for name in ("predict", "alpaca", "pretune"):
        with pytest.raises(InputError, match="The config does not tune a network on images"):
            toast_jax.load(config_files.read_config(name))
    with pytest.raises(InputError, match="leave backbone out"):
        toast_jax.load(config_files.read_config("folder"), backbone="vit_b16")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "There is no data to tune on"),
        (
            "{tmp}/nowhere",
            "There is no folder or table .* at '.*nowhere'; give a folder with one folder of images for each class",
        ),
        ("{tmp}", "Folder .* has no class folders: put the images in one folder for each class"),
        ([], "There are no images in the data"),
        (["a.jpg", "b.jpg"], "Item 0 of the data is 'a.jpg'; give pairs of a path and a label"),
        ([("a.jpg", "x"), ("b.jpg", np.nan)], r"Item 1 of the data, b.jpg, has no label \(nan\); add it, or leave it out"),
        ([("a.jpg", "x"), ("b.jpg", None)], r"Item 1 of the data, b.jpg, has no label \(None\)"),
        ([("a.jpg", "x")], r"1 of 1 images of .*tuned_on.csv do not exist, .* correct the paths, or set image_dir"),
        (3, "The data is 3; give a folder, a table, or a list"),
        ("{images}", "The data has the classes heron, kite, owl, and the network was loaded for a, b; load it with"),
        ({"formats": "folder"}, "The config has no field data.formats; the nearest are data.format"),
    ],
)
def test_what_cannot_be_tuned_on(given, message, fresh, image_folder, tmp_path):
    if isinstance(given, str):
        given = given.format(tmp=tmp_path, images=image_folder)
    network = net.Net(fresh.config, fresh.run)
    network.run = net.dataclasses.replace(fresh.run, classes=("a", "b"))
    with pytest.raises(InputError, match=message) as error:
        network.tune(given, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists() and "--" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{tmp}/nowhere.jpg", "There is nothing at .*nowhere.jpg"),
        ("{tmp}/broken.jpg", r"Image .*broken.jpg cannot be decoded \(not an image\): leave it out, or download it again"),
        ([], "There are no images in the list"),
        (None, "None is no image; give a path, a PIL image, an array uint8"),
        (np.zeros((4, 4, 3)), r"Image 0 is an array float64 \[4, 4, 3\]; give"),
        ([(np.zeros((8, 8, 3), np.uint8), "cat")], "Image 0 is a tuple; give a path, a PIL image"),
        ([np.zeros((3, 8, 8), np.uint8)], r"Image 0 is an array uint8 \[3, 8, 8\]; give"),
    ],
)
def test_what_cannot_be_predicted(images, message, tuned, tmp_path):
    (tmp_path / "broken.jpg").write_text("x")
    images = images.format(tmp=tmp_path) if isinstance(images, str) else images
    for use in (tuned.predict, tuned.look):
        with pytest.raises(InputError, match=message):
            use(images)


def test_what_a_network_cannot_do(fresh, tuned, image, tmp_path):
    with pytest.raises(InputError, match="The network cannot predict before it is tuned; call net.tune"):
        fresh.predict(image)
    with pytest.raises(InputError, match="The network cannot be saved before it is tuned"):
        fresh.save(tmp_path / "x")
    with pytest.raises(InputError, match="There is more than one image to look at; give one"):
        tuned.look([image, image])
    with pytest.raises(InputError, match="batch_size is 0"):
        tuned.predict(image, batch_size=0)
    with pytest.raises(InputError, match="has no head before its classes are known; give classes"):
        net.Net(tiny_config("", "toast"), net.dataclasses.replace(fresh.run, classes=())).params  # noqa: B018


# Names.


def test_fields_are_named_by_their_last_parts_or_by_section():
    config = config_files.read_config("folder")
    for same in (
        {"splits.val": "v"},
        {"splits": {"val": "v"}},
        {"data.splits.val": "v"},
        {"val": "v"},
        {"data": {"splits": {"val": "v"}}},
    ):
        assert keywords.changed(config, same).data.splits.val == "v" and config.data.splits.val == "val"
    changed = keywords.changed(config, {"name": "mine", "root": Path("a"), "lr": np.float32(0.5)})
    assert (changed.name, changed.optimizer.name, changed.data.root) == ("mine", "sgd", "a") and type(
        changed.optimizer.lr
    ) is float


def test_every_last_part_of_a_field_but_name_is_a_keyword():
    fields = keywords.flat_fields(config_files.read_config("folder").to_dict())
    assert {name for name in fields if keywords.short(name) == name and "." in name} == {
        "adapter.rank",
        "data.name",
        "lora.rank",
        "optimizer.name",
    }


def test_a_name_that_is_short_for_several_fields_is_refused_with_all_of_them():
    config = config_files.read_config("folder")
    with pytest.raises(InputError) as raised:
        keywords.changed(config, {"rank": 8})
    sentence = "rank is short for several fields (adapter.rank, lora.rank); name one in full, as in **{'adapter.rank': 8}."
    assert str(raised.value) == sentence
    assert keywords.changed(config, {"lora.rank": 8}).lora.rank == 8


def test_named_weights_of_the_release_bring_their_module_and_files_their_backbone(monkeypatch):
    configs = {
        name: loading._config_of(name, "toast", "", {}) for name in ("vit_b16_in21k", "convnext_b_in21k", "vit_s16_in1k_dino")
    }
    assert [config.top_down for config in configs.values()] == ["vit_b16_in21k_top_down", "convnext_b_in21k_top_down", ""]
    assert loading._config_of("vit_b16_in21k", "lora", "", {}).top_down == ""
    assert loading._config_of("vit_b16_in21k", "toast", "", {"module": "x"}).top_down == ""
    assert all(config.backbone.weights == name for name, config in configs.items())
    config = loading._config_of("assets/vit_nano8.safetensors", "toast", "", {})
    assert (config.backbone.size, config.backbone.weights) == ("Nano", "assets/vit_nano8.safetensors")


def test_a_repository_on_the_hub_says_what_its_backbone_is(monkeypatch):
    described = {"architecture": "vit_small_patch16_224"}
    monkeypatch.setattr(hub, "read_json", lambda place, file: described if file == "config.json" else None)
    config = loading._config_of("hf:timm/vit_small", "toast", "", {})
    assert (config.backbone.size, config.backbone.patch, config.backbone.weights) == ("S", 16, "hf:timm/vit_small")
    monkeypatch.setattr(hub, "read_json", lambda place, file: None)
    assert loading._config_of("hf:timm/vit_small", "toast", "vit_b32", {}).backbone.patch == 32


def test_a_folder_of_transformers_is_no_run(tmp_path):
    """It was refused as a tuned network whose method cannot change."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch16_224"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/model.safetensors is not a complete safetensors file"):
        toast_jax.load(tmp_path, method="lora", classes=3)
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match=f"{tmp_path} is an adapter of PEFT, not a network; merge it into its network there"):
        toast_jax.load(tmp_path, method="lora")


def test_docstrings_of_the_public_methods_say_what_they_raise():
    for function in (toast_jax.load, net.Net.tune, net.Net.predict, net.Net.look, net.Net.save):
        assert "Raises:" in inspect.getdoc(function)
