"""Files that are shipped with the code: beside the package in a clone, inside it when it is installed."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def find(path: str | Path) -> Path:
    """Return the file at a path, or else the shipped file of that name (`configs/...` or `assets/...`).

    A file under the current folder comes first. A path with no file at either place is returned as it is, with "~" expanded.
    """
    path = Path(os.path.expanduser(path))  # pathlib raises for an unknown user
    is_shipped = path.parts[:1] in (("configs",), ("assets",)) and not path.exists() and (ROOT / path).is_file()
    return ROOT / path if is_shipped else path
