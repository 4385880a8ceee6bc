"""Locks of folders that several processes may find at once, on one host or on many that share a disk."""

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

BEAT = 30.0  # seconds between two signs of life
STALE = 300.0  # seconds without one, after which a process of another host is taken for dead


class Held(Exception):
    """The lock is another process's, which is alive as far as can be known; the text says whose."""


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Holds the lock file `path`, which names host and process, inside the block; its folder is created.

    The file is touched every `BEAT` seconds. A lock that a dead process of this host has left behind is taken over at once;
    that of another host, of which it cannot be known, once it has not been touched for `STALE` seconds.

    Raises:
      Held: another process has it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _created(path) and not _taken_over(path):
        pass
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        with contextlib.suppress(OSError):  # it is gone, or its disk is
            if path.read_text() == _ours():
                path.unlink()


def _beat(path, done):
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            if path.read_text() == _ours():
                os.utime(path)


def _ours() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _created(path: Path) -> bool:
    """Creates the lock with its content in one step, unless it is there; linking is atomic on network disks too."""
    with _file_of_ours(path) as whole:
        try:
            os.link(whole, path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _file_of_ours(path):
    whole = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        whole.write_text(_ours())
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def _taken_over(path: Path) -> bool:
    """Makes a stale lock ours; False if it has gone meanwhile. Of several that try, the kernel lets one in after the other."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            holder = _holder(file.read())
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return False
            host, pid = holder or ("a host that cannot be told", "?")
            if host == socket.gethostname():
                if _alive(pid):
                    raise Held(f"process {pid} on {host} is at it")
            elif _untouched(path) < STALE:
                raise Held(f"process {pid} on {host} is at it; if it is gone, {path} is free in {STALE / 60:.0f} minutes")
            file.seek(0)
            file.write(_ours())
            file.truncate()
    except FileNotFoundError:
        return False
    return True


def _untouched(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its disk: those of hosts differ."""
    with _file_of_ours(path) as now:
        return now.stat().st_mtime - path.stat().st_mtime


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
