"""The installed package: its public names, its extras, and the configs and weights that it ships."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import toast_jax
from tests import ROOT
from toast_jax import cli, package_files
from toast_jax.config import config_files
from toast_jax.data.images import synthetic_scenes, tfds_records
from toast_jax.errors import InputError, Interrupted
from toast_jax.weights import containers as weights_files

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
MODULES = sorted((ROOT / "toast_jax").rglob("*.py"))


def test_importing_the_package_costs_nothing():
    """What it imports is the standard library's: no JAX, no NumPy, none of its own modules."""
    code = "import sys; before = set(sys.modules); import toast_jax; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    imported = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert imported == {"toast_jax"}, done.stderr


def test_public_names_are_there():
    assert all(getattr(toast_jax, name) is not None for name in toast_jax.__all__)
    assert set(toast_jax.__all__) <= set(dir(toast_jax)) and "__version__" in dir(toast_jax)
    assert toast_jax.read_config("folder:method=toast,backbone=vit_b16_in1k").method == "toast"
    with pytest.raises(AttributeError, match="module 'toast_jax' has no attribute 'tune'"):
        toast_jax.tune  # noqa: B018


# Configs and shipped files.


def test_a_config_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find("fgvc") == config_files.find("configs/fgvc.py") == ROOT / "configs" / "fgvc.py"
    assert (
        config_files.read_config("fgvc:dataset=cars").data.root
        == config_files.read_config("configs/fgvc.py:dataset=cars").data.root
    )
    Path("mine.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(text=None): return ConfigDict({'a': text})"
    )
    assert config_files.read_config("mine.py:b=1").a == "b=1" and config_files.read_config("mine.py").a is None
    Path("fgvc").write_text(Path("mine.py").read_text())
    assert config_files.find("fgvc") == Path("fgvc") and "a" in config_files.read_config("fgvc")
    with pytest.raises(InputError, match="There is no config fgcv under .* has\n  configs/alpaca.py"):
        config_files.find("fgcv")


def test_a_config_is_named_on_the_command_line(tmp_path, monkeypatch):
    parsed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.flags, "FLAGS", parsed.extend)
    cli.check_arguments(["--config", "fgvc:dataset=cars", "--config.seed=1"])
    cli._parse(["toast", "--config=fgvc:dataset=cars", "--config.seed=1", "--workdir=x"])
    assert parsed == ["toast", f"--config={ROOT}/configs/fgvc.py:dataset=cars", "--config.seed=1", "--workdir=x"]
    parsed.clear()
    cli._parse(["toast", "--config", "convert"])
    assert parsed == ["toast", "--config", f"{ROOT}/configs/convert.py"]


def test_the_command_that_resumes_is_the_one_that_was_given(monkeypatch, capsys):
    def stopped(*_, **__):
        raise Interrupted("Stopped.")

    monkeypatch.setattr(cli, "set_environment", lambda: None)  # of this process
    monkeypatch.setattr(cli, "_set_logging", lambda: None)
    monkeypatch.setattr(cli.app, "run", stopped)
    for program, shown in (("/usr/bin/toast", "toast"), ("main.py", "python main.py")):
        monkeypatch.setattr(sys, "argv", [program, "--config=fgvc", "--config.name=a b"])
        with pytest.raises(SystemExit, match="130"):
            cli.cli()
        assert capsys.readouterr().err == f"Stopped. Go on with\n  {shown} --config=fgvc '--config.name=a b'\n"


def test_shipped_weights_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "assets/vit_nano8_top_down.safetensors"
    assert weights_files.read(name) and weights_files.read_header(name)
    assert package_files.find("tests/conftest.py") == Path("tests/conftest.py")  # not shipped
    Path("assets").mkdir()
    Path(name).touch()
    assert package_files.find(name) == Path(name)


def test_what_is_shipped_is_there():
    shared = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert shared == {"configs": "toast_jax/configs", "assets": "toast_jax/assets"}
    assert all((ROOT / folder).is_dir() for folder in shared)
    module, _, function = PYPROJECT["project"]["scripts"]["toast"].partition(":")
    assert getattr(sys.modules[module], function) is cli.cli
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "toast_jax/__init__.py"}


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"toast_jax-{toast_jax.__version__}-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import sys; from toast_jax import cli, package_files; from toast_jax.weights import containers\n"
        "assert containers.read('assets/vit_nano8.safetensors'); assert 'installed' in str(package_files.ROOT)\n"
        "assert all(cli.config_files.read_config(file.stem) for file in package_files.ROOT.glob('configs/*.py'))\n"
        "sys.argv = ['toast', '--help']; cli.cli()"
    )
    (tmp_path / "empty").mkdir()
    options = {"cwd": tmp_path / "empty", "env": {"PYTHONPATH": str(tmp_path / "installed")}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 1 and "configs/fgvc.py" in done.stdout and "--workdir" in done.stdout, done.stderr


# Extras.


@pytest.mark.parametrize(
    ("module", "use", "message"),
    [
        (
            "sklearn.datasets",
            lambda: synthetic_scenes._digits.__wrapped__("test"),
            r"needs sklearn; `pip install .*_jax\[demo\]\"`",
        ),
        ("tensorflow_datasets", lambda: tfds_records.read(None, "test"), r"needs tensorflow_datasets; .*_jax\[vtab\]\"`"),
        ("tensorflow_datasets", lambda: tfds_records.records("", "test"), r"needs tensorflow_datasets; .*_jax\[vtab\]\"`"),
    ],
)
def test_a_missing_extra_is_named(module, use, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=message):
        use()


def test_extras_that_are_named_exist():
    texts = [path.read_text() for path in [*MODULES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    named = {extra for text in texts for extras in re.findall(r"toast_jax\[([\w,]+)\]", text) for extra in extras.split(",")}
    named |= {extra for text in texts for extra in re.findall(r'of_extra\("[\w.]+", "(\w+)"', text)}
    assert {"demo", "language", "prepare", "vtab"} <= named <= EXTRAS.keys()


def test_only_the_core_is_imported_without_a_word():
    """Every import statement is of the standard library, this package or its core; PyTorch's alone stands in a `try`."""
    provides = importlib.metadata.packages_distributions()
    core = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["project"]["dependencies"]}
    others = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"toast_jax"}:
                if not core & {canonicalize_name(one) for one in provides.get(name, [])}:
                    others.setdefault(name, set()).add(path.name)
    assert others == {"torch": {"containers.py"}}


# The pages beside the code.


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == toast_jax.__version__ and citation["license"] == PYPROJECT["project"]["license"]
    assert citation["preferred-citation"]["doi"].endswith("2305.15542") and len(citation["preferred-citation"]["authors"]) == 4


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert headings[:2] == ["Unreleased", toast_jax.__version__]


def test_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:toast_jax|tests|configs)/[\w/]*(?:\.py)?)[:`]", text)
    assert len(paths) > 20
    assert {path for path in paths if not (ROOT / path).exists()} == {"toast_jax/tasks/NAME.py", "configs/NAME.py"}
