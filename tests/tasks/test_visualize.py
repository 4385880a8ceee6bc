"""Pictures and numbers of several networks on the same images, by tasks that read saved runs."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import attention as metrics_config
from configs import corrupt as corrupt_config
from configs import visualize as visualize_config
from tests.conftest import CLASSES, COUNTS, TINY_CONVNEXT, tiny_config
from toast_jax.analysis import comparison, localization, maps, perturbation, views
from toast_jax.data.images import selected
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.backbones.convnext import network as convnext
from toast_jax.model.backbones.vit import network as vit
from toast_jax.tasks import attention_metrics, corruptions, visualize
from toast_jax.train import saved_run

IMAGES = 3 * COUNTS["test"]


def made_up(root, method, backbone="vit_ti8", **data):
    """A run that was never made: the network with random parameters, the backbone's being those of every other one."""
    config = tiny_config(root, method, backbone)
    config.data.update(data)
    network, row = steered.build(config, len(CLASSES))
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))

    def filled(path, leaf):
        rng = np.random.default_rng(sum(jax.tree_util.keystr(path).encode()))
        return rng.normal(0.0, 0.3, leaf.shape).astype(np.float32)

    return saved_run.SavedRun(config, CLASSES, 0, network, row, jax.tree_util.tree_map_with_path(filled, shapes))


@pytest.fixture(scope="module")
def runs(image_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        patch.setitem(convnext.SIZES, "tiny", TINY_CONVNEXT)
        return {
            "toast": made_up(image_folder, "toast"),
            "vpt": made_up(image_folder, "vpt"),
            "convnext": made_up(image_folder, "toast", "convnext_t"),
            "pretuned": made_up(image_folder, "toast"),
            "larger": made_up(image_folder, "toast", resize=20),
            "stretched": made_up(image_folder, "toast", format="vtab"),
            "other": dataclasses.replace(made_up(image_folder, "toast"), classes=("heron", "kite", "swan")),
        }


@pytest.fixture
def there(runs, monkeypatch):
    """Lets folders `runs/NAME` hold them."""
    runs["pretuned"].config.stage = "pretune"
    monkeypatch.setattr(saved_run, "load", lambda folder, *_: runs[str(folder).split("/")[-1]])


def configured(module, text="", **fields):
    config = module.get_config(text)
    config.update(fields)
    return config


# Names, and which runs can be compared.


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/toast"], ["toast"]),
        (["runs/toast", "runs/lora"], ["toast", "lora"]),
        (["d/toast/seed_1", "d/lora/seed_1"], ["toast", "lora"]),
        (["a/toast/1", "b/lora/1", "b/toast/1"], ["a/toast", "b/lora", "b/toast"]),
        (["a", "a/b"], ["a", "a/b"]),
    ],
)
def test_runs_go_by_what_tells_them_apart(folders, names):
    assert saved_run.short_names(folders) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "There is no run to look at"),
        (("toast", "toast"), "is given twice"),
        (("toast", "pretuned"), "has pre-tuned a top-down module; give one that tuned with it"),
        (("toast", "larger"), r"differ in config.data.resize \(18 and 20\), so they see other pictures"),
        (("toast", "other"), "runs/toast and runs/other name other classes; compare runs that name the same"),
        (("toast", "stretched"), "one stretches images to a square, as VTAB-1k does, where the other crops them, so they"),
        (("toast", "convnext"), r"differ in config.data.image_size \(16 and 32\)"),
    ],
)
def test_runs_that_cannot_be_compared(there, names, message):
    with pytest.raises(InputError, match=message):
        saved_run.load_compared([f"runs/{name}" for name in names])


def test_language_models_see_no_images(runs, monkeypatch):
    config = runs["vpt"].config.copy_and_resolve_references()
    config.backbone.family = "llama"
    monkeypatch.setattr(saved_run, "load", lambda *_: dataclasses.replace(runs["vpt"], config=config))
    with pytest.raises(InputError, match="has tuned a language model, which sees no images"):
        saved_run.load_compared(["runs/words"])


def test_unknown_run(tmp_path):
    with pytest.raises(InputError, match=f"There are no checkpoints in {tmp_path}"):
        visualize.run(configured(visualize_config, runs=(str(tmp_path),)), str(tmp_path / "out"))


