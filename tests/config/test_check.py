"""Every mistake in a config is reported at once, in sentences, before any data is read."""

import dataclasses
import importlib
import re

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import demo, demo_language, fgvc, folder, generate, pretune, segment, vicuna, vtab
from tests.config.test_configs import CONFIGS
from tests.conftest import METHODS, tiny_config
from toast_jax import fields as rules
from toast_jax.config import schema
from toast_jax.config.check import check, check_fields
from toast_jax.config.task_fields import SECTIONS, TASKS
from toast_jax.devices import parallel
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.model import families
from toast_jax.model.backbones.llama import kinds as llama_kinds
from toast_jax.train import image_runs, setup

SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
FAMILIES = {"vit": folder.get_config, "convnext": lambda: folder.get_config("backbone=convnext_t"), "llama": vicuna.get_config}


def nested(flat):
    return ConfigDict(rules.nested(flat))


def refusal(config, by=check):
    """The sentences that refuse a config; none if it is accepted."""
    try:
        by(config)
    except InputError as error:
        first, *lines = str(error).split("\n  ")
        assert not lines or first == f"The config has {len(lines)} mistakes:"
        assert all(re.fullmatch(r"(?s)[Ac-zE-Z].*\.", line) for line in lines or [first])
        return lines or [first]
    return []


# Accepted configs.


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_accepted_as_it_is(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    runs = config.runs.values() if isinstance(config.get("runs"), ConfigDict) else [config]  # of a demo
    assert all(refusal(each, check if each.task == "train" else check_fields) == [] for each in [config, *runs])


@pytest.mark.parametrize("method", ["finetune", "partial", "bias"])
def test_a_method_that_changes_the_backbone_is_not_compared_with_it(method):
    config = folder.get_config(f"method={method}")
    config.stage, config.distillation_weight = "pretune", 1.0
    message = f"but method {method} changes the backbone that the loss compares with; set it to 0, or config.method to"
    assert any(message in sentence for sentence in refusal(config))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config_of", [folder, fgvc, vtab])
def test_every_method_is_accepted(config_of, method):
    assert refusal(config_of.get_config(f"method={method}")) == []


def test_other_ways_to_a_config_are_accepted():
    config = pretune.get_config("labels=no")
    assert refusal(config) == []
    config.head.tune = False  # these losses would not tune it
    assert refusal(config) == []
    config.variational_weight = 0.0  # the distillation loss is left
    assert refusal(config) == []
    assert refusal(generate.get_config("backbone=stories15m"), check_fields) == []


def test_a_chat_template_is_for_messages():
    config = vicuna.get_config()
    config.data.template = "chatml"
    message = (
        "config.data.template is chatml, but the prompts of data.format conversations are fixed; set --config.data.format="
    )
    assert any(message in sentence for sentence in refusal(config))
    config.data.format = "messages"
    assert not any("template" in sentence for sentence in refusal(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_fields(family):
    assert schema.of_family(family).keys() == flat_fields(FAMILIES[family]().to_dict()).keys()


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_a_task_are_its_fields(task):
    configs = (importlib.import_module(f"configs.{name}").get_config() for name in CONFIGS)
    config = next(config for config in configs if config.task == task)
    inner = SECTIONS.get(task, ())
    assert TASKS[task].keys() == {name for name in flat_fields(config.to_dict()) if name.split(".")[0] not in inner}


# Refused: a field by itself.


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "it has to be a whole number, 1 or more."),
        ("batch_size", 8.0, "it has to be a whole number, 1 or more."),
        ("batch_size", True, "it has to be a whole number, 1 or more."),
        ("batch_size", "8", "it has to be a whole number, 1 or more."),
        ("batch_size", 2**31, "numbers end at 2147483647 here."),
        ("optimizer.lr", float("nan"), "it has to be a number, 0.0 or more."),
        ("optimizer.lr", float("inf"), r"numbers end at 3.402823466e\+38 here."),
        ("optimizer.lr", -0.1, "it has to be a number, 0.0 or more."),
        ("ema", 1.0, "it has to be a number, 0.0 or more and less than 1.0."),
        ("augment.erasing", 1.5, "it has to be a number, 0.0 or more and 1.0 or less."),
        ("lora.alpha", 0, "it has to be a number, more than 0.0."),
        ("resume", 1, "it has to be True or False."),
        ("stage", "pretrain", r"it must be one of tune, pretune \(the nearest is 'pretune'\)."),
        ("method", "tost", r"it must be one of .*toast_ep \(the nearest is 'toast'\)."),
        ("precision", "TF32_TF32_F32", "it must be one of default, high, highest."),
        ("top_down", None, "it has to be text."),
        ("data.root", "a\0b", "it has to be text."),
        ("backbone.weights", "", "give text, such as 'weights/vit_b16_in1k.pth'."),
        ("data.splits.train", "", "give text, such as 'train'."),
        ("optimizer.no_decay", "bias", r"it has to be several values in brackets, as in \(1, 2\)."),
        ("optimizer.no_decay", ("(",), r"of these '\(' is refused: it has to be a regular expression \(missing \), .*\)."),
    ],
)
def test_a_field_is_refused_with_its_value_and_what_is_allowed(name, value, message):
    flat = flat_fields(folder.get_config().to_dict()) | {name: value}
    (sentence,) = refusal(nested(flat))
    assert re.fullmatch(re.escape(f"config.{name} is {value!r}; ") + message, sentence), sentence


