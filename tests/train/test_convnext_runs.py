"""ConvNeXts in the harness: what each method tunes, steps of the configs, pictures, and what is refused."""

import csv
import functools
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from configs import fgvc, folder, pretune
from configs import predict as predict_config
from tests.conftest import CLASSES, METHODS, tiny_config
from toast_jax import trees
from toast_jax.config.run_fields import base
from toast_jax.data.images import batches
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.model import methods, steered
from toast_jax.model.backbones.convnext import network as convnext
from toast_jax.model.families import FAMILIES
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.model.top_down import ConvTopDown
from toast_jax.tasks import predict
from toast_jax.train import loop, saved_run, setup

NAMES = tuple(name for name in METHODS if name != "vpt")
WIDTHS, DEPTHS = (128, 256, 512, 1024), (3, 3, 27, 3)  # of ConvNeXt-B
BLOCKS = sum(c * depth for c, depth in zip(WIDTHS, DEPTHS, strict=True))  # channels of all blocks
HEAD = 200 * (WIDTHS[-1] + 1)
INPUTS = (3, *WIDTHS[:-1])  # channels that each stage gets
SIDES = (4, 2, 2, 2)
BACK = [(c, s * s * d) for c, s, d in zip(WIDTHS, SIDES, INPUTS, strict=True)]
FEEDBACK = BACK + [(d, d) for d in INPUTS]
# Of ConvNeXt-B, outside the head: the parameters tuned.
TUNED = {
    "linear": 0,
    "finetune": 87_566_464,
    "partial": 8_448_000,
    "bias": 130_304,
    "ep": 1_081_344,
    "ln": 40_192,
    "ssf": 260_608,
    "adapter_plus": 325_152,
    "lora": 721_920,
    "toast": 3_103_753,
    "toast_lite": 1_079_000,
    "toast_ep": 4_185_097,
}


@functools.cache
def of_convnext_b(method):
    network, row = steered.build(fgvc.get_config(f"method={method},backbone=convnext_b_in1k"), 200)
    return jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0))), row


def test_counts_by_hand():
    assert 8 * WIDTHS[-1] ** 2 + 58 * WIDTHS[-1] == TUNED["partial"]  # 7x7 kernels, MLP, norm, biases, layer scale
    assert 7 * BLOCKS + sum(a + b for a, b in zip(WIDTHS, (WIDTHS[0], *WIDTHS[:-1]), strict=True)) + WIDTHS[-1] == TUNED["bias"]
    assert 4 * 2 * (1 + 4) * BLOCKS == TUNED["lora"]
    assert 32 * WIDTHS[-1] + WIDTHS[-1] ** 2 == TUNED["ep"] == TUNED["toast_ep"] - TUNED["toast"]
    assert 2 * (BLOCKS + WIDTHS[0] + sum(WIDTHS)) == TUNED["ln"] and 2 * TUNED["bias"] == TUNED["ssf"]
    assert (2 * 8 + 2) * BLOCKS + 8 * sum(DEPTHS) == TUNED["adapter_plus"]
    assert sum(a * b for a, b in FEEDBACK) + WIDTHS[-1] == TUNED["toast"]
    assert sum(4 * (a + b) for a, b in FEEDBACK) + WIDTHS[-1] + WIDTHS[-1] ** 2 == TUNED["toast_lite"]


@pytest.mark.parametrize("name", NAMES)
def test_number_of_tuned_parameters(name):
    params, row = of_convnext_b(name)
    tuned, _ = trees.split(params, methods.tuned_mask(params, row))
    assert trees.count(without_statistics(tuned)) - HEAD == TUNED[name]
    assert trees.count(params["backbone"]) == TUNED["finetune"]


def test_lora_adapts_both_pointwise_kernels_of_every_block():
    params, _ = of_convnext_b("lora")
    parts = ["stages_0/blocks", "stages_1/blocks", "stages_2/blocks", "stages_3/blocks", "stages_3/last_0"]
    names = {f"backbone/{part}/{kernel}/{side}" for part in parts for kernel in ("pwconv1", "pwconv2") for side in "ab"}
    assert set(trees.flat(params["lora"])) == names


@pytest.mark.parametrize("stage", ["tune", "pretune"])
def test_fields_change_what_toast_tunes(stage):
    def tuned(**fields):
        config = fgvc.get_config("method=toast,backbone=convnext_b")
        config.update({"stage": stage, **fields})
        mask = methods.tuned_mask(params, methods.row(config, FAMILIES["convnext"].methods))
        return {path for path, is_tuned in trees.flat(mask).items() if is_tuned}

    params, _ = of_convnext_b("toast")
    feedback = {f"top_down/{name}_{i}" for name in ("back", "out") for i in range(4)}
    head = {"head/kernel", "head/bias"}
    assert tuned() == feedback | head | {"top_down/prior"}
    assert tuned(tune_transform=True) == feedback | head | {"top_down/prior", "top_down/transform"}
    if stage == "pretune":
        assert tuned(task_weight=0.0) == {f"top_down/back_{i}" for i in range(4)}


# Configs.


def test_config_of_a_convnext_has_the_fields_that_it_reads():
    config = base(name="x", method="toast", backbone="convnext_b_in1k")
    expected = {"family": "convnext", "size": "B", "weights": "weights/convnext_b_in1k.pth", "drop_path": 0.0}
    assert config.backbone.to_dict() == expected | {"dtype": "float32", "remat": False, "unroll": False}
    assert (config.variational_weight, fgvc.get_config().variational_weight) == (0.01, 0.1)
    assert pretune.get_config("backbone=convnext_t").variational_weight == 0.01
    for name in ("convnext_x", "convnext_b16", "convnext"):
        with pytest.raises(InputError, match=f"'{name}' is not known; .* or convnext_ . size .t, s, b, l, xl."):
            base(name="x", method="toast", backbone=name)