def test_a_split_that_the_data_lacks_is_refused_before_the_runs_are_looked_at(runs, tmp_path, monkeypatch):
    """As of a folder whose validation images are held out."""
    config = runs["vpt"].config.copy_and_resolve_references()
    config.data.splits.test = ""
    without = dataclasses.replace(runs["vpt"], config=config)
    monkeypatch.setattr(saved_run, "load_compared", lambda *_: {"vpt": without})
    for module, task in ((visualize_config, visualize), (metrics_config, attention_metrics), (corrupt_config, corruptions)):
        with pytest.raises(InputError, match="runs/vpt has no test split, only train and val: write --config.images=val, or"):
            task.run(configured(module, "runs=runs/vpt"), str(tmp_path))


# Pictures.


def test_pictures_of_two_methods(there, tmp_path):
    visualize.run(configured(visualize_config, "runs=runs/toast+runs/vpt,most=4", batch_size=3), str(tmp_path))
    for name in ("toast", "vpt"):
        assert len(list((tmp_path / name).glob("0*.png"))) == 4 and (tmp_path / name / "contact_sheet.png").exists()
    page = (tmp_path / "comparison.html").read_text()
    for title in ("first look", "toast: selection", "toast: last look", "vpt: last look", "toast: rollout", "vpt: rollout"):
        assert f"<th>{title}</th>" in page
    # Each with the image: first look, selection and two last looks; two rollouts; one difference.
    assert page.count("<img") == 4 * (1 + 4 + 1 + 2 + 1 + 1) and not re.search(r'(src|href)="(?!data:)', page)
    told = json.loads((tmp_path / "visualize.json").read_text())
    assert told["truths"] == ["heron", "heron", "kite", "owl"] and told["versions"]["jax"] == jax.__version__
    verdicts = [comparison.verdict(one["named"], truth) for one, truth in zip(told["runs"]["vpt"], told["truths"], strict=True)]
    assert all(verdict in page for verdict in verdicts)
    assert page.count(" right<") + page.count(" wrong<") == 4 * 2 * 2  # below the last map of a table


def test_pictures_of_a_folder_have_no_truth(there, image_folder, tmp_path):
    visualize.run(configured(visualize_config, f"runs=runs/vpt,images={image_folder}/test/owl"), str(tmp_path))
    assert json.loads((tmp_path / "visualize.json").read_text())["truths"] == [""] * COUNTS["test"]
    assert " wrong<" not in (tmp_path / "comparison.html").read_text()


def test_a_broken_image_is_refused_with_advice_that_these_tasks_can_follow(there, image_folder, tmp_path):
    images = shutil.copytree(image_folder / "test/owl", tmp_path / "images")
    (images / "z.jpg").write_bytes((images / "0.jpg").read_bytes()[:500])
    for module, task in ((visualize_config, visualize), (metrics_config, attention_metrics)):
        with pytest.raises(InputError, match=r"^Image .*/z.jpg cannot be decoded \(.*\): download it again, or remove it\.$"):
            task.run(configured(module, f"runs=runs/vpt,images={images}", batch_size=2), str(tmp_path / "out"))


def test_data_that_moved_is_read_where_the_field_of_the_message_says(runs, image_folder, tmp_path, monkeypatch):
    images = shutil.copytree(image_folder, tmp_path / "images")
    (images / "test/owl/z.jpg").write_bytes(b"nothing")
    run = dataclasses.replace(runs["vpt"], config=runs["vpt"].config.copy_and_resolve_references())
    run.config.data.update({"root": str(tmp_path / "before"), "skip_corrupt": True})
    monkeypatch.setattr(saved_run, "load", lambda *_: run)
    for module, task in ((visualize_config, visualize), (metrics_config, attention_metrics), (corrupt_config, corruptions)):
        config = configured(module, "runs=runs/vpt", images="test", most=2, batch_size=2)
        with pytest.raises(InputError, match=r"Data folder .*/before does not exist: set --config.data.root\.$"):
            task.run(config, str(tmp_path / "out"))
    config = configured(visualize_config, "runs=runs/vpt", images="test", most=100, batch_size=2)
    config.data.root = str(images)
    visualize.run(config, str(tmp_path / "out"))
    truths = json.loads((tmp_path / "out/visualize.json").read_text())["truths"]
    assert len(truths) == 3 * COUNTS["test"]  # without the image that the run has left out, too


