"""Files from elsewhere: copied to the cache once, and never used unless they are what they should be."""

import hashlib
import logging
import os
from pathlib import Path

from etils import epath

from toast_jax.errors import InputError

log = logging.getLogger(__name__)


def local(address: str, sha256: str = "") -> Path:
    """A local file for an address: itself, or the copy of a remote one in the cache.

    Args:
      address: a path, or what `etils.epath` can open, such as gs://bucket/file.
      sha256: what the file has to hash to; "" for anything.

    Raises:
      InputError: the address cannot be read, or the file is another one.
    """
    if "://" not in address:
        path = Path(address).expanduser()
        if sha256:
            _check(path, sha256)
        return path
    if address.startswith(("http://", "https://")):
        raise InputError(f"{address} is not fetched from here; download it with curl or a browser, and give the file.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "toast_jax" / "downloads"
    # Files of one name from two places are two files.
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
        except Exception as error:  # whatever the storage's library raises
            raise InputError(f"{address} cannot be read ({error}); check it, or download the file yourself.") from error
        partial.replace(path)
    if sha256:
        _check(path, sha256)
    return path


def _check(path, sha256):
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
    if found != sha256.lower():
        raise InputError(f"{path} is another file: its sha256 is {found}, not {sha256}; remove it and fetch it again.")
