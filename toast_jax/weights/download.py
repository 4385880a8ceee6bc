"""Weights that are elsewhere: names, places on the Hugging Face Hub, and remote addresses.

All are copied to a cache once, compared with their SHA-256 where it is known, and recorded by the runs that use them.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from toast_jax import hub, package_files
from toast_jax.config.backbone_names import RANDOM
from toast_jax.errors import InputError
from toast_jax.fields import flat_fields
from toast_jax.weights.named import NAMED
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

# Fields that may name a place on the Hub, and the file that they need of a repository.
_FIELDS = {"backbone.weights": hub.WEIGHTS, "top_down": hub.WEIGHTS, "data.tokenizer": hub.TOKENIZER}


def local(address: str, sha256: str = "") -> Path:
    """Return a local path for an address, after copying a remote file to the cache.

    Args:
      address: a path, or an address that `etils.epath` can open, such as gs://bucket/file.
      sha256: expected hash; "" for no check.

    Raises:
      InputError: the address cannot be read, or the hash differs.
    """
    path = _copied(address) if "://" in address else Path(located(address)).expanduser()
    if sha256:
        try:
            digest = _digest(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
        if digest != sha256.lower():
            raise InputError(f"{path} is another file: its sha256 is {digest}, not {sha256}; remove it and fetch it again.")
    return path


def located(text: str, field: str = "backbone.weights") -> str:
    """Return the path that a field of a config stands for; the file of a name or of a place on the Hub is downloaded.

    Args:
      text: the value of the field, which comes back unless it is a row of `NAMED` or begins with hf:.
      field: for the message about a word that is neither a name nor a file.

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
    if hub.is_place(NAMED[text].address):
        return str(hub.local(hub.parse(NAMED[text].address)))
    return str(_named(text))


def is_remote(text: str) -> bool:
    """Return whether a text names weights, well or badly, rather than a path: a file of that name comes first."""
    is_word = re.fullmatch(r"\w+", text) and text != RANDOM and not Path(text).exists()
    return hub.is_place(text) or bool(is_word)


def pin(config: ConfigDict, folder: str | Path) -> ConfigDict:
    """Return the config with the commit of every place on the Hub.

    A run that resumes takes the commit in the saved config of its folder, unless its config names a revision.

    Raises:
      InputError: see `hub.pinned`.
    """
    flat, changed = flat_fields(config.to_dict()), {}
    saved = _saved(folder) if run_folder.has_checkpoint(folder) else {}
    for field, patterns in _FIELDS.items():
        text = flat.get(field, "")
        address = NAMED[text].address if text in NAMED and is_remote(text) else text
        if not hub.is_place(address):
            continue
        place, before = hub.parse(address), saved.get(field, "")
        if hub.is_place(before) and _is_part(place, hub.parse(before)):
            changed[field] = before
        else:
            changed[field] = str(hub.pinned(place, patterns))
    if not changed:
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    return config


def _is_part(place, pinned) -> bool:
    """Return whether a pinned place is what a place without a revision named earlier."""
    return not place.revision and place.repository == pinned.repository and place.file in ("", pinned.file)


def _saved(folder) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):  # which the run reports
        return flat_fields(json.loads((Path(folder).expanduser() / "config.json").read_text()))
    return {}


def provenance(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Describe the weights of a pinned config that were downloaded, by field: address or repository, revision, SHA-256."""
    flat, facts = flat_fields(config.to_dict()), {}
    for field in _FIELDS:
        text = flat.get(field, "")
        if hub.is_place(text):
            facts[field] = hub.provenance(hub.parse(text))
        elif text in NAMED and is_remote(text):
            facts[field] = json.loads(_record(text).read_text())
    return {"weights": facts} if facts else {}


def _named(name: str) -> Path:
    """Return the file of a name, downloaded if the cache lacks it; it must be the file that was downloaded first."""
    entry, record = NAMED[name], _record(name)
    path = record.with_name(name + Path(entry.address).suffix)
    if not path.exists():
        log.info("Downloading %s from %s (licence: %s).", name, entry.address, entry.licence)
        _download(entry.address, path, lambda digest: _check_digest(name, digest))
    digest = _digest(path)
    if not record.exists():
        facts = {"name": name, "url": entry.address, "licence": entry.licence, "sha256": digest}
        run_folder.replace_file(record, json.dumps(facts, indent=2) + "\n")
        log.info("%s is in %s, its sha256 is %s.", name, path, digest)
    try:
        _check_digest(name, digest)
    except InputError as error:
        raise InputError(f"{path} has changed: {error}") from error
    return path


def _record(name: str) -> Path:
    """Return the path of the record that the first download of a name leaves in the cache."""
    return package_files.cache_folder("downloads") / f"{name}.json"


def _check_digest(name, digest) -> None:
    expected, record = NAMED[name].sha256, _record(name)
    if not digest.startswith(expected):
        raise InputError(f"the sha256 of {name} is {digest} and should begin with {expected}; remove it and download it again.")
    if record.exists() and digest != (first := json.loads(record.read_text())["sha256"]):
        raise InputError(
            f"the sha256 of {name} is {digest}, and was {first} at its first download; remove it to download it again, and "
            f"{record} too to take another file from now on."
        )


def _download(address: str, path: Path, check) -> None:
    """Download a file over HTTPS and move it to its path once it is complete and its digest has passed `check`."""
    partial = path.with_name(path.name + ".partial")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"User-Agent": "toast_jax"}), timeout=60) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            package_files.check_room(path.parent, size, path.name, "set XDG_CACHE_HOME to a folder on another disk")
            path.parent.mkdir(parents=True, exist_ok=True)
            progress = tqdm.wrapattr(answer, "read", total=size or None, desc=path.name)
            with progress as content, partial.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
        if size and partial.stat().st_size != size:
            raise ConnectionError(f"{partial.stat().st_size:,} of {size:,} bytes arrived")
        check(_digest(partial))
        partial.replace(path)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise InputError(
            f"{address} cannot be downloaded ({error}); check the network and give the same command again, or download it with a "
            "browser and give the file."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copied(address: str) -> Path:
    """Copy a remote file to the cache, unless it is there already."""
    if address.startswith(("http://", "https://")):
        raise InputError(f"{address} is not fetched from here; download it with curl or a browser, and give the file.")
    cache = package_files.cache_folder("downloads")
    # Files of the same name from two places must not collide.
    path = cache / hashlib.sha256(address.encode()).hexdigest()[:16] / address.rsplit("/", 1)[1]
    if not path.exists():
        log.info("Copying %s to %s.", address, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            epath.Path(address).copy(partial, overwrite=True)
        except ImportError as error:
            extra = address.split("://")[0].replace("gs", "gcs")
            raise InputError(f'Reading {address} needs a package ({error}); pip install "etils[epath-{extra}]".') from error
        except Exception as error:  # the storage library may raise anything
            raise InputError(f"{address} cannot be read ({error}); check it, or download the file yourself.") from error
        partial.replace(path)
    return path