def test_numbers_of_numpy_are_numbers():
    flat = flat_fields(folder.get_config().to_dict()) | {"batch_size": np.int64(16), "optimizer.lr": np.float32(0.1)}
    assert refusal(nested(flat)) == []


def test_unknown_and_missing_fields():
    flat = flat_fields(folder.get_config().to_dict())
    flat["optimizer.lrr"] = flat.pop("optimizer.lr")
    unknown, missing = refusal(nested(flat))
    assert unknown.startswith("The config has no field optimizer.lrr; the nearest are optimizer.lr, ")
    assert missing == "config.optimizer.lr is missing; start from a config of configs/, which has every field."
    (family,) = refusal(ConfigDict({"task": "train"}))
    assert family.startswith("config.backbone.family is None; it must be one of vit, convnext, llama")


def test_all_mistakes_are_told_at_once():
    config = folder.get_config()
    changes = {
        "epochs": 5,
        "warmup_epochs": 10,
        "batch_size": 0,
        "backbone.drop_path": 1.0,
        "data.resize": 100,
        "head.tune": False,
    }
    config.update_from_flattened_dict(changes)
    sentences = refusal(config)
    names = ["backbone.drop_path", "batch_size", "warmup_epochs", "head.tune"]
    assert [re.match(r"(?:config\.)?([\w.]+)", sentence)[1] for sentence in sentences[:4]] == names
    assert sentences[4].startswith("A crop of 224 pixels does not fit in images resized to 100") and len(sentences) == 5


def test_a_demo_is_refused_with_its_runs():
    config = demo.get_config()
    config.update({"seeds": (), "rows": ("linear", "tost")})
    empty, unknown = refusal(config, check_fields)
    assert empty == "config.seeds is (); give 1 or more values."
    assert unknown.startswith("config.rows names 'tost'; it has to be one of finetune, linear, lora")
    config.update({"seeds": (1,), "rows": ("linear",)})
    config.runs.toast.epochs = 0  # its row is not selected
    assert refusal(config, check_fields) == []
    config.runs.linear.batch_size = 12
    config.runs.linear.data.resize = 8
    batch, crop = refusal(config, check_fields)
    assert batch.startswith("config.runs.linear.batch_size is 12, which does not split over 8")
    assert crop.endswith("set --config.runs.linear.data.resize=64 or more.")
    config = demo_language.get_config()
    config.speaker.most, config.pretune.epochs = 0, 0
    epochs, most = refusal(config, check_fields)
    assert epochs.startswith("config.pretune.epochs is 0") and most.startswith("config.speaker.most is 0")


# Refused: fields that conflict.


def batch_of(size, near):
    return {"batch_size": size}, f"config.batch_size is {size}, which does not split over 8 devices; use .*{near}.$"


