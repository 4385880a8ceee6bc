"""Where files are that belong to no run: those shipped with the code, and the cache of what can be made again.

Shipped files are beside the package in a clone and inside it when it is installed.
"""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cached files, `toast_jax/NAME` in $XDG_CACHE_HOME or ~/.cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toast_jax" / name


def find(path: str | Path) -> Path:
    """Return the file at a path, or else the shipped file of that name (`configs/...` or `assets/...`).

    A file under the current folder comes first. A path with no file at either place is returned as it is, with "~" expanded.
    """
    path = Path(os.path.expanduser(path))  # pathlib raises for an unknown user
    is_shipped = path.parts[:1] in (("configs",), ("assets",)) and not path.exists() and (ROOT / path).is_file()
    return ROOT / path if is_shipped else path
