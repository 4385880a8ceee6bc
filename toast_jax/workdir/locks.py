"""Locks for folders that several processes may use, on one host or on several hosts that share a disk.

Processes of one machine are separated by the kernel's lock on the file, which works across containers and ends with its
process. Other hosts may not see that lock on a shared disk, so the holder also touches the file regularly.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import filelock

from toast_jax.errors import InputError

BEAT = 30.0  # seconds between two touches of the lock file
STALE = 300.0  # seconds without a touch after which a holder on another host counts as dead
# Errors of disks whose files the kernel cannot lock; only the touches count there.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Errors of disks, such as mounted buckets, that do not support an operation.
_REFUSED = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Held(Exception):
    """Another process, which the text names, holds the lock and appears to be alive."""


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`, which names host and process, inside the block; its folder is created.

    The lock of a dead process of this machine is free at once; that of another host when it has not been touched for `STALE`
    seconds.

    Raises:
      Held: another process holds it.
      InputError: the disk has no hard links, or refuses to lock files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while (file := _acquired(path)) is None:
        pass
    with file:
        done = threading.Event()
        heartbeat = threading.Thread(target=_touch, args=(file, done), daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            done.set()
            heartbeat.join()
            with contextlib.suppress(OSError):  # the file or its disk is gone
                if _is_at(file, path):
                    path.unlink()


def _touch(file, done):
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file.fileno())


def _acquired(path: Path) -> IO | None:
    """Return the lock file, open and locked; None if an existing lock was released meanwhile.

    A new file is locked before it gets the name `path`. Linking and renaming are atomic on network disks too.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with contextlib.ExitStack() as on_failure:
            file = on_failure.enter_context(draft.open("x"))
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
            file.flush()
            _lock_in_kernel(file)
            try:
                with _needed("hard links", path):
                    os.link(draft, path)
            except FileExistsError:
                if not _taken_over(path, draft):
                    return None
            on_failure.pop_all()
            return file
    finally:
        draft.unlink(missing_ok=True)


def _taken_over(path: Path, draft: Path) -> bool:
    """Replace a stale lock by `draft`; False if it was released meanwhile. The kernel lets one process try at a time."""
    try:
        with path.open("r+") as file:
            is_free = _lock_in_kernel(file)
            host, pid = _holder(file.read()) or ("a host that cannot be told", "?")
            if is_free is False:
                raise Held(f"process {pid} on {host} is at it")
            if not _is_at(file, path):
                return False
            # By the clock of the disk, as those of hosts differ.
            untouched = draft.stat().st_mtime - path.stat().st_mtime
            if not (is_free and host == socket.gethostname()) and untouched < STALE:
                raise Held(f"process {pid} on {host} is at it; if it is gone, {path} is free in {STALE / 60:.0f} minutes")
            draft.replace(path)
            return True
    except FileNotFoundError:
        return False


def _lock_in_kernel(file: IO) -> bool | None:
    """Lock an open file without waiting; False if another process has locked it, None if the disk has no locks."""
    try:
        with _needed("file locks", Path(file.name)):
            return filelock.lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise


@contextlib.contextmanager
def _needed(operations: str, path: Path) -> Iterator[None]:
    """Explain the error of a disk that lacks these operations."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED or (operations == "file locks" and error.errno in _NO_LOCKS):
            raise
        raise InputError(
            f"The disk of {path.parent} refuses {operations} ({error.strerror}), as mounted buckets do, and a run needs them "
            "to keep other runs out; give a folder on a local or network disk, and copy it to the bucket afterwards."
        ) from error


def _is_at(file: IO, path: Path) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(text: str) -> tuple[str, int] | None:
    """Return host and process that a lock file names; None where it is damaged."""
    try:
        holder = json.loads(text)
        return str(holder["host"]), int(holder["pid"])
    except (ValueError, TypeError, KeyError):
        return None
