"""Runs of segmentation, from images and masks on disk to scores."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import segment as segmentation
from tests.conftest import METHODS
from tests.data.images.segmentation import small_set
from toast_jax import trees
from toast_jax.analysis import maps
from toast_jax.analysis.segmentation import looks
from toast_jax.config.task_fields import config_of
from toast_jax.data.images.segmentation import masks, views
from toast_jax.errors import InputError
from toast_jax.model.backbones.vit import network as vit
from toast_jax.model.segmentation import heads
from toast_jax.model.segmentation.segmenter import segment
from toast_jax.tasks import evaluate, predict, visualize
from toast_jax.train import checkpoint, loop, saved_run
from toast_jax.train.loop import fit
from toast_jax.train.segmentation import mask_runs, metrics


def tiny(root, head="upernet", method="toast", backbone="vit_ti8", **changes):
    config = segmentation.get_config(f"dataset=folder,method={method},backbone={backbone},head={head}")
    config.data.root, config.data.image_size = str(root), 32
    config.backbone.update({"size": "tiny", "weights": "random"})
    config.data.scale, config.data.crop = (48, 32), (24, 32)
    config.segmentation.channels = config.segmentation.auxiliary_channels = 8
    config.prompts.num = 2
    config.batch_size, config.steps, config.warmup_steps = 8, 6, 2
    config.eval_every, config.checkpoint_every, config.log_every = 3, 3, 2
    config.optimizer.lr = 3e-3
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return small_set.write(tmp_path_factory.mktemp("set"), {"train": 8, "val": 3})


@pytest.fixture(scope="module")
def small_vit():
    with pytest.MonkeyPatch.context() as patch:  # that of tiny_size ends with a test
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        yield


@pytest.fixture(scope="module")
def done(root, small_vit, tmp_path_factory):
    """A run with every part: two looks, batch normalization, an auxiliary head."""
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(tiny(root), folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_counts_in_steps_and_reports_the_scores_of_every_class(done):
    folder, result = done
    evaluated = [line for line in lines(folder) if "val/mean_iou" in line]
    assert [line["step"] for line in evaluated] == [3, 6] and result["steps"] == 6
    assert set(result["val"]) == {
        *("mean_iou", "pixel_accuracy", "mean_class_accuracy", "loss", "count"),
        *(f"iou/{name}" for name in small_set.CLASSES),
    }
    ious = [result["val"][f"iou/{name}"] for name in small_set.CLASSES]
    assert result["val"]["mean_iou"] == pytest.approx(np.mean(ious)) and result["val"]["count"] == 3
    trained = [line for line in lines(folder) if "train/head_loss" in line]
    assert len(trained) == 6
    for line in trained:
        total = line["train/head_loss"] + 0.4 * line["train/auxiliary_loss"]
        assert line["train/loss"] == pytest.approx(total, rel=1e-5)
    with pytest.raises(InputError, match="segments images, which this command cannot show"):
        saved_run.load_tuned(folder)


@pytest.mark.slow
def test_scores_are_those_of_predictions_made_image_by_image(done, root):
    """Without batches, shared programs and matrices; statistics of batch normalization come from the checkpoint."""
    folder, result = done
    saved = saved_run.load(folder)
    statistics = [leaf for path, leaf in trees.flat(saved.params).items() if path.endswith("fusion/norm/running_mean")]
    assert len(statistics) == 1 and np.abs(statistics[0]).max() > 0
    confusion = 0
    for index in range(3):
        image, labels = mask_runs.open_sources(saved.config, verified=True)[1]["val"][index]
        image = views.resize(image, masks.fitted(labels.shape, saved.config.data.scale))
        logits = segment(saved.model, saved.method, saved.params, image[None])
        logits = heads.upsample(heads.upsample(logits, image.shape[:2]), labels.shape)
        confusion = confusion + metrics.confusion(labels, np.asarray(logits.argmax(-1))[0], 3)
    expected = metrics.of_split(confusion, small_set.CLASSES)
    assert {name: result["val"][name] for name in expected} == pytest.approx(expected, abs=2e-3)  # ties may break otherwise


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit(done, root, tmp_path, monkeypatch):
    """With the running statistics and the position in the data."""
    folder, result = done
    with monkeypatch.context() as patch:
        save = checkpoint.save

        def last_save(*args):
            save(*args)
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", last_save)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(root), tmp_path)
    assert fit(tiny(root), tmp_path)["val"] == result["val"]
    assert lines(tmp_path) == lines(folder)


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_with_a_sliding_window(done, root):
    folder, result = done
    config = tiny(root, **{"data.window": (16, 16), "data.stride": (12, 10), "task": "evaluate"})
    evaluate.run(config, str(folder))
    slid = json.loads((folder / "evaluation.json").read_text())["val"]
    assert slid["count"] == 3 and 0 < slid["pixel_accuracy"] < 1 and slid["loss"] != result["val"]["loss"]


def test_images_of_val_that_are_trained_on_are_counted(tmp_path, caplog):
    root = small_set.write(tmp_path, {"train": 2, "val": 2})
    (root / "val.txt").write_text("train_1\nval_0\n")
    mask_runs.open_sources(tiny(root), verified=False)
    assert "1 of the 2 images of val are also training images." in caplog.messages


def test_faults_of_all_splits_are_reported_together(tmp_path, caplog):
    root = small_set.write(tmp_path, {"train": 2, "val": 1})
    for name in ("train_0", "train_1", "val_0"):
        (root / f"masks/{name}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="train_0.png cannot be decoded .* .2 of 2 images .*val_0.png cannot be decoded"):
        mask_runs.open_sources(tiny(root), verified=False)
    assert any("train_0.png" in message and "train_1.png" in message for message in caplog.messages)


@pytest.mark.slow
def test_new_images_get_masks_and_pictures(done, root, tmp_path):
    folder, result = done
    names = (root / "val.txt").read_text().split()
    (tmp_path / "new").mkdir()
    for name in names:
        (tmp_path / "new" / f"{name}.png").write_bytes((root / "images" / f"{name}.png").read_bytes())
    (tmp_path / "new" / "z.png").write_bytes(b"no image")
    (tmp_path / "out/masks").mkdir(parents=True)
    (tmp_path / "out/masks/00009_of_an_earlier_call.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 4 images were left out: Image .*z.png cannot be decoded"):
        predict.run(config_of("predict", run=str(folder), images=str(tmp_path / "new")), str(tmp_path / "out"))
    written, hits, counted = sorted((tmp_path / "out/masks").iterdir()), 0, 0
    for name, path in zip(names, written, strict=True):
        mask, labels = (np.asarray(Image.open(file)) for file in (path, root / "masks" / f"{name}.png"))
        hits, counted = hits + (mask == labels).sum(), counted + (labels != 255).sum()
    assert hits / counted == pytest.approx(result["val"]["pixel_accuracy"], abs=2e-3)
    shown = np.asarray(Image.open(min((tmp_path / "out/pictures").iterdir())))
    assert shown.shape == (24, 5 * 32 + 4 * 4, 3)  # image, mask, first look, selection, last look


@pytest.mark.slow
def test_runs_are_shown_side_by_side_on_a_split_or_on_files(done, root, tmp_path):
    folder, _ = done
    (tmp_path / "split" / folder.name).mkdir(parents=True)
    (tmp_path / "split" / folder.name / "00009_of_an_earlier_call.png").write_bytes(b"")
    visualize.run(config_of("visualize", runs=(str(folder),), images="val", most=2), str(tmp_path / "split"))
    told = json.loads((tmp_path / "split/visualize.json").read_text())["runs"][folder.name]
    assert [row["image"] for row in told] == ["val_0.png", "val_1.png"] and all(0 <= row["mean_iou"] <= 1 for row in told)
    page = (tmp_path / "split/comparison.html").read_text()
    assert page.count("<img") == 2 * 6 and "<th>first look</th>" in page  # image, mask, prediction, two looks, selection
    assert len(list((tmp_path / "split" / folder.name).glob("0*.png"))) == 2
    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.png").write_bytes((root / "images/val_2.png").read_bytes())
    config = config_of("visualize", runs=(str(folder),), images=str(tmp_path / "new"))
    visualize.run(config, str(tmp_path / "files"))
    assert "mIoU" not in (tmp_path / "files/comparison.html").read_text().partition("<table")[2]
    (tmp_path / "new/b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"b.png cannot be decoded \(.*\): download it again, or remove it\.$"):
        visualize.run(config, str(tmp_path / "files"))


def test_an_image_that_fits_one_sliding_window_has_no_maps_as_the_others_have_none(root, small_vit):
    shown = lambda function: lambda *args: np.zeros((64, 64)) if function is looks._predicted else {maps.FIRST: 0}  # noqa: E731
    images = [np.zeros(sides, np.uint8) for sides in ((8, 8, 3), (16, 64, 3))]
    for window, expected in (((16, 16), [{}, {}]), ((0, 0), [{maps.FIRST: 0}] * 2)):
        config = tiny(root, **{"data.window": window, "data.stride": (12, 10)})
        config.data.scale = (40, 16)
        segmented = looks.compiled(SimpleNamespace(config=config, classes=("a", "b"), params=None, compiled=shown))
        assert [segmented(image).maps for image in images] == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if not name.endswith("ep") and name != "toast"])
def test_every_method_without_a_probe_segments(method, root, tmp_path):
    config = tiny(root, "linear", method, steps=2, warmup_steps=1, eval_every=2)
    result = fit(config, tmp_path)
    assert np.isfinite(result["val"]["loss"]) and result["tuned_parameters"]["without_head"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "toast"])
def test_the_stages_of_a_convnext_are_maps(method, root, tmp_path):
    config = tiny(root, method=method, backbone="convnext_t", steps=2, warmup_steps=1, eval_every=2)
    config.data.crop = (32, 32)
    assert np.isfinite(fit(config, tmp_path)["val"]["loss"])


@pytest.mark.slow
def test_it_learns_with_both_averages_and_late_steering(root, tmp_path):
    config = tiny(root, "linear", "finetune", steps=60, eval_every=60, **{"segmentation.average": "counted"})
    assert fit(config, tmp_path / "a")["val"]["mean_iou"] > 0.5
    config = tiny(root, steps=2, warmup_steps=1, eval_every=2, steered_blocks=1)
    assert np.isfinite(fit(config, tmp_path / "b")["val"]["loss"])


def test_a_set_of_one_batch_is_not_logged_after_every_step():
    """Its epochs are single steps, and such runs count in steps."""
    config = segmentation.get_config()
    config.log_every = 4
    run = SimpleNamespace(config=config, unit=mask_runs.timing(config, 1)[0], steps_per_epoch=1)
    assert [step for step in range(3, 13) if loop._ends_window(run, step, 2)] == [3, 4, 8, 12]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_steps": 6}, "config.warmup_steps is 6 and config.steps 6: the run would never leave its warm-up"),
        ({"method": "ep"}, "Method ep pools the tokens of an image, but segmentation needs all of them"),
        ({"head.tune": False}, "config.head.tune is False, which leaves a head at random; set it to True"),
        ({"segmentation.sites": (0, 3)}, r"config.segmentation.sites is \(0, 3\); this network has sites 0 to 2"),
        ({"data.window": (16, 0)}, r"config.data.window is \(16, 0\), which has one side"),
        ({"data.window": (16, 16)}, r"config.data.stride is \(341, 341\), larger than config.data.window"),
        ({"data.crop": (24, 32, 3)}, "take two values each"),
        ({"augment.factors": (2.0, 0.5)}, "put the smaller factor first"),
        ({"data.image_size": 30}, "config.data.image_size 30 is no multiple of the patch size 8"),
        ({"batch_size": 12}, "does not split over 8 devices"),
        ({"data.format": "tfds"}, "config.data.format is 'tfds'; write its images and masks to a folder .*data.format=folder"),
        ({"data.crop": (80, 32)}, "config.data.scale, smaller than the crop even at the largest random scale"),
        ({"data.splits.val": "nowhere"}, "nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_refused_before_the_first_step(changes, message, root, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(tiny(root, **changes), tmp_path)
