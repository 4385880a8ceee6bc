"""Where files are that belong to no run: those shipped with the code, and the cache of what can be made again.

Shipped files are beside the package in a clone and inside it when it is installed.
"""

import hashlib
import os
import shutil
from pathlib import Path

from toast_jax.errors import InputError

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent


def cache_folder(name: str) -> Path:
    """Return the folder of one kind of cached files, `toast_jax/NAME` in $XDG_CACHE_HOME or ~/.cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toast_jax" / name


def check_room(folder: Path, size: int, name: str, remedy: str) -> None:
    """Check that the disk of a folder, which may not exist yet, has room for a download of `size` bytes.

    Raises:
      InputError: it has not; the sentence begins with `name` and ends with `remedy`.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise InputError(
            f"{name} has {size / 1e6:,.0f} MB, but {existing} has only {free / 1e6:,.0f} MB left; free some space, or {remedy}."
        )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(path: str | Path) -> Path:
    """Return the file at a path, or else the shipped file of that name (`configs/...` or `assets/...`).

    A file under the current folder comes first. A path with no file at either place is returned as it is, with "~" expanded.
    """
    path = Path(os.path.expanduser(path))  # pathlib raises for an unknown user
    is_shipped = path.parts[:1] in (("configs",), ("assets",)) and not path.exists() and (ROOT / path).is_file()
    return ROOT / path if is_shipped else path
