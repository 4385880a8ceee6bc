"""The floors of the package: a folder imports from folders below it, and nothing imports in a circle."""

import ast

import pytest

from tests import ROOT

# From the ground up. A file belongs to the longest name that begins its own.
FLOORS = (
    ("errors", "trees", "fields"),
    ("data",),
    ("model.layers",),
    ("model.backbones",),
    ("model",),
    ("devices",),
    ("config",),
    ("workdir",),
    ("weights",),
    ("train",),
    ("analysis", "testing"),
    ("tables",),
    ("tasks",),
    ("parity", "curves"),
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