def test_network_of_the_config():
    config = fgvc.get_config("method=toast,backbone=convnext_b_in1k")
    config.backbone.dtype = "bfloat16"
    network, row = steered.build(config, 200)
    backbone = convnext.ConvNeXt(DEPTHS, WIDTHS, dtype=jax.numpy.bfloat16)
    top_down = ConvTopDown((3, *WIDTHS), SIDES, jax.numpy.bfloat16, steered=4)
    assert network == steered.Steered(backbone, steered.classifier(200), top_down=top_down)
    assert (row.tuned, row.frozen) == (methods.METHODS["toast"].tuned, methods.METHODS["toast"].frozen)
    config = fgvc.get_config("method=partial,backbone=convnext_b_in1k")
    config.tuned_blocks = 3
    assert steered.build(config, 200)[0].backbone.last_blocks == 3


def test_unknown_family_is_refused():
    config = fgvc.get_config("method=toast")
    config.backbone.family = "convnet"
    with pytest.raises(InputError, match="config.backbone.family is 'convnet'.*the nearest is 'convnext'"):
        steered.build(config, 200)


# Steps.


def two_steps(config, workdir):
    """The tuned and the frozen leaves before and after two steps, by path."""
    run, state = setup.prepare(config, workdir)
    read = lambda tree: trees.flat(parallel.fetch(trees.prune(tree)))  # noqa: E731
    before = read(state.tuned), read(run.frozen)
    data, size = run.train, config.data.image_size
    loader = batches.train_batches(data, batch_size=config.batch_size, epochs=1, seed=0, resize=config.data.resize, size=size)
    batch, placed = next(parallel.sharded(loader)), parallel.place(state)
    for _ in range(2):
        placed, metrics = run.step(placed, run.frozen, batch)
    assert all(np.isfinite(value) for value in parallel.fetch(metrics).values())
    return before, (read(placed.tuned), read(run.frozen))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "linear"]


@pytest.mark.parametrize("method", ["linear", *SLOW])
def test_tuned_leaves_move_and_frozen_ones_do_not(method, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(convnext, "LAYER_SCALE", 1.0)  # the real start makes steps in the blocks smaller than a float32 shows
    config = folder.get_config(f"method={method},backbone=convnext_b_in1k")
    config.update(tiny_config(image_folder, method, "convnext_t").copy_and_resolve_references())
    config.data.resize, config.data.image_size = 72, 64  # several places in the last map, for a probe's queries to choose from
    config.backbone.drop_path, config.optimizer.weight_decay = 0.1, 0.0  # what moves was moved by its gradient
    config.optimizer.lr, config.lora.alpha = 1.0, 100.0  # a delta's first factor moves by the square of its scale
    before, after = two_steps(config, tmp_path)
    assert [path for path, leaf in before[0].items() if not np.any(after[0][path] != leaf)] == []
    jax.tree.map(np.testing.assert_array_equal, after[1], before[1])


@pytest.mark.slow
@pytest.mark.parametrize("text", ["source=downstream", "source=downstream,labels=no"])
def test_pretuning_makes_steps(text, image_folder, tmp_path):
    config = pretune.get_config(f"{text},backbone=convnext_b_in1k")
    config.backbone.update({"size": "tiny", "weights": "random"})
    config.data.update({"root": str(image_folder), "image_size": 32, "resize": 36})
    config.batch_size, config.optimizer.weight_decay, config.warmup_epochs = 8, 0.0, 0
    config.head.start = "random"
    before, after = two_steps(config, tmp_path)
    assert [path for path, leaf in before[0].items() if not np.any(after[0][path] != leaf)] == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "toast_lite"])
def test_run_becomes_the_network_it_evaluated(method, image_folder, tmp_path):
    import json

    from configs import convert as convert_config
    from toast_jax.tasks import convert, evaluate

    config = tiny_config(image_folder, method, "convnext_t")
    config.epochs = 1
    result = loop.fit(config, tmp_path / "run")
    convert.run(convert_config.get_config(f"from={tmp_path}/run,to={tmp_path}/network.safetensors"), "unused")
    config.task, config.checkpoint = "evaluate", str(tmp_path / "network.safetensors")
    evaluate.run(config, str(tmp_path / "evaluated"))
    again = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)


# Pictures.


@pytest.mark.parametrize(("method", "panels"), [pytest.param("linear", 0, marks=pytest.mark.slow), ("toast", 2)])
def test_prediction_draws_the_selection_or_says_that_there_is_none(method, panels, image_folder, tmp_path, monkeypatch, caplog):
    config = tiny_config(image_folder, method, "convnext_t")
    network, row = steered.build(config, len(CLASSES))
    shapes = jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), shapes)
    saved = saved_run.SavedRun(config, CLASSES, 0, network, row, params)
    monkeypatch.setattr(saved_run, "load", lambda *_: saved)
    monkeypatch.setattr(logging.getLogger("toast_jax"), "propagate", True)
    predict.run(predict_config.get_config(f"run=x,images={image_folder / 'test'}"), str(tmp_path))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    pictures = sorted((tmp_path / "attention").glob("*.png"))
    assert len(pictures) == (len(found) if panels else 0) and found
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if panels:  # the image and the selection
        assert np.asarray(Image.open(pictures[0])).shape == (32, panels * 32 + 4, 3) and not told
    else:
        assert told == ["No pictures: a ConvNeXt tuned by linear has neither attention nor a selection to draw."]
