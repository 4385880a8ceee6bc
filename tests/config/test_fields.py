"""The tables of fields are complete and agree with the code that reads them."""

import json
import re
import subprocess
import sys

import pytest

from configs import alpaca, folder, vicuna
from tests import FIXTURES, ROOT
from tests.config.test_configs import CONFIGS
from toast_jax.config import backbone_names, field_table, run_fields, schema, task_fields
from toast_jax.data.images import sources
from toast_jax.data.images.segmentation import sets
from toast_jax.errors import InputError
from toast_jax.fields import TO_EVALUATE, TO_MOVE, TO_RESUME, flat_fields, nested
from toast_jax.model import methods, steered
from toast_jax.model.families import FAMILIES
from toast_jax.model.layers import dtypes
from toast_jax.model.segmentation import segmenter
from toast_jax.train import optim
from toast_jax.workdir import run_folder

TABLES = {
    "images": run_fields.IMAGES,
    "masks": run_fields.MASKS,
    "texts": run_fields.TEXTS,
    "sweep": task_fields.SWEEP,
    **task_fields.TASKS,
}
TABLES |= {name: {f"backbone.{field}": row for field, row in record.fields.items()} for name, record in FAMILIES.items()}
FIELDS = [pytest.param(name, field, id=f"{table}:{name}") for table, rows in TABLES.items() for name, field in rows.items()]
# These have no default.
EMPTY = ("data.splits.train", "rows")


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_default_is_allowed_and_a_meaning_is_one_short_phrase(name, field):
    assert name in EMPTY or field.allowed.refusal(field.default) == ""
    assert 0 < len(field.meaning) <= 100 and not field.meaning.endswith(".") and "|" not in field.meaning
    assert str(field.allowed) and "|" not in str(field.allowed)


def test_choices_that_are_written_out_are_those_of_the_code():
    """The tables import no JAX, so they repeat names from modules that do."""
    assert run_fields.IMAGES["optimizer.name"].allowed.options == tuple(optim.OPTIMIZERS)
    assert run_fields.IMAGES["optimizer.schedule"].allowed.options == tuple(optim.SCHEDULES)
    assert run_fields.IMAGES["head.start"].allowed.options == tuple(steered.HEAD_STARTS)
    assert run_fields.IMAGES["backbone.dtype"].allowed.options == tuple(dtypes.DTYPES)
    assert run_fields.IMAGES["data.format"].allowed.options == tuple(sources.READERS)
    assert run_fields.MASKS["data.format"].allowed.options == tuple(sets.READERS)
    assert run_fields.MASKS["segmentation.head"].allowed.options == tuple(segmenter.HEADS)
    assert tuple(methods.METHODS) == run_fields.METHODS and set(methods.LANGUAGE_METHODS) <= set(run_fields.METHODS)


@pytest.mark.parametrize("name", ["vit_b16_in1k", "vit_mini8", "convnext_t", *backbone_names.LLAMAS])
def test_names_of_backbones_give_the_fields_of_their_record(name):
    values = (backbone_names.of_text if name in backbone_names.LLAMAS else backbone_names.of_images)(name)
    record = FAMILIES[values["backbone.family"]]
    assert values["backbone.size"] in record.sizes
    assert values.get("variational_weight", run_fields.IMAGES["variational_weight"].default) == record.variational_weight
    for field, row in record.fields.items():
        value = values[f"backbone.{field}"]
        assert row.allowed.refusal(value) == "" and (value == row.default or field == "patch")


