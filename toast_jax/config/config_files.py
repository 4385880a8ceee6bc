"""Find and read the files of configs, by name (`fgvc:dataset=cub`) or by path (`configs/fgvc.py:dataset=cub`)."""

import ast
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from toast_jax import package_files
from toast_jax.errors import InputError


def find(name: str) -> Path:
    """Return the file of a config; a file at the path `name` comes before a shipped config of that name.

    Raises:
      InputError: there is neither.
    """
    for file in (package_files.find(name), package_files.find(f"configs/{name}.py")):
        if file.is_file():
            return file
    raise InputError(f"There is no config {name} under {Path.cwd()}; {package_files.ROOT} has\n{captions()}")


def read_config(text: str) -> ConfigDict:
    """Read a config, as in `fgvc:dataset=cub,method=toast`: a name or path, and arguments after a colon.

    Raises:
      InputError: there is no such config, or it does not take these arguments.
    """
    name, _, arguments = text.partition(":")
    module, file = ModuleType("config"), find(name)
    if file.suffix in ("", ".py"):  # not the README or the config.json of a run
        SourceFileLoader("config", str(file)).exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"{name} is no config of its own; use one of\n{captions()}")
    return module.get_config(arguments) if arguments else module.get_config()


def captions() -> str:
    """List the shipped configs, one a line, each with the first line of its docstring."""
    texts = {file.name: file.read_text() for file in sorted(package_files.ROOT.glob("configs/*.py"))}
    configs = {name: ast.parse(text) for name, text in texts.items() if "def get_config" in text}
    lines = {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in configs.items()}
    return "\n".join(f"  configs/{name:<16} {line}" for name, line in lines.items())
