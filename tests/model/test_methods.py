"""Rows of the method table: how much each tunes, and that every parameter has one cell."""

import functools
import re

import jax
import numpy as np
import pytest

from configs import fgvc
from tests.conftest import METHODS
from toast_jax import trees
from toast_jax.errors import InputError
from toast_jax.model import methods, steered
from toast_jax.model.layers.batch_norm import without_statistics
from toast_jax.model.methods import Method, tuned_mask

CLASSES = 200
D, L, PATCHES = 768, 12, 196
HEAD = CLASSES * (D + 1)
BLOCK = 12 * D**2 + 13 * D  # qkv, projection and MLP, their biases, two LayerNorms
VIT_B16 = (3 * 16**2 + 1) * D + D + (1 + PATCHES) * D + L * BLOCK + 2 * D
BIASES = D + L * (D + 3 * D + D + D + 4 * D + D) + D  # patches; norm1, qkv, proj, norm2, fc1, fc2 of each block; norm
# Of ViT-B/16 at 224 pixels, outside the head: the parameters created, and those tuned.
COUNTS = {
    "linear": (VIT_B16, 0),
    "finetune": (VIT_B16, 85_798_656),
    "partial": (VIT_B16, 7_087_872),
    "bias": (VIT_B16, 102_912),
    "ln": (VIT_B16, 38_400),
    "ssf": (VIT_B16 + 205_824, 205_824),
    "adapter_plus": (VIT_B16 + 165_984, 165_984),
    "ep": (VIT_B16 + 614_400, 614_400),
    "toast_ep": (VIT_B16 + (2 * L + 1) * D**2 + D + 614_400, 14_156_544 + 614_400),
    "vpt": (VIT_B16 + 921_600, 921_600),
    "lora": (VIT_B16 + 147_456, 147_456),
    "toast": (VIT_B16 + (2 * L + 1) * D**2 + D, 14_156_544),
    "toast_lite": (VIT_B16 + (2 * L + 1) * D**2 + D + 2 * L * 2 * 4 * D, 738_048),
}


def configured(method, **fields):
    config = fgvc.get_config(f"dataset=cub,method={method},backbone=vit_b16_in1k")
    config.update(fields)
    return config


def created(config):
    network, method = steered.build(config, CLASSES)
    return jax.eval_shape(lambda: steered.init(network, method, jax.random.key(0))), method


def count(params):
    return trees.count(without_statistics(params))


@functools.cache
def of_vit_b16(method):
    return created(configured(method))


def tuned_outside_head(params, method):
    return count(trees.split(params, tuned_mask(params, method))[0]) - HEAD


def test_counts_by_hand():
    assert (VIT_B16, BLOCK, BIASES) == (COUNTS["finetune"][1], COUNTS["partial"][1], COUNTS["bias"][1])
    assert 2 * L * D**2 + D == COUNTS["toast"][1]
    assert 2 * L * 4 * (D + D) + D + D**2 == COUNTS["toast_lite"][1]
    assert 32 * D + D**2 == COUNTS["ep"][1]
    assert (2 * L + 1) * 2 * D == COUNTS["ln"][1]
    assert 2 * (D + L * (D + 3 * D + D + D + 4 * D + D) + D) == COUNTS["ssf"][1]
    assert L * (8 * (2 * D + 1) + 2 * D) == COUNTS["adapter_plus"][1]
    assert L * 4 * (D + 3 * D) == COUNTS["lora"][1]
    assert L * 100 * D == COUNTS["vpt"][1]


@pytest.mark.parametrize("name", METHODS)
def test_number_of_parameters(name):
    params, method = of_vit_b16(name)
    assert (count(params) - HEAD, tuned_outside_head(params, method)) == COUNTS[name]


def test_partial_tunes_as_many_blocks_as_the_config_says():
    params, method = created(configured("partial", tuned_blocks=2))
    assert tuned_outside_head(params, method) == 2 * BLOCK
    tuned, _ = trees.split(params, tuned_mask(params, method))
    assert set(trees.prune(tuned)["backbone"]) == {"last_0", "last_1"}


def test_shallow_prompts_tune_one_block_of_prompts():
    config = configured("vpt")
    config.prompts.update({"deep": False, "num": 50})
    assert tuned_outside_head(*created(config)) == 50 * D


def test_rank_of_the_config_is_the_rank_of_the_deltas():
    config = configured("lora")
    config.lora.rank = 8
    assert tuned_outside_head(*created(config)) == 2 * COUNTS["lora"][1]


def test_the_tests_know_every_row():
    assert set(methods.METHODS) == set(METHODS) == set(COUNTS)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_covers_every_parameter_once(name):
    params, method = of_vit_b16(name)
    mask = trees.flat(tuned_mask(params, method))
    assert list(mask) == list(trees.flat(params))
    for path, tuned in mask.items():
        cells = [(regex, True) for regex in method.tuned] + [(regex, False) for regex in method.frozen]
        assert [cell for regex, cell in cells if re.fullmatch(regex, path)] == [tuned]
    assert mask["head/kernel"] and mask["head/bias"]


PROBE = ("probe/queries", "probe/values", "probe/norm/running_mean", "probe/norm/running_var")


@pytest.mark.parametrize(
    ("name", "tuned"),
    [
        ("linear", ()),
        ("ep", PROBE),
        ("vpt", ("prompts/tokens",)),
        ("toast", ("top_down/back", "top_down/out", "top_down/prior")),
        ("toast_ep", ("top_down/back", "top_down/out", "top_down/prior", *PROBE)),
        (
            "toast_lite",
            ("top_down/prior", "top_down/transform", *(f"lora/top_down/{k}/{s}" for k in ("back", "out") for s in "ab")),
        ),
    ],
)
def test_what_a_row_tunes(name, tuned):
    params, method = of_vit_b16(name)
    mask = trees.flat(tuned_mask(params, method))
    assert {path for path, leaf in mask.items() if leaf} == {"head/kernel", "head/bias", *tuned}


