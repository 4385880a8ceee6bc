"""Every command in the README and docs parses, and every file, test and function that they name exists."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import demo as demo_config
from tests import ROOT
from toast_jax import cli, hub
from toast_jax.analysis import report
from toast_jax.config import check
from toast_jax.tasks import demo

FOLDERS = ("benchmarks", "assets")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / folder / "README.md" for folder in FOLDERS)]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page):
    """The commands in a page's fenced blocks, one string each."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if re.match(r"(python|make|pip|toast) ", line)]


COMMANDS = [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page)]


def test_there_are_commands():
    assert len([command for page, command in COMMANDS if page == "README.md"]) >= 8


# The `config.json` of repositories on the Hub that commands name.
_LLAMA = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
_LLAMA |= {"intermediate_size": 8192, "vocab_size": 128_256, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
_SCALING = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_SCALING |= {"original_max_position_embeddings": 8192}
ON_THE_HUB = {
    "google/vit-base-patch16-224-in21k": {"architecture": "vit_base_patch16_224"},
    "meta-llama/Llama-3.2-1B": _LLAMA | {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": _SCALING},
}


def refuse_no_field(args, monkeypatch):
    """Read the config of a command and check all of its fields, as its task does before it reads any data."""
    args = args[: args.index("<")] if "<" in args else args
    cli.check_arguments(args)
    monkeypatch.setattr(sys, "argv", ["main.py", *args])  # which config_flags reads
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("fields", False, "", flag_values=values)
    values(sys.argv)
    config = values.config
    (check.check if config.task in ("train", "evaluate") else check.check_fields)(config)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hub, "read_json", lambda place, file: ON_THE_HUB[place.repository] if file == "config.json" else None)
    program, *args = shlex.split(command)
    if program == "make":
        assert subprocess.run(["make", "--dry-run", *args], capture_output=True).returncode == 0
    elif program == "pip":
        assert "-r" not in args or Path(args[args.index("-r") + 1]).exists()
    elif program == "toast":
        refuse_no_field(args, monkeypatch)
    elif args[0] == "main.py":
        refuse_no_field(args[1:], monkeypatch)
    elif args[0].startswith("tests/"):
        assert Path(args[0]).exists()
    else:
        assert args[0] == "-m"
        path = Path(args[1].replace(".", "/"))
        assert path.with_suffix(".py").exists()
        assert all(Path(arg).exists() for arg in args[2:] if arg.startswith("tests/"))


def test_table_of_the_demo_is_one_that_the_demo_writes():
    lines = (ROOT / "README.md").read_text().partition("<!-- demo table -->\n")[2].splitlines()
    assert lines[0] == report.markdown(demo.HEADER, []).splitlines()[0]
    rows = [line.split(" | ") for line in lines[2 : lines.index("")]]
    assert [row[0].strip("| ") for row in rows] == list(demo_config.ROWS)
    assert all(re.fullmatch(r"\d+\.\d \+- \d+\.\d", row[2]) for row in rows)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@every_page
def test_page_is_finished(page):
    text = page.read_text()
    assert len(text) > 500 and "@@" not in text and "TODO" not in text


@every_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links


@every_page
def test_sections_that_are_linked_exist(page):
    for path, section in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / path if path else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert section in anchors, f"{page.name} links to #{section}; {target.name} has {anchors}"


def definitions(path):
    """The functions and classes of a file, with methods and attributes as `Class.name`, and its constants."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        names |= _names(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _names(inner)}
    return names


def _names(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


@every_page
def test_files_and_names_exist(page):
    """`folder/file.py` exists; of `folder/file.py::name`, so does the function, class, method or constant."""
    text = page.read_text()
    named = re.findall(r"\b((?:toast_jax|configs|tests|benchmarks)/[\w/]*\w\.py)(?:::([\w.]*\w))?", text)
    for file, name in named:
        assert (ROOT / file).is_file(), f"{page.name} names {file}"
        assert not name or name in definitions(ROOT / file), f"{page.name} names {file}::{name}"
    for folder in re.findall(r"`((?:toast_jax|configs|tests|benchmarks)/[\w/]*)`", text):
        assert (ROOT / folder).exists(), f"{page.name} names {folder}"


def test_the_map_of_the_code_is_true():
    """docs/architecture.md names files, and folders, from the top or from toast_jax/."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = re.findall(r"`([\w/]+\.py)(?:::([\w.]+))?`", text)
    assert len(files) > 80
    for file, name in files:
        path = next((top / file for top in (ROOT, ROOT / "toast_jax") if (top / file).is_file()), None)
        assert path, f"there is no {file}"
        assert not name or name in definitions(path), f"{file} has no {name}"
    for folder in re.findall(r"`([\w/]+/)`", text):
        assert any((top / folder).is_dir() for top in (ROOT, ROOT / "toast_jax")), f"there is no {folder}"


def test_configs_captions_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text().split('"""')[1].replace("\\\\\n", " ")
        for line in re.findall(r"^ +python main.py (.*)$", text, flags=re.M):
            refuse_no_field(shlex.split(line), monkeypatch)


def test_promises_name_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), f"{file}::{name}"