def test_the_page_is_what_the_tables_say():
    """Generated in a new process, without the small networks that the tests add."""
    text = subprocess.run(
        [sys.executable, "-m", "toast_jax.config.field_table"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    assert text == (ROOT / "docs/config.md").read_text(), "run python -m toast_jax.config.field_table > docs/config.md"


def test_the_page_has_every_field():
    text = field_table.page()
    for rows in TABLES.values():
        assert all(f"| `{name}` |" in text and field.meaning in text for name, field in rows.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_of_every_config_are_printed(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = module.get_config()
    lines = field_table.table_of(config).splitlines()
    assert lines[0].split() == ["config.FIELD", "value", "allowed", "meaning"] and max(map(len, lines)) <= 140
    sections = task_fields.SECTIONS.get(config.task, ())
    printed = {line.split()[0] for line in lines[1:] if not line.startswith(" ")}
    own = {field for field in flat_fields(config.to_dict()) if field.split(".")[0] not in sections}
    assert own | set(sections) <= printed


def test_fields_are_printed_on_the_command_line_without_a_device(tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/folder.py:method=lora"]
    command += ["--config.optimizer.lr=0.5", "--fields"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"JAX_PLATFORMS": "none", "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^optimizer\.lr +0\.5 +number, 0\.0 or more +peak learning rate$", done.stdout, re.M)
    assert re.search(r"^method +'lora' +linear, ep, finetune, ", done.stdout, re.M) and not list(tmp_path.iterdir())


# Fields that may change after a run was saved.


def saved(config, folder, without=(), **changes):
    values = flat_fields(config.to_dict())
    for name in without:
        del values[name]
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(nested(values | changes)))
    return folder


def refusal(check, folder, config):
    try:
        check(folder, config)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("get_config", [folder.get_config, vicuna.get_config])
def test_a_run_resumes_and_is_evaluated_with_other_values_of_free_fields_alone(get_config, tmp_path):
    config = get_config()
    for number, (name, field) in enumerate(schema.fields_of(config).items()):
        place = saved(config, tmp_path / str(number), **{name: "another"})
        answers = (refusal(check, place, config) for check in (run_folder.claim, run_folder.check_evaluates))
        for answer, free in zip(answers, ([TO_RESUME, TO_MOVE], [TO_RESUME, TO_MOVE, TO_EVALUATE]), strict=True):
            assert (answer == "") == (field.may_change in free), name
            assert not answer or f"holds a run of another config ({name} 'another' -> " in answer


def test_the_free_fields_are_these():
    resume = {
        "task",
        "resume",
        "profile",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "confusion",
        "save_predictions",
        "interpolation",
        "show",
        "data.workers",
        "data.verify",
    }
    splits = {"data.splits.train", "data.splits.val", "data.splits.test"}
    evaluate = {"batch_size", "epochs", "precision"}
    move = {"backbone.weights", "module", "top_down", "data.root", "data.image_dir", "data.class_names", "data.tokenizer"}
    images, fields = run_fields.IMAGES, run_fields.IMAGES | run_fields.TEXTS
    assert {name for name, field in images.items() if field.may_change == TO_EVALUATE} == evaluate | splits
    assert {name for name, field in fields.items() if field.may_change == TO_MOVE} == move | splits
    assert {name for name, field in fields.items() if field.may_change == TO_RESUME} == {*resume, "fsdp"}
    assert {name for name, field in fields.items() if field.may_change == TO_EVALUATE} == evaluate


@pytest.mark.parametrize(
    ("missing", "other"), [("ema", 0.9), ("optimizer.no_decay", ("x",)), ("augment.mixup", 0.5), ("backbone.pool", "mean")]
)
def test_a_field_that_a_saved_run_does_not_have_counts_as_its_default(missing, other, tmp_path):
    config = folder.get_config()
    place = saved(config, tmp_path, without=[missing])
    assert refusal(run_folder.check_evaluates, place, config) == ""
    config.update_from_flattened_dict({missing: other})
    text = refusal(run_folder.claim, place, config)
    assert f"holds a run of another config ({missing} " in text and f", set --config.{missing}=" in text


@pytest.mark.parametrize("name", ["folder", "alpaca"])
def test_the_config_of_a_run_of_the_first_version_is_the_same_today(name, tmp_path):
    """`saved_configs.json` was written when configs had no tables."""
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    values = json.loads((FIXTURES / "saved_configs.json").read_text())[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    backbone = {"folder": "vit_ti16", "alpaca": "stories15m"}[name]
    config = {"folder": folder, "alpaca": alpaca}[name].get_config(f"backbone={backbone}")
    if name == "folder":  # that version did not turn photographs
        config.data.exif_orientation = False
    run_folder.claim(tmp_path, config)