def test_panels_of_a_picture(runs):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    looked = comparison.look_closely(runs["toast"], images, batch_size=3)
    assert [len(one) for one in (looked.named, looked.confidence, looked.maps[maps.LAST], looked.parts.top_down[0])] == [5] * 4
    again = comparison.look_closely(runs["toast"], images[4:], batch_size=3)
    np.testing.assert_allclose(again.maps[maps.ROLLOUT][0], looked.maps[maps.ROLLOUT][4], rtol=1e-5)
    np.testing.assert_array_equal(looked.difference, looked.maps[maps.LAST] - looked.maps[maps.FIRST])
    height, width, _ = comparison.row_of(images[0].repeat(8, axis=0).repeat(8, axis=1), looked, 0).shape
    assert width == 6 * 128 + 5 * 4  # image, first look, selection, last look, rollout, difference
    picture = comparison.picture_of(images[0].repeat(8, axis=0).repeat(8, axis=1), "title", looked, 0)
    assert picture.shape[0] == 4 * height + 3 * 4 + 17  # maps; two heads of either look; three blocks


def test_first_looks_that_differ_are_shown_for_each_network(runs):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    one = comparison.look_closely(runs["toast"], images, batch_size=2)
    other = comparison.Looked(one.named, one.confidence, one.maps | {maps.FIRST: 1.5 * one.maps[maps.FIRST]})
    same = comparison.grid(images, ["a", "b"], ["", ""], {"x": one, "y": one}, maps.ORDER)
    differ = comparison.grid(images, ["a", "b"], ["", ""], {"x": one, "y": other}, maps.ORDER)
    assert "<th>first look</th>" in same and "x: first look" not in same
    assert "<th>first look</th>" not in differ and all(f"<th>{name}: first look</th>" in differ for name in "xy")


def test_pictures_of_a_convnext(there, tmp_path):
    visualize.run(configured(visualize_config, "runs=runs/convnext,most=1", batch_size=1), str(tmp_path))
    page = (tmp_path / "comparison.html").read_text()
    assert "<th>convnext: like Grad-CAM</th>" in page and "<th>convnext: selection</th>" in page and "rollout" not in page
    (picture,) = (tmp_path / "convnext").glob("0*.png")
    assert np.asarray(Image.open(picture)).shape[1] == 4 * 128 + 3 * 4  # the widest row: four stages


# Numbers.


def measured(folder, text, **fields):
    attention_metrics.run(configured(metrics_config, text, **fields), str(folder))
    told = json.loads((folder / "attention_metrics.json").read_text())
    return told, {(row["method"], row["map"]): row for row in told["rows"]}


@pytest.fixture(scope="module")
def boxes(image_folder, tmp_path_factory):
    """The left half of every image (48 x 40) of val and test."""
    path = tmp_path_factory.mktemp("boxes") / "boxes.json"
    names = [str(one.relative_to(image_folder)) for split in ("val", "test") for one in (image_folder / split).glob("*/*.jpg")]
    path.write_text(json.dumps({name: [0, 0, 24, 40] for name in names}))
    return path


