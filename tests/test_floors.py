"""The floors of the package: a folder imports from folders below it, and nothing imports in a circle."""

import ast
import os
import subprocess
import sys

import pytest

from tests import ROOT

# From the ground up. A file belongs to the longest name that begins its own.
FLOORS = (
    ("errors", "trees", "fields"),
    ("package_files",),
    ("hub",),
    ("data.loader",),
    ("data.images", "data.text"),
    ("model.layers",),
    ("model.backbones", "model.additions"),
    ("model",),
    ("devices",),
    ("config",),
    ("workdir",),
    ("weights",),
    ("train",),
    ("analysis", "testing", "export"),
    ("tables",),
    ("tasks",),
    ("python",),
    ("cli", "parity", "curves"),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "toast_jax").rglob("*.py")
    if path.name != "__init__.py"
}


def folder_of(module):
    """The name in FLOORS that a module belongs to."""
    name = module.removeprefix("toast_jax.")
    return max((one for one in FLOOR if name == one or name.startswith(f"{one}.")), key=len)


def imports_of(path):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("toast_jax"):
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from inner
            if node.module in MODULES:
                yield node.module


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_from_its_own_folder_or_from_below(module):
    own = folder_of(module)
    for imported in imports_of(MODULES[module]):
        other = folder_of(imported)
        assert other == own or FLOOR[other] < FLOOR[own], f"{module} imports {imported}, which is not below it"


def test_nothing_imports_in_a_circle():
    left = {module: set(imports_of(path)) - {module} for module, path in MODULES.items()}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"a circle among {sorted(left)}"


def test_folders_are_small():
    """A newcomer sees a folder at one glance."""
    folders = [path for path in (ROOT / "toast_jax").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    counts = {str(one.relative_to(ROOT)): len([f for f in one.glob("*.py") if f.name != "__init__.py"]) for one in folders}
    assert max(counts.values()) <= 13, counts


def test_data_is_read_without_jax():
    """Worker processes that decode images or tokenize text import no accelerator runtime."""
    for module, path in MODULES.items():
        if module.startswith("toast_jax.data."):
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert not {name for name in names if name.partition(".")[0] in ("jax", "flax", "optax")}, module


_WORKER = """
import sys
import numpy as np
from PIL import Image


class Spy:
    classes = ("a",)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        jax = sys.modules.get("jax._src.xla_bridge")
        modules = [name for name in sys.modules if name.startswith("toast_jax.")]
        above = [name for name in modules if not name.startswith(("toast_jax.data", "toast_jax.errors"))]
        assert not above and not (jax and jax.backends_are_initialized()), above
        return {"image": np.zeros((4, 4, 3), np.uint8), "label": 7, "name": "x"}


if __name__ == "__main__":
    from toast_jax.data.images import batches
    from toast_jax.data.text import batches as texts

    (batch,) = batches.eval_batches(Spy(), batch_size=2, resize=4, size=4, workers=1)
    assert list(batch["label"]) == [7, 7]
    (batch,) = texts.eval_batches(Spy(), batch_size=2, workers=1)
    assert list(batch["label"]) == [7, 7]
"""


def test_worker_processes_load_the_data_folder_only_and_start_no_accelerator(tmp_path):
    """Grain imports JAX wherever JAX is installed; a backend it must not start, as only one process may hold an accelerator."""
    (tmp_path / "script.py").write_text(_WORKER)
    run = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(run, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_of_the_libraries_of_data_only_grain_imports_jax():
    names = [module for module in MODULES if module.startswith("toast_jax.data.")]
    script = (
        "import importlib, sys, unittest.mock as mock\n"
        "sys.modules.update({'grain': mock.MagicMock(), 'grain.experimental': mock.MagicMock()})\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "assert not {'jax', 'flax', 'optax'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
