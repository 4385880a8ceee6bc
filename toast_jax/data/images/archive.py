"""Images in a zip archive, read in place. Their paths contain that of the archive, as in `data/images.zip/birds/1.jpg`."""

import functools
import os
import re
import zipfile
import zlib

from toast_jax.errors import InputError


def split(path: str) -> tuple[str, str] | None:
    """Split the path of an image into its archive and its name in it; None if it is in no archive."""
    ends = (match.end() for match in re.finditer(r"\.zip(?=/)", path, re.IGNORECASE))
    return next(((path[:end], path[end + 1 :]) for end in ends if is_archive(path[:end])), None)


def is_archive(path: str) -> bool:
    """Return whether a path is that of a zip file, and not of a folder with such a name."""
    return path.lower().endswith(".zip") and os.path.isfile(path)


def names(archive: str) -> frozenset[str]:
    """List the files in an archive.

    Raises:
      InputError: it is damaged or not a zip file.
    """
    return frozenset(name for name in _opened(archive).namelist() if not name.endswith("/"))


def read(archive: str, name: str) -> bytes:
    """Read a file of an archive and verify its checksum. Threads and processes may read at the same time.

    Raises:
      InputError: the archive or the file in it is missing, damaged or encrypted.
    """
    try:
        return _opened(archive).read(name)
    except KeyError as error:
        raise InputError(f"{archive} has no {name}: give the archive that the split file lists.") from error
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name} in {archive} cannot be read ({error}): copy or download the archive again.") from error


def _opened(archive: str) -> zipfile.ZipFile:
    """Open an archive once in each process, as processes would share a file position after a fork, and again if it changes."""
    try:
        state = os.stat(archive)
        return _kept(archive, os.getpid(), state.st_ino, state.st_size, state.st_mtime_ns)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive} cannot be read as a zip file ({error}): copy or download it again.") from error


@functools.lru_cache(maxsize=8)
def _kept(archive, *identity):
    return zipfile.ZipFile(archive)
