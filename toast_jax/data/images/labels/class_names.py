"""Names of classes from a file, for predictions, confusions and pictures."""

import collections
import json
import os
from collections.abc import Sequence

from toast_jax.errors import InputError, listed


def read(file: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Read the names of classes.

    Args:
        file: one name per line or a JSON list, in the order of `classes`; or a JSON object from class to name.
        classes: their names in the data: folders, labels or class ids.

    Raises:
        InputError: the file cannot be read, names other classes, or gives two classes the same name.
    """
    file = os.path.expanduser(file)
    try:
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read()
        names = json.loads(text) if file.lower().endswith(".json") else text.rstrip().splitlines()
    except OSError as error:
        raise InputError(f"File {file} cannot be read ({error.strerror}): correct --config.data.class_names.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"File {file} of class names cannot be read ({error}): write one name per line, in UTF-8.") from error
    if isinstance(names, dict):
        if missing := [name for name in classes if name not in names]:
            raise InputError(
                f"File {file} names no class {listed(missing, most=3)} (it has {listed(list(names), most=3)}): add it, or "
                "correct --config.data.class_names."
            )
        names = [names[name] for name in classes]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"File {file} must hold a name for each class, as text: correct the others.")
    names = [name.strip() for name in names]
    if len(names) != len(classes):
        raise InputError(
            f"File {file} has {len(names)} class names, and the data {len(classes)} classes ({listed(classes, most=3)}): write "
            "one name for each, in this order."
        )
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise InputError(f"File {file} has the class name {twice[0]!r} twice: give each class a name of its own.")
    return tuple(names)