def test_bias_tunes_biases_alone():
    params, method = of_vit_b16("bias")
    mask = trees.flat(tuned_mask(params, method))
    assert {path.split("/")[-1] for path, tuned in mask.items() if tuned and not path.startswith("head")} == {"bias"}
    assert not any(path.endswith("bias") for path, tuned in mask.items() if not tuned)


def test_ln_tunes_norms_alone():
    params, method = of_vit_b16("ln")
    mask = trees.flat(tuned_mask(params, method))
    tuned = {path.removeprefix("backbone/") for path, leaf in mask.items() if leaf and not path.startswith("head")}
    norms = {f"{block}/{norm}" for block in ("blocks", "last_0") for norm in ("norm1", "norm2")} | {"norm"}
    assert tuned == {f"{norm}/{name}" for norm in norms for name in ("scale", "bias")}


PARAMS = {"head": {"kernel": np.zeros((2, 3))}, "backbone": {"norm": np.zeros(2), "kernel": np.zeros((2, 2))}}


@pytest.mark.parametrize(
    ("tuned", "frozen", "message"),
    [
        (("head/.*", "lora/.*"), ("backbone/.*",), r"match no parameter: lora/\.\*; parameters: head/kernel"),
        (("head/.*",), ("backbone/.*", "prompts/.*"), r"match no parameter: prompts/\.\*;"),
        (("head/.*",), ("backbone/norm",), "cells covers these parameters: backbone/kernel"),
        (("head/.*", "backbone/k.*"), ("backbone/.*",), r"Several regexes .* parameters: backbone/kernel\.$"),
        (("head/.*", ".*/kernel"), ("backbone/norm",), r"Several regexes .* parameters: head/kernel\.$"),
        (("head",), ("backbone/.*",), "match no parameter: head;"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_by_name(tuned, frozen, message):
    with pytest.raises(InputError, match=message):
        tuned_mask(PARAMS, Method("", tuned=tuned, frozen=frozen))


def test_long_lists_of_names_are_cut():
    params = {"head": {f"w{i:02}": np.zeros(1) for i in range(15)}, "rest": np.zeros(1)}
    with pytest.raises(InputError, match=r"parameters: head/w00, .*head/w11 and 3 more\.$"):
        tuned_mask(params, Method("", tuned=("rest",), frozen=()))


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_the_table_add_up(name):
    params, method = of_vit_b16(name)
    header, *rows, totals = methods.table(params, method).splitlines()
    assert header.split()[:2] == ["arrays", "parameters"]
    cells = [row.split(maxsplit=3) for row in rows]
    assert [cell[3] for cell in cells] == [*method.tuned, *method.frozen]
    counts = {kind: sum(int(cell[2].replace(",", "")) for cell in cells if cell[0] == kind) for kind in ("tuned", "frozen")}
    assert sum(int(cell[1]) for cell in cells) == len(jax.tree.leaves(without_statistics(params)))
    everything, outside = COUNTS[name][0] + HEAD, COUNTS[name][1]
    assert counts == {"tuned": outside + HEAD, "frozen": everything - outside - HEAD}
    share = f"{(outside + HEAD) / everything:.2%}"
    tuned = f"{outside + HEAD:,} tuned ({share}), {outside:,} of them outside the head"
    assert totals == f"total {everything:,} parameters, {tuned}"


def tuned_by(config):
    params, method = created(config)
    mask = trees.flat(tuned_mask(params, method))
    text = methods.table(params, method)
    head = HEAD if mask["head/kernel"] else 0
    number = count(trees.split(params, tuned_mask(params, method))[0])
    assert f"{number:,} tuned" in text and f"{number - head:,} of them outside the head" in text
    return {path for path, tuned in mask.items() if tuned}


FEEDBACK = {"top_down/back", "top_down/out", "top_down/prior"}
CLASSIFIER = {"head/kernel", "head/bias"}


@pytest.mark.parametrize("stage", ["tune", "pretune"])
def test_fields_change_what_toast_tunes(stage):
    assert tuned_by(configured("toast", stage=stage)) == FEEDBACK | CLASSIFIER
    assert tuned_by(configured("toast", stage=stage, tune_transform=True)) == FEEDBACK | CLASSIFIER | {"top_down/transform"}
    frozen_head = configured("toast", stage=stage, head={"start": "classifier", "tune": False})
    assert tuned_by(frozen_head) == FEEDBACK


def test_tuning_back_adds_nothing_to_methods_that_reach_it_anyway():
    for method in ("toast", "toast_lite"):
        assert tuned_by(configured(method, tune_back=True)) == tuned_by(configured(method))


def test_variational_loss_alone_tunes_what_it_trains():
    assert tuned_by(configured("toast", stage="pretune", task_weight=0.0)) == {"top_down/back"}


def test_distillation_tunes_the_whole_module_but_not_the_head():
    fields = {"stage": "pretune", "task_weight": 0.0, "distillation_weight": 1.0}
    assert tuned_by(configured("toast", **fields)) == FEEDBACK
    assert tuned_by(configured("toast", **fields, tune_transform=True)) == FEEDBACK | {"top_down/transform"}


def test_toast_lite_tunes_its_transform_anyway():
    lite = tuned_by(configured("toast_lite"))
    assert tuned_by(configured("toast_lite", tune_transform=True)) == lite and "top_down/transform" in lite
