"""Write a folder atomically."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from toast_jax.errors import InputError
from toast_jax.weights.containers import can_create

# The text of a file, or a function that writes it, by name.
Files: TypeAlias = dict[str, str | Callable[[Path], object]]


def check_new(path: str | Path) -> Path:
    """Return the path of a folder that `write` can create.

    Raises:
      InputError: it exists already, has the ending of a file, or is in a place that cannot be written.
    """
    folder = Path(path).expanduser()
    if folder.suffix in (".pth", ".safetensors", ".bin", ".npz", ".onnx", ".zip"):
        raise InputError(f"{folder} is named like a file, and a folder is written; give to= a name without {folder.suffix}.")
    if folder.exists():
        raise InputError(f"{folder} exists already; give to= another name, or remove it.")
    if not can_create(folder):
        raise InputError(f"{folder} cannot be written; give to= a folder in one that exists and is yours.")
    return folder


def write(folder: Path, files: Mapping[str, str | Callable[[Path], object]]) -> None:
    """Write files into a new folder, which appears once all are complete.

    Raises:
      InputError: the disk is full or fails.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            if isinstance(content, str):
                (partial / name).write_text(content, encoding="utf-8")
            else:
                content(partial / name)
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); free some space, or give another place.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
