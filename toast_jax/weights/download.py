"""Copy remote files to a cache, once, and verify their hash."""

import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

from etils import epath
from tqdm import tqdm

from toast_jax import package_files
from toast_jax.errors import InputError

log = logging.getLogger(__name__)


def local(address: str, sha256: str = "") -> Path:
    """Return a local path for an address, after copying a remote file to the cache.

    Args:
      address: a path, or an address that `etils.epath` can open, such as gs://bucket/file.
      sha256: expected hash; "" for no check.

    Raises:
      InputError: the address cannot be read, or the hash differs.
    """
    path = _copied(address) if "://" in address else Path(address).expanduser()
    if sha256:
        try:
            digest = package_files.digest_of(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
        if digest != sha256.lower():
            raise InputError(f"{path} is another file: its sha256 is {digest}, not {sha256}; remove it and fetch it again.")
    return path


def fetch(address: str, path: Path, check: Callable[[str], None]) -> None:
    """Download a file over HTTPS, atomically, after `check` has accepted its SHA-256.

    Raises:
      InputError: there is no room for it, or the download fails.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
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
        check(package_files.digest_of(partial))
        partial.replace(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"{address} cannot be downloaded ({error}); check the network and give the same command again, or download it "
            "with a browser and give the file."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _copied(address: str) -> Path:
    """Copy a remote file to the cache, unless it is cached already."""
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
        except Exception as error:  # storage libraries raise errors of many types
            raise InputError(f"{address} cannot be read ({error}); check it, or download the file yourself.") from error
        partial.replace(path)
    return path
