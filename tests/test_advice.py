"""Advice in messages: each field, flag, command and file that a message names exists, in every task that can raise it.

Who can raise a message is read from the source: a task reaches all that its `run` names, and all that those functions name. A
block `with errors.renaming(...)` renames the fields of what is reached from within it.
"""

import ast
import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import importlib.util
import re
import tomllib

import pytest

from tests import ROOT
from toast_jax import cli, fields
from toast_jax.config import config_files
from toast_jax.config.run_fields import IMAGES, MASKS, TEXTS
from toast_jax.config.task_fields import TASKS
from toast_jax.errors import InputError
from toast_jax.model.families import FAMILIES
from toast_jax.tables import plan

HOLE = "*"  # stands for what an f-string or %s fills in
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "toast_jax").rglob("*.py"))
    if path.name != "__init__.py"
}
COMMAND = re.compile(r"--config=(?:configs/)?([\w*]+)(?:\.py)?(:[^\s`;]*)?((?: --config\.[^\s`;]+)*)")
FIELD = re.compile(r"(?<![\w./*-])(--)?config\.(?!json\b)(\w+(?:\.(?:\w+|\*))*)")
FLAG = re.compile(r"(?<![\w-])--(?!config[.=])([a-z]\w+)")
QUOTED = re.compile(r"`((?:tfds|pip) [^`]*)`")
# Fields that a message may mention, without advice, in tasks that read a run: its config has them.
SAVED = ("predict", "visualize", "attention_metrics", "corruptions", "convert", "demo")
SAVED += ("generate", "score", "relevance", "demo_language", "demo_segment")
# What a run that has trained cannot have wrong, so that no task that only reads its data meets the message.
SETTLED = {"data.labels", "data.resize", "data.name", "data.tokenizer", "task_weight", "head.start", "resume", "data.template"}
SETTLED |= {"backbone.vocabulary", "data.held_out", "data.too_long"}
# What tasks that read one kind of data do not reach.
OF_TEXT = ("toast_jax.data.text.*", "toast_jax.train.text_runs.*", "toast_jax.weights.llama_files.*", "*._OF_TEXT")
OF_IMAGES = (
    *("toast_jax.data.images.*", "toast_jax.train.image_runs.*", "toast_jax.weights.pretrained.*", "*._OF_IMAGES"),
    *("toast_jax.model.backbones.vit.*", "toast_jax.model.backbones.convnext.*", "toast_jax.model.steered.build"),
)
# What a run of segmentation on scenes does not reach.
OF_CLASSES = (
    *(
        f"toast_jax.data.images.{name}.*"
        for name in ("image_files", "sources", "few_shot", "labels", "verify", "vtab", "batches")
    ),
    *("toast_jax.train.image_runs.*", "toast_jax.weights.pretrained.*", "*._OF_IMAGES", "*._OF_EPOCHS", "*._OF_RUNS"),
    *("toast_jax.data.images.segmentation.masks.*", "toast_jax.data.images.synthetic_scenes.read"),
)
OF_MASKS = ("toast_jax.*.segmentation.*", "*._OF_MASKS", "*._AS_FILES")
NOT_REACHED = {
    **dict.fromkeys(("predict", "attention_metrics", "corruptions", "demo"), (*OF_TEXT, *OF_MASKS)),
    "visualize": (*OF_TEXT, "*._AS_FILES"),
    "sweep": OF_TEXT,
    "demo_segment": (*OF_TEXT, *OF_CLASSES),
    **dict.fromkeys(("generate", "score", "relevance", "demo_language"), (*OF_IMAGES, *OF_MASKS)),
    "convert": OF_MASKS,
}
# From a part to another that it names but does not call, or whose messages it replaces.
CUT = (
    ("toast_jax.config.run_fields", "*", "toast_jax.data.*"),  # the names of readers and formats
    ("toast_jax.config.schema", "*", "toast_jax.model.families.FAMILIES"),
    ("toast_jax.config.check", "*", "toast_jax.model.*"),
    ("toast_jax.tables.*", "*", "toast_jax.model.methods.METHODS"),
    ("toast_jax.tables.costs", "*", "toast_jax.model.steered.*"),  # of configs that have trained
    ("toast_jax.tables.few_shot_table", "*", "*.saved_run.with_defaults"),
    ("toast_jax.analysis.views", "Views", "toast_jax.data.images.*"),  # faults without their remedies
    ("toast_jax.analysis.views", "stream", "*.pixels.decode_example"),
    ("toast_jax.data.images.segmentation.masks", "MaskedImages", "*.pixels.decode"),  # faults without their remedies
    ("toast_jax.tasks.visualize", "_with_masks", "*.pixels.decode_example"),
    ("toast_jax.data.images.batches", "*", "*.pixels.decode_example"),  # after Views, or `verify`, which the tasks reach too
    ("toast_jax.data.images.vtab.records", "*", "*.pixels.decode"),  # faults without their remedies
    ("toast_jax.data.images.verify", "*", "*.pixels.decode_example"),  # `verify` has a message of its own
    ("toast_jax.data.images.selected", "*", "*.verify.verify"),  # which leaves out what cannot be decoded
    ("toast_jax.config.check", "check_fields", "*._mistakes_in_sections"),  # tests/config/test_check.py
    ("toast_jax.config.schema", "fields_of", "*.of_run"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A function, class or constant of a module: its messages, and what it names, with the renaming around that."""

    messages: tuple[str, ...]
    names: frozenset[tuple[str, str, str]]


def text_of(node):
    """A string of the source with holes; "" for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-\d]*[sdrgf]", HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) if isinstance(value, ast.Constant) else HOLE for value in node.values)
    return ""


def imported(tree, module):
    """What each name of a module stands for: (module, name), and (module, "") for a module."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("toast_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = (inner, "") if inner in MODULES else (node.module, alias.name)
    own = {}
    for node in tree.body:
        for name in defined(node):
            own[name] = (module, name)
    return names | own


def defined(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def part_of(node, meanings):
    messages, names = [], set()
    if isinstance(node, ast.FunctionDef):  # its variables hide what the module calls so
        own = {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        own |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        meanings = {name: meaning for name, meaning in meanings.items() if name not in own}

    def visit(node, renaming):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("renaming"):
                    renaming = ast.unparse(call)
        if text := text_of(node):
            messages.append(text)
        if isinstance(node, ast.JoinedStr):
            for value in node.values:
                if isinstance(value, ast.FormattedValue):
                    visit(value.value, renaming)
            return
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = meanings.get(node.value.id, ("", "?"))
            if module and not name:
                names.add((module, node.attr, renaming))
                return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in meanings:
            names.add((*meanings[node.id], renaming))
        for child in ast.iter_child_nodes(node):
            visit(child, renaming)

    visit(node, "")
    return Part(tuple(messages), frozenset(names))


@functools.cache
def parts():
    by_name = {}
    for module, tree in MODULES.items():
        meanings = imported(tree, module)
        for node in tree.body:
            part = part_of(node, meanings)
            for name in defined(node):
                by_name[module, name] = part
    return by_name


def reached(task):
    """The parts that a task reaches, each with the renamings on the way to it, innermost first."""
    unreachable = NOT_REACHED.get(task, ())
    seen, todo = set(), [(cli.module_of(task), "run", ())]
    while todo:
        module, name, renamings = todo.pop()
        if (module, name, renamings) in seen or any(fnmatch.fnmatch(f"{module}.{name}", cut) for cut in unreachable):
            continue
        seen.add((module, name, renamings))
        if not name:
            todo += [(module, inner, renamings) for other, inner in parts() if other == module]
        elif (module, name) in parts():
            for inner, member, renaming in parts()[module, name].names:
                if not is_cut(module, name, f"{inner}.{member}"):
                    inside = {(module, renaming): None, **dict.fromkeys(renamings)} if renaming else renamings
                    todo.append((inner, member, tuple(inside)))
    return [(*place, renamings) for *place, renamings in seen if tuple(place) in parts()]


def is_cut(module, name, to):
    return any(all(map(fnmatch.fnmatch, (module, name, to), cut)) for cut in CUT)


def run_fields(module, name):
    """The fields of the runs in which a part can speak: those on images, on text, or either."""
    texts = {field for record in FAMILIES.values() if record.reads == "text" for field in record.fields}
    images = {field for record in FAMILIES.values() if record.reads == "images" for field in record.fields}
    of_text = {*TEXTS, *(f"backbone.{field}" for field in texts)}
    of_images = {*IMAGES, *(f"backbone.{field}" for field in images)}
    if module.startswith("toast_jax.data.text") or name == "_OF_TEXT" or module.endswith("text_runs"):
        return of_text
    of_masks = {*MASKS, *(f"backbone.{field}" for field in images)}
    if ".segmentation." in module or name == "_OF_MASKS":
        return of_masks
    if module.startswith("toast_jax.data.images") or name == "_OF_IMAGES":
        return of_images
    return of_text | of_images


def fields_of(task, module, name):
    if task in ("train", "evaluate"):
        return run_fields(module, name)
    if task == "sweep":
        return {field for table in ("vtab", "fgvc", "segmentation") for field in flat(f"sweep:table={table},method=all")}
    config = {
        "demo": "demo",
        "demo_language": "demo_language",
        "demo_segment": "demo_segment",
        **{name: f"{name}:backbone=stories15m" for name in ("generate", "score", "relevance")},
    }.get(task)
    return {*TASKS[task], *(flat(config) if config else ())}


@functools.cache
def flat(config):
    return frozenset(fields.flat_fields(config_files.read_config(config).to_dict()))


@functools.cache
def renamed(field, renamings):
    """The name of a field after the renamings, in the order in which an error passes them."""
    of_masks = field in MASKS and field not in IMAGES
    text = "sweep:table=segmentation,method=toast,task=voc" if of_masks else "sweep:table=fgvc,method=toast,task=cub"
    config = config_files.read_config(text)
    unit = plan.final(config, plan.cells(config)[0], plan.points(config, plan.cells(config)[0])[0], ROOT)
    values = {"unit": unit, "units": [unit], "name": "toast", "section": "runs.toast"}
    try:
        with contextlib.ExitStack() as stack:
            for module, expression in reversed(renamings):
                stack.enter_context(eval(expression, {**vars(importlib.import_module(module)), **values}))
            raise InputError(f"config.{field}")
    except InputError as error:
        return str(error).removeprefix("config.")


def exists(field, names):
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in (field, f"{field}.*"))


@pytest.mark.parametrize("task", cli.TASKS)
def test_fields_that_a_message_names_are_fields_of_the_task(task):
    wrong = set()
    for module, name, renamings in reached(task):
        for message in parts()[module, name].messages:
            for dashes, field in FIELD.findall(COMMAND.sub("", message)):
                names = fields_of(task, module, name)
                if task in (*SAVED, "sweep") and field in SETTLED:
                    continue
                if not dashes and (task in SAVED or task == "sweep"):
                    names = names | run_fields(module, name)
                if not exists(renamed(field.replace(HOLE, "HOLE"), renamings).replace("HOLE", HOLE), names):
                    wrong.add(f"{field}: {module}.{name} {renamings}")
    assert not wrong, "\n".join(sorted(wrong))


def every_message():
    for (module, name), part in parts().items():
        for message in part.messages:
            yield f"{module}.{name}", message
    for path in sorted((ROOT / "configs").glob("*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            for message in part_of(node, {}).messages:
                yield path.name, message


def test_commands_that_a_message_names_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    count = 0
    for place, message in every_message():
        for name, arguments, changed in COMMAND.findall(message):
            if name in ("FILE", HOLE):
                continue
            count += 1
            file = ROOT / "configs" / f"{name}.py"
            assert file.is_file(), (place, message)
            taken = {
                name
                for call in ast.walk(ast.parse(file.read_text()))
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "arguments"
                for keyword in call.keywords
                for name in ([keyword.arg] if keyword.arg else ast.literal_eval(keyword.value))
            }
            assert taken >= set(re.findall(r"(\w+)=", arguments)), (place, message)
            config = config_files.read_config(name).to_dict()
            assert fields.flat_fields(config).keys() >= set(re.findall(r"--config\.([\w.]+)", changed)), (place, message)
        bare = QUOTED.sub("", message)
        for flag in FLAG.findall(bare):
            assert flag in ("workdir", "distributed", "fields", "config") or flag.startswith(("help", "xla_")), (place, message)
        for module in re.findall(r"python -m ([\w.]+)", message):
            assert importlib.util.find_spec(module) and "__main__" in ast.unparse(MODULES[module]), (place, message)
        for target in re.findall(r"[`(]make ([\w-]+)", message):
            assert target in targets, (place, message)
        for extra in re.findall(r"toast_jax\[(\w+)\]", message):
            assert extra in extras, (place, message)
        for file in re.findall(r"(?:docs|configs|requirements)[\w/-]*\.(?:md|py|txt)", message):
            assert (ROOT / file).is_file(), (place, message)
    assert count > 10