IMAGES = [
    (
        {"method": "ep", "head.start": "classifier"},
        "method ep reads tokens by a probe, which the backbone",
    ),
    (
        {"method": "ep", "probe.queries": 5},
        "probe.queries is 5 and .*; their product has to divide the width .* 768",
    ),
    (
        {"stage": "pretune", "method": "toast_ep", "distillation_weight": 1.0},
        "but method toast_ep has a probe, which labels alone train; set it to 0, or config.method to toast",
    ),
    ({"stage": "pretune", "method": "ep"}, "method ep tunes the head alone"),
    ({"method": "ep", "head.tune": False}, "no file has a head for the probe of method ep; set it to True"),
    ({"interpolation": 0.5, "method": "lora"}, "interpolation is 0.5, which is for the task evaluate; leave it at 1"),
    ({"interpolation": 0.5, "task": "evaluate", "method": "vpt"}, "method vpt starts from no network to go back to"),
    (
        {"interpolation": 0.5, "task": "evaluate", "method": "vpt", "top_down": "not_used.pth"},
        "method vpt starts from no network to go back to",
    ),
    (
        {"interpolation": 0.5, "task": "evaluate", "method": "lora", "checkpoint": "tuned.pth"},
        "config.checkpoint is a file that has only the end of the line",
    ),
    ({"warmup_epochs": 100}, "warmup_epochs is 100 and config.epochs 100: the run would never leave its warm-up"),
    ({"checkpoint": "x.pth"}, "config.checkpoint is for the task evaluate"),
    ({"optimizer.lr_scale": 10.0}, "lr_scale is 10.0, but config.optimizer.lr_scaled names no parameters; name them, as in"),
    batch_of(12, "such as 8 or 16"),
    batch_of(3, "such as 8"),
    batch_of(20, "such as 16 or 24"),
    ({"stage": "pretune", "task_weight": 0.0, "variational_weight": 0.0}, "are both 0; one of them has to be more"),
    (
        {"stage": "pretune", "method": "linear"},
        "method linear tunes the head alone, which pre-tuning does not save; use",
    ),
    ({"stage": "pretune", "method": "lora", "task_weight": 0.0}, "method lora has no top-down module for it; set"),
    ({"method": "linear", "module": "a.pth"}, "config.module names a file, but method linear tunes the head alone"),
    ({"module": "a.pth", "top_down": "b.pth"}, "config.module and config.top_down both name a file to start from"),
    ({"stage": "pretune", "task_weight": 0.0, "tune_transform": True}, "only the cross-entropy trains it; set a"),
    ({"method": "lora", "tune_transform": True}, "but method lora has no transform; set it to False"),
    (
        {"method": "toast", "tune_back": True},
        "method toast of a ViT has no frozen layers A_l that it would tune; set it to False",
    ),
    ({"method": "linear", "head.tune": False, "head.start": "classifier"}, "method linear tunes nothing else; set it to True"),
    ({"head.tune": False}, "leaves an untrained head; set --config.head.start=classifier"),
    ({"head.start": "classifier", "backbone.weights": "random"}, "a random backbone has none; name a --config.backbone"),
    ({"data.image_size": 200}, "config.data.image_size 200 is no multiple of the patch size 16; use 192, for example"),
    ({"data.image_size": 4}, "image_size 4 is no multiple of the patch size 16; use 16, for example"),
    ({"method": "partial", "tuned_blocks": 13}, "config.tuned_blocks is 13; this network has 1 to 12 blocks to tune"),
    ({"method": "lora", "steered_blocks": 4}, "config.steered_blocks is 4, but method lora steers nothing; set it to 0, or"),
    ({"method": "toast", "steered_blocks": 13}, "config.steered_blocks is 13; this network has 12 blocks to steer"),
    ({"data.resize": 223}, "crop of 224 pixels does not fit in images resized to 223; set --config.data.resize=224"),
    (
        {"stage": "pretune", "distillation_weight": 1.0, "augment.degradation": 0.0},
        "config.distillation_weight is 1.0, but config.augment.degradation is 0, so both looks would see the same image",
    ),
    (
        {"stage": "pretune", "data.labels": False, "confusion": False},
        "leaves the variational loss alone; set --config.task_weight=0",
    ),
    ({"stage": "pretune", "data.labels": False, "task_weight": 0.0}, "images without labels have no classes to confuse; set"),
    ({"stage": "pretune", "save_predictions": True}, "config.save_predictions is True, but pre-tuning keeps no logits; set it"),
    ({"data.labels": False}, "config.data.labels is False, but tuning needs labels"),
    ({"batch_size": 8, "augment.mixup": 0.8}, "Each device gets 1 of 8 images.*mix pairs of them"),
    ({"batch_size": 8, "augment.cutmix": 0.8}, "Each device gets 1 of 8 images.*mix pairs of them"),
]
CONVNEXT = [
    ({"method": "vpt"}, "Method vpt adds prompt tokens, which a ConvNeXt has no place for; use another"),
    ({"data.image_size": 200}, "config.data.image_size 200 is no multiple of 32, as a ConvNeXt needs; use 192, for example"),
    ({"method": "toast", "steered_blocks": 5}, "this network has 4 blocks to steer, stages in a ConvNeXt"),
    ({"method": "partial", "tuned_blocks": 4}, "this network has 1 to 3 blocks to tune, of a ConvNeXt those of its last stage"),
]
TEXT = [
    ({"data.length": 2049}, "config.data.length is 2049, but llama1_7b reads 2048 tokens; set --config.data.length=2048"),
    (
        {"backbone.size": "custom", "backbone.width": 64},
        "size is custom, which has no depth; set --config.backbone.depth and its other numbers, or name a folder with",
    ),
    ({"backbone.num_kv_heads": 3}, "gives 32 heads of 128 channels, 3 of them for keys and values; a head has an even"),
    ({"backbone.head_width": 5}, "gives 32 heads of 5 channels, 32 of them"),
    ({"backbone.width": 31}, "gives 32 heads of 0 channels, 32 of them"),
    ({"backbone.rope_scaling": (8.0, 4.0, 1.0, 8192)}, "it has to be factor, low, high and context, with low less than high"),
    ({"batch_size": 24, "microbatches": 2}, "config.microbatches is 2, which does not divide the 3 sequences of"),
    (
        {"stage": "pretune", "method": "toast", "distillation_weight": 1.0},
        "weight is 1.0, but only images can be degraded for it",
    ),
    ({"fsdp": 3}, "config.fsdp is 3, which does not divide the 8 devices of a host"),
    ({"fsdp": 16}, "config.fsdp is 16, which does not divide the 8 devices of a host"),
    ({"data.splits.val": "x.json"}, "config.data.splits.val and config.data.held_out both give a val split"),
    ({"steered_blocks": 33}, "config.steered_blocks is 33; this network has 32 blocks to steer"),
    ({"method": "vpt"}, "config.method is 'vpt'; it must be one of finetune, lora, toast, toast_lite"),
    ({"tune_transform": True, "method": "lora"}, "but method lora has no transform; set it to False"),
    ({"tune_back": True, "method": "lora"}, "method lora of a LLaMA has no frozen layers A_l that it would tune"),
    ({"tune_back": True, "method": "toast_lite"}, "method toast_lite of a LLaMA has no frozen layers A_l that it would tune"),
    (
        {"optimizer.schedule": "epoch"},
        "warmup_epochs is 0.06, but config.optimizer.schedule=epoch has one learning rate an epoch, and 0 in the first of",
    ),
]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [(family, *case) for family, cases in zip(FAMILIES, (IMAGES, CONVNEXT, TEXT), strict=True) for case in cases],
)
def test_a_contradiction_is_told(family, changes, message):
    config = FAMILIES[family]()
    config.update_from_flattened_dict(changes)
    (sentence,) = refusal(config)
    assert re.search(message, sentence), sentence


