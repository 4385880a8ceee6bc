"""Find weights that a config gives by name (`named.NAMED`) or by place on the Hugging Face Hub."""

import contextlib
import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toast_jax import hub, package_files
from toast_jax.config.backbone_names import RANDOM
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.model import families
from toast_jax.weights import containers, named
from toast_jax.weights.named import NAMED
from toast_jax.workdir import run_folder

# Fields that may name a place on the Hub, and the file that they need of a repository.
_FIELDS = {"backbone.weights": hub.WEIGHTS, "module": hub.WEIGHTS, "top_down": hub.WEIGHTS, "data.tokenizer": hub.TOKENIZER}


def located(text: str, field: str = "backbone.weights") -> str:
    """Return the path for the value of a config field; named weights and those on the Hub are downloaded.

    Args:
      text: value of the field: a path, a name in `NAMED`, or hf:...
      field: for the error about a word that is neither a name nor a file.

    Raises:
      InputError: the file cannot be downloaded or is another one, or there is no such name.
    """
    if not is_remote(text):
        return text
    if hub.is_place(text):
        return str(hub.local(hub.parse(text)))
    if text not in NAMED:
        near = difflib.get_close_matches(text, list(NAMED), n=1, cutoff=0)
        raise InputError(
            f"config.{field} is {text!r}, which is neither a file nor a name of weights; the nearest name is {near[0]!r}, and "
            "docs/weights.md lists all."
        )
    return str(named.local(text))


def check_files(config: ConfigDict, fields: Iterable[str]) -> None:
    """Raise InputError if a file that one of the fields names is missing; remote files are not checked."""
    flat = flat_fields(config.to_dict())
    for field in fields:
        if (text := flat[field]) in ("", RANDOM) or is_remote(text):
            continue
        file = package_files.find(text)
        if file.stem in NAMED and not file.exists():
            raise InputError(
                f"There is no weights file at {file}; correct --config.{field}, or set it to {file.stem} to download that file."
            )
        may_be_folder = field == "backbone.weights" and families.of_config(config).layer_files
        (containers.check_exists if may_be_folder else containers.check_is_file)(file, field)


def tokenizer(text: str) -> str:
    """Return the path for `config.data.tokenizer`; a tokenizer on the Hub is downloaded."""
    return str(hub.local(hub.parse(text), hub.TOKENIZER)) if hub.is_place(text) else text


def is_remote(text: str) -> bool:
    """Return whether a text is a name or place of weights, known or not; paths of existing files are none."""
    is_word = re.fullmatch(r"\w+", text) and text != RANDOM and not Path(text).exists()
    return hub.is_place(text) or bool(is_word)


def pin(config: ConfigDict, folder: str | Path) -> ConfigDict:
    """Return the config with a commit in every place on the Hub.

    A resumed run takes the commit from the saved config of its folder, unless its config names a revision.

    Raises:
      InputError: see `hub.pinned`.
    """
    flat, changed = flat_fields(config.to_dict()), {}
    saved = _saved(folder) if run_folder.has_checkpoint(folder) else {}
    for field, patterns in _FIELDS.items():
        text = flat.get(field, "")
        if hub.is_place(text):
            before = saved.get(field, "")
            changed[field] = before if hub.covers(text, before) else str(hub.pinned(hub.parse(text), patterns))
    if not changed:
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    return config


def _saved(folder) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):  # reported by the run
        return flat_fields(json.loads((Path(folder).expanduser() / "config.json").read_text()))
    return {}


def provenance(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Describe downloaded weights of a pinned config, by field: address or repository, revision, SHA-256."""
    flat, facts = flat_fields(config.to_dict()), {}
    for field in _FIELDS:
        text = flat.get(field, "")
        if hub.is_place(text):
            facts[field] = hub.provenance(hub.parse(text))
        elif text in NAMED and is_remote(text):
            facts[field] = named.record(text)
    return {"weights": facts} if facts else {}
