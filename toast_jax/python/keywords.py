"""Fields of a config as keyword arguments of Python: `lr=0.01` for `--config.optimizer.lr=0.01`."""

import contextlib
import copy
import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from toast_jax.config.run_fields import IMAGES
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields, unknown
from toast_jax.model.families import FAMILIES


def changed(config: ConfigDict, keywords: Mapping[str, Any]) -> ConfigDict:
    """Return a copy of a config with some fields set.

    Args:
      config: of a run.
      keywords: values by dotted name, or by its last parts if no other field ends with them; a section is a dict of fields.

    Raises:
      InputError: there is no such field, or the name is short for several; the sentence has the nearest names, or these.
    """
    flat, changes = flat_fields(config.to_dict()), {}
    for keyword, value in flat_fields(keywords).items():
        names = [name for name in flat if name == keyword] or [name for name in flat if name.endswith(f".{keyword}")]
        if len(names) > 1:
            example = f"**{{{names[0]!r}: {value!r}}}"
            raise InputError(f"{keyword} is short for several fields ({', '.join(names)}); name one in full, as in {example}.")
        if not names:
            raise InputError(unknown(keyword, [name if "." in keyword else short(name) for name in flat]))
        changes[names[0]] = _plain(value)
    config = copy.deepcopy(config)  # with its references: the warm-up of configs/folder.py is a share of its epochs
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def short(name: str) -> str:
    """Return the last part of a dotted name, if no other field ends with it, or else the name."""
    last = name.rpartition(".")[2]
    return last if _last_parts().count(last) == 1 else name


@contextlib.contextmanager
def named_in_errors() -> Iterator[None]:
    """Name keyword arguments, in place of flags of the command line, in the sentence of an InputError."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"(?<![\w./-])(?:--)?config\.(?!json\b)(\w+(?:\.\w+)*)", lambda match: short(match[1]), str(error))
        error.args = (text.replace("--workdir", "workdir"),)
        raise


@functools.cache
def _last_parts() -> list[str]:
    """List the last parts of the names of all fields, those of every family of backbones for images included."""
    own = {f"backbone.{name}" for family in FAMILIES.values() if family.reads == "images" for name in family.fields}
    return [name.rpartition(".")[2] for name in {*IMAGES, *own}]


def _plain(value):
    """Return a value as configs hold it: a path as text, a number of NumPy as Python's."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value.item() if isinstance(value, np.generic) else value