@pytest.mark.parametrize(
    ("configs", "changes"),
    [
        (folder, {"method": "toast", "tune_back": True}),
        (segment, {"head.tune": False}),
        (vicuna, {"optimizer.schedule": "epoch"}),
    ],
)
def test_what_only_training_refuses_lets_runs_of_earlier_versions_be_evaluated(configs, changes):
    """The fields may not change, as they decided how the run was tuned, or were ignored."""
    config = configs.get_config()
    config.update_from_flattened_dict(changes)
    assert len(refusal(config)) == 1
    config.task = "evaluate"
    assert refusal(config) == []


def test_a_group_takes_devices_of_a_host_or_all_of_several_hosts(monkeypatch):
    config = FAMILIES["llama"]()
    config.method, config.batch_size = "finetune", 24
    monkeypatch.setattr(jax, "device_count", lambda: 24)
    for size, is_valid in ((2, True), (8, True), (24, True), (12, False), (16, False), (48, False)):
        config.fsdp = size
        assert (refusal(config) == []) is is_valid, size


def test_a_contradiction_with_a_field_that_is_wrong_is_not_told():
    config = folder.get_config()
    config.update_from_flattened_dict({"data.resize": 0, "epochs": 0})
    assert [sentence.split()[0] for sentence in refusal(config)] == ["config.data.resize", "config.epochs"]
    config = segment.get_config()
    config.data.crop = (512,)
    assert [sentence.split()[0] for sentence in refusal(config)] == ["config.data.crop"]