def test_metrics_are_those_of_the_maps(there, runs, boxes, tmp_path):
    told, rows = measured(tmp_path, f"runs=runs/toast+runs/vpt,objects={boxes}", batch_size=4)
    every = {
        "toast": tuple(name for name in maps.MEASURED if name != maps.GRAD_CAM),
        "vpt": (maps.LAST, maps.ROLLOUT, maps.GRADIENT),
        "-": tuple(attention_metrics.BASELINES),
    }
    assert set(rows) == {(name, one) for name, found in every.items() for one in found}
    assert told["images"] == IMAGES and told["threshold_split"] == "val" and told["cropped_away"] == 0
    source, _ = selected.open_images(runs["toast"].config.data, "test")
    images, _ = views.all_of_run(runs["toast"], source, 32)
    found = comparison.look_closely(runs["toast"], images, 32).maps
    mask = np.zeros((IMAGES, 16, 16), bool)
    mask[:, :, :8] = True  # 48 x 40 -> 21 x 18, of which the crop takes columns 2 to 18; the box ends at 10.5
    mask[:, :, 8:9] = told["area"] > 0.5
    for name, values in found.items():
        row = rows["toast", name]
        assert row["energy inside"]["mean"] == pytest.approx(localization.energy_inside(values, mask).mean(), rel=1e-4)
        low, high = row["energy inside"]["interval"]
        assert low <= row["energy inside"]["mean"] <= high
        assert row["IoU of the highest 25%"]["mean"] == pytest.approx(
            localization.iou_of_highest(values, mask, 0.25).mean(), rel=1e-3
        )
    assert rows["-", "uniform"]["energy inside"]["mean"] == pytest.approx(told["area"])
    assert told["thresholds"]["-: uniform"] == 0.0
    first_section, *others = (tmp_path / "attention_metrics.md").read_text().split("\n## ")
    table = first_section.splitlines()
    assert len(table) == 2 + len(rows) + 3 and table[0].startswith("| method | map | energy inside, % |")
    assert [text.splitlines()[0] for text in others] == ["What changes", "Does the prediction depend on the background?"]
    # Looks of one network; a network that looks once against the look of the frozen backbone; each network against the first.
    differences = {(row["method"], row["map"], row["minus"]): row for row in told["differences"]}
    pairs = {("toast", last, first) for first, last in maps.PAIRS.values()}
    pairs |= {("vpt", maps.LAST, "toast: first look"), ("vpt", maps.ROLLOUT, "toast: rollout, first look")}
    pairs |= {("vpt", name, f"toast: {name}") for name in (maps.LAST, maps.ROLLOUT, maps.GRADIENT)}
    assert set(differences) == pairs
    for (method, label, minus), row in differences.items():
        other, before = minus.split(": ") if ": " in minus else (method, minus)
        for score in ("energy inside", "MaxBoxAccV2"):
            expected = rows[method, label][score]["mean"] - rows[other, before][score]["mean"]
            assert row[score]["mean"] == pytest.approx(expected, abs=1e-6)
    exchange = {row["method"]: row for row in told["exchange"]}
    assert set(exchange) == {"toast", "vpt", "vpt minus toast"}
    predicted = runs["toast"].compiled(steered.apply)(runs["toast"].params, images).argmax(axis=-1)
    truths = np.repeat([0, 1, 2], COUNTS["test"])
    assert exchange["toast"]["accuracy"]["mean"] == pytest.approx((predicted == truths).mean())
    other = exchange["toast"]["background of another class"]["mean"]
    assert exchange["toast"]["drop"]["mean"] == pytest.approx(exchange["toast"]["accuracy"]["mean"] - other)


def test_threshold_is_picked_on_val_and_not_on_test(there, boxes, tmp_path, monkeypatch):
    """Each split would pick its own."""
    asked = []
    plain = localization.iou_at_thresholds
    monkeypatch.setattr(localization, "iou_at_thresholds", lambda a, b, *t: asked.append((len(a), len(t))) or plain(a, b, *t))
    measured(tmp_path, f"runs=runs/vpt,objects={boxes}")
    assert {count for count, given in asked if not given} == {3 * COUNTS["val"]}
    assert {count for count, given in asked if given} == {IMAGES}
    asked.clear()
    told, _ = measured(tmp_path, f"runs=runs/vpt,objects={boxes}", threshold_split="")
    assert {count for count, given in asked if not given} == {IMAGES} and told["threshold_split"] is None
    assert "on the same images, which flatters it" in (tmp_path / "attention_metrics.md").read_text()


def test_objects_for_val_are_asked_for_before_work_begins(there, boxes, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "look_closely", None)
    only_test = {name: box for name, box in json.loads(boxes.read_text()).items() if name.startswith("test")}
    (tmp_path / "boxes.json").write_text(json.dumps(only_test))
    config = configured(metrics_config, f"runs=runs/vpt,objects={tmp_path / 'boxes.json'}")
    with pytest.raises(InputError, match="cannot be picked on val; --config.threshold_split= picks it on test: 6 of 6 images"):
        attention_metrics.run(config, str(tmp_path))


def test_images_without_classes_keep_their_backgrounds(there, boxes, image_folder, tmp_path):
    images = f"{image_folder}/test/owl+{image_folder}/test/kite"
    names = {name.removeprefix("test/"): box for name, box in json.loads(boxes.read_text()).items()}
    (tmp_path / "boxes.json").write_text(json.dumps(names))
    told, rows = measured(tmp_path, f"runs=runs/vpt,images={images},objects={tmp_path / 'boxes.json'}")
    assert ("vpt", maps.GRADIENT) in rows and not {"differences", "exchange"} & told.keys()
    assert told["box_thresholds"]["-: uniform"] == [0.0] * 3


