"""Locks of folders that several processes may find at once, on one host or on many that share a disk."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path


class Held(Exception):
    """The lock is another process's, which is alive, on another host, or unknown; the text says which, and what to do."""


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Holds the lock file `path`, which names host and process, inside the block; its folder is created.

    A lock that a dead process of this host has left behind is taken over. Whether a process of another host is alive cannot be
    known, so its lock is respected.

    Raises:
      Held: another process has it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _created(path) and not _taken_over(path):
        pass
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == _ours():
                path.unlink()


def _ours() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _created(path: Path) -> bool:
    """Creates the lock with its content in one step, unless it is there; linking is atomic on network disks too."""
    whole = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    whole.write_text(_ours())
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    finally:
        whole.unlink()
    return True


def _taken_over(path: Path) -> bool:
    """Makes a stale lock ours; False if it has gone meanwhile. Of several that try, the kernel lets one in after the other."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            holder = _holder(file.read())
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
            if holder is None:
                raise Held(f"a process that cannot be told is at it; if there is none, remove {path}")
            host, pid = holder
            if host != socket.gethostname() or _alive(pid):
                raise Held(f"process {pid} on {host} is at it; if that process is gone, remove {path}")
            file.seek(0)
            file.write(_ours())
            file.truncate()
    except FileNotFoundError:
        return False
    return True


def _holder(text: str) -> tuple[str, int] | None:
    try:
        holder = json.loads(text)
        return str(holder["host"]), int(holder["pid"])
    except (ValueError, TypeError, KeyError):
        return None


def _alive(pid: int) -> bool:
    """Whether another process of this number runs; a lock of our own number is of a process that had it before."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