# A family of backbones that the package does not have.


@pytest.fixture
def toy(monkeypatch):
    """A config whose family is known only by its record."""
    like = families.FAMILIES["vit"]
    record = dataclasses.replace(
        like,
        title="Toy",
        sizes={"S": like.sizes["S"]},
        methods={name: like.methods[name] for name in ("linear", "vpt", "partial")},
        fields={"groups": rules.Field(3, rules.whole(1, 9), "groups of channels")},
        refused={"lora": "adds a low-rank delta, which a Toy has no kernels for"},
        image_multiple=lambda backbone: backbone.groups,
        tunable_blocks=lambda size: 2,
    )
    monkeypatch.setitem(families.FAMILIES, "toy", record)
    config = folder.get_config("backbone=convnext_s,method=vpt")
    config.backbone.update({"family": "toy", "groups": 4})
    return config


def test_a_family_needs_only_its_record(toy):
    assert refusal(toy) == []
    toy.backbone.groups = 10
    assert refusal(toy) == ["config.backbone.groups is 10; it has to be a whole number, 1 or more and 9 or less."]
    del toy.backbone["groups"]
    assert [message.partition(";")[0] for message in refusal(toy)] == ["config.backbone.groups is missing"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "toast"}, "config.method is 'toast'; it must be one of linear, partial, vpt, lora."),
        (
            {"method": "lora"},
            "Method lora adds a low-rank delta, which a Toy has no kernels for; use another --config.method, or a ViT, or a "
            "ConvNeXt.",
        ),
        ({"backbone.size": "B"}, "config.backbone.size is 'B'; it must be one of S."),
        ({"backbone.groups": 5}, "config.data.image_size 224 is no multiple of 5, as a Toy needs; use 225, for example."),
        ({"method": "partial", "tuned_blocks": 3}, "config.tuned_blocks is 3; this network has 1 to 2 blocks to tune"),
        ({"backbone.family": "tay"}, "config.backbone.family is 'tay'; it must be one of vit, convnext, llama, toy (the"),
    ],
)
def test_a_record_says_what_its_family_refuses(toy, changes, message):
    toy.update_from_flattened_dict(changes)
    (sentence,) = refusal(toy)
    assert sentence.startswith(message)


# Random configs.


def inside(rule):
    """Values that a rule allows."""
    match rule:
        case rules.Number(whole=True):
            return st.integers(int(max(rule.least, -rule.largest)), int(min(rule.most, rule.largest)))
        case rules.Number():
            ends = max(rule.least, rule.above, -rule.largest), min(rule.most, rule.below, rule.largest)
            open_ends = {"exclude_min": rule.above > rule.least, "exclude_max": rule.below < rule.most}
            return st.floats(*ends, **open_ends, allow_subnormal=False)
        case rules.Choice():
            return st.sampled_from(sorted(rule.options))
        case rules.Flag():
            return st.booleans()
        case rules.Text():
            return st.text(st.characters(exclude_characters="\0"), min_size=bool(rule.example), max_size=8)
        case rules.Regex():
            return st.sampled_from(["head/bias", ".*/scale", "(a|b)+"])
        case rules.Several():
            return st.lists(inside(rule.of), min_size=rule.least, max_size=3).map(tuple)
        case llama_kinds.Scaling():
            low, *others = [st.floats(*ends) for ends in ((0.5, 2.0), (1.0, 64.0), (2.5, 8.0))]
            return st.one_of(st.just(()), st.tuples(others[0], low, others[1], st.integers(1, 8192)))
        case rules.PerChannel():
            return st.tuples(*(st.tuples(*[st.floats(low, 1.0)] * 3) for low in (0.0, 0.125)))