def test_object_that_the_crop_cuts_off_is_left_out(there, boxes, tmp_path):
    changed = json.loads(boxes.read_text())
    changed["test/owl/0.jpg"] = [0, 0, 2, 40]
    (tmp_path / "boxes.json").write_text(json.dumps(changed))
    told, _ = measured(tmp_path, f"runs=runs/vpt,objects={tmp_path / 'boxes.json'}", threshold_split="")
    assert (told["images"], told["cropped_away"]) == (IMAGES - 1, 1)


def test_deletion_and_insertion_without_objects(there, tmp_path):
    told, rows = measured(tmp_path, "runs=runs/toast", steps=2, most=2)
    assert told["images"] == 2 and "differences" not in told
    assert set(rows) == {("toast", one) for one in (*attention_metrics.BASELINES, *maps.ORDER, maps.ROLLOUT)}
    assert all(0 <= row[one]["mean"] <= 1 for row in rows.values() for one in ("deletion", "insertion"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"runs": ()}, "Nothing to measure; write --config=configs/attention.py:runs="),
        ({"shares": (0.1, 1.5)}, "of these 1.5 is refused: it has to be a number, more than 0.0 and less than 1.0"),
        ({"steps": 0}, "config.steps is 0"),
        ({"objects": "nowhere"}, "There are no objects at nowhere"),
        ({"images": "nowhere"}, "There is nothing at nowhere"),
    ],
)
def test_metrics_refuse(there, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        attention_metrics.run(configured(metrics_config, "runs=runs/vpt", **fields), str(tmp_path))


# Deletion and insertion, by hand.


def test_cells_are_taken_from_the_highest():
    rng = np.random.default_rng(0)
    ranks = perturbation.order(np.array([[3.0, 1.0], [9.0, 2.0]]), rng)
    np.testing.assert_array_equal(ranks, [[1, 3], [0, 2]])
    taken = perturbation.removed(ranks, 2)
    np.testing.assert_array_equal(taken.sum(axis=(1, 2)), [0, 2, 4])
    np.testing.assert_array_equal(taken[1], [[True, False], [True, False]])
    ties = [tuple(perturbation.order(np.ones((2, 2)), np.random.default_rng(seed)).ravel()) for seed in range(20)]
    assert len(set(ties)) > 10 and all(sorted(one) == [0, 1, 2, 3] for one in ties)


def test_area_is_that_of_trapezoids():
    assert perturbation.area(np.array([1.0, 0.5, 0.0])) == 0.5
    np.testing.assert_allclose(perturbation.area(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])), [0.25, 0.75])


def test_deletion_makes_grey_and_insertion_sharp():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    taken = np.array([[[False, False], [False, False]], [[True, False], [False, False]], [[True, True], [True, True]]])
    without, within = perturbation.deletion(image, taken), perturbation.insertion(image, taken)
    np.testing.assert_array_equal(without[0], image)
    assert (without[1, :4, :4] == (124, 116, 104)).all() and (without[1, 4:] == image[4:]).all()
    assert (without[2] == (124, 116, 104)).all()
    np.testing.assert_array_equal(within[2], image)
    np.testing.assert_array_equal(within[0], perturbation.blurred(image))
    assert (within[1, :4, :4] == image[:4, :4]).all() and (within[1, 4:] == perturbation.blurred(image)[4:]).all()


def test_areas_follow_the_class_of_the_whole_image():
    """A network that counts white pixels, in its second class; only one cell is white."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, 4:] = 255

    def probabilities(pixels):
        white = (pixels == 255).all(axis=-1).mean(axis=(1, 2)) * 4
        return np.stack([np.zeros_like(white), white], axis=1)

    left = (perturbation.blurred(image) == 255).all(axis=-1).mean() * 4  # what is white after the blur, too
    first = np.array([[2.0, 3.0], [1.0, 0.0]])  # the white cell first, or last
    falling, rising = perturbation.areas(probabilities, image, first, steps=4, rng=np.random.default_rng(0))
    assert falling == pytest.approx(0.5 / 4) and rising == pytest.approx((0.5 * (left + 1) + 3) / 4)
    falling, rising = perturbation.areas(probabilities, image, -first, steps=4, rng=np.random.default_rng(0))
    assert falling == pytest.approx(3.5 / 4) and rising == pytest.approx((3 * left + 0.5 * (left + 1)) / 4)
    assert left < 1
