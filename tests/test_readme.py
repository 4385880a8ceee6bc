"""Every command of the README is understood, and every file it names is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from configs import demo as demo_config
from tests import ROOT
from toast_jax import cli
from toast_jax.analysis import report
from toast_jax.tasks import demo

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def commands(page):
    """The commands in a page's fenced blocks, one string each."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if re.match(r"(python|make|pip) ", line)]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


def test_there_are_commands():
    assert len([command for page, command in COMMANDS if page == "README.md"]) >= 8


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_is_understood(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *args = shlex.split(command)
    if program == "make":
        assert subprocess.run(["make", "--dry-run", *args], capture_output=True).returncode == 0
    elif program == "pip":
        assert "-r" not in args or Path(args[args.index("-r") + 1]).exists()
    elif args[0] == "main.py":
        cli.check_arguments(args[1:])
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_finished(page):
    text = page.read_text()
    assert len(text) > 500 and "@@" not in text and "TODO" not in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links


def test_configs_captions_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "configs").glob("*.py")):
        text = path.read_text().split('"""')[1].replace("\\\\\n", " ")
        for line in re.findall(r"^ +python main.py (.*)$", text, flags=re.M):
            cli.check_arguments(shlex.split(line))


def test_promises_name_tests_that_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), f"{file}::{name}"