def outside(rule):
    """Values that a rule refuses."""
    others = [st.none(), st.just({1}), st.binary(max_size=3)]
    match rule:
        case rules.Number():
            others += [st.text(max_size=3), st.booleans(), st.just(float("nan")), st.just(float("inf")), st.just(10**400)]
            kind = st.integers() if rule.whole else st.floats()
            others += [kind.filter(rule.refusal), st.floats().filter(rule.refusal)]
        case rules.Choice():
            others += [st.text(max_size=9).filter(rule.refusal), st.integers()]
        case rules.Flag():
            others += [st.integers(), st.text(max_size=3)]
        case rules.Text():
            others += [st.integers(), st.just("\0")]
        case rules.Regex():
            others += [st.sampled_from(["(", "[a", "*"])]
        case rules.Several():
            others += [st.text(max_size=3), outside(rule.of).map(lambda value: (value,))]
        case llama_kinds.Scaling():
            others += [st.sampled_from([(8.0,), (8.0, 4.0, 1.0, 8192), (8.0, 1.0, 4.0, 0), (8.0, 1.0, 4.0, 8192, 1), 8.0, "a"])]
        case rules.PerChannel():
            rows = ((0.5, 0.5, 0.5), (0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.5, "a"), 0.5)
            others += [st.sampled_from([(rows[0], row) for row in rows[1:]] + [(rows[1], rows[0]), rows[:1], (rows[0],) * 3])]
    return st.one_of(others)


@pytest.mark.parametrize("family, reads", [*((name, "") for name in FAMILIES), ("vit", "masks"), ("convnext", "masks")])
def test_any_config_is_accepted_or_refused_in_sentences(family, reads):
    rows = {name: field.allowed for name, field in schema.of_family(family, reads).items()}
    sound, wrong = st.fixed_dictionaries({n: inside(r) for n, r in rows.items()}), {n: outside(r) for n, r in rows.items()}
    able = {name: rule for name, rule in wrong.items() if name != "backbone.family"}
    fields = st.lists(st.sampled_from(sorted(able)), max_size=4, unique=True)

    @hypothesis.settings(max_examples=150, **SETTINGS)
    @hypothesis.given(sound, fields, st.data())
    def accepted_or_refused(flat, names, data):
        config = nested(flat | {"backbone.family": family} | {name: data.draw(able[name]) for name in names})
        sentences = refusal(config)
        assert all(any(sentence.startswith(f"config.{name} is ") for sentence in sentences) for name in names)
        if not (names or sentences or reads):
            setup.steered.build(config, 3)

    accepted_or_refused()


SMALL = {
    "batch_size": st.sampled_from([8, 16, 24]),
    "epochs": st.integers(1, 3),
    "warmup_epochs": st.integers(0, 2),
    "optimizer.lr": st.just(0.0) | st.floats(1e-20, 1e30),  # less would be 0 in float32
    "backbone.patch": st.just(8),
    "data.image_size": st.sampled_from([8, 16, 24]),
    "data.resize": st.integers(24, 30),
    "prompts.num": st.integers(1, 3),
    "lora.rank": st.integers(1, 4),
    "tuned_blocks": st.integers(1, 3),
    "augment.randaugment_ops": st.integers(0, 2),
}
DRAWN = ("method", "stage", "seed", "ema", "skip_nonfinite", "tune_transform", "keep_known", "log_every")
DRAWN += (
    "task_weight",
    "variational_weight",
    "distillation_weight",
    "head.start",
    "head.tune",
    "backbone.drop_path",
    "backbone.pool",
    "backbone.dtype",
    "lora.alpha",
)
DRAWN += ("prompts.deep", "prompts.dropout", "data.labels", "data.skip_corrupt", "backbone.remat", "backbone.unroll")
DRAWN += tuple(
    name
    for name in schema.of_family("vit")
    if name.startswith(("augment.", "optimizer.")) and "no_decay" not in name and "lr_scale" not in name
)


@pytest.mark.slow
def test_what_is_accepted_makes_a_step(image_folder, tmp_path_factory):
    rows, made = schema.of_family("vit"), []
    drawn = {name: inside(rows[name].allowed) for name in DRAWN} | SMALL

    @hypothesis.settings(max_examples=60, **SETTINGS)
    @hypothesis.given(st.fixed_dictionaries(drawn))
    def makes_a_step(fields):
        config = nested(flat_fields(tiny_config(image_folder, "toast").to_dict()) | fields)
        hypothesis.assume(not refusal(config))
        run, state = setup.prepare(config, tmp_path_factory.mktemp("run"))
        batch = next(run.devices.sharded(image_runs.train_batches(config, run.train, 0)))
        state, numbers = run.step(run.devices.place(state), run.frozen, batch)
        assert int(state.step) == 1 and np.shape(numbers["loss"]) == ()
        made.append(parallel.fetch(numbers))
        jax.clear_caches()  # XLA crashes in processes that hold hundreds of programs

    makes_a_step()
    assert len(made) >= 10
