"""Locks: one process at a time, whoever died."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import ROOT
from toast_jax.errors import InputError
from toast_jax.workdir import locks, run_folder

HOLD = """
import os, sys
from toast_jax.workdir import locks, run_folder
pid = int(sys.argv[2])
if pid:
    os.getpid = lambda: pid
with locks.lock(sys.argv[1]):
    print(pid or os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(path, pid=0):
    """Another process holds a lock inside the block; it says that its number is `pid`, as in a container of its own."""
    command = [sys.executable, "-c", HOLD, str(path), str(pid)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.kill()


def write(path, **facts):
    """Puts a lock file in place as a process does that takes a stale one over: as a new file."""
    other = path.with_name("other")
    other.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), **facts}))
    other.replace(path)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_names_its_holder_and_goes_with_the_block(tmp_path):
    path = tmp_path / "run/lock"
    with locks.lock(path):
        assert json.loads(path.read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
        assert [one.name for one in path.parent.iterdir()] == ["lock"]
    assert not path.exists()
    with pytest.raises(ValueError), locks.lock(path):
        raise ValueError
    assert not path.exists()


def assert_held(path, pid, host=None):
    before = path.read_text()
    with pytest.raises(locks.Held, match=f"^process {pid} on {host or socket.gethostname()} is at it$"), locks.lock(path):
        pass
    assert path.read_text() == before and [one.name for one in path.parent.iterdir()] == ["lock"]


def test_live_process_keeps_it(tmp_path):
    path = tmp_path / "lock"
    with held_elsewhere(path) as pid:
        assert_held(path, pid)
    with locks.lock(path):  # it was killed
        pass


def test_containers_that_share_host_name_and_process_number_keep_their_locks(tmp_path):
    """Each process of a container is number 1 in it, and containers may be given one host name."""
    path = tmp_path / "lock"
    with held_elsewhere(path, pid=os.getpid()):
        assert_held(path, os.getpid())


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "lock"
    for pid in (dead_pid(), os.getpid()):  # ours: a container that was started anew numbers its processes alike
        write(path, pid=pid, more="x" * 100)
        with locks.lock(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()


def untouched_for(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("text", [None, "{"])
def test_another_hosts_lock_is_respected_while_it_is_touched(text, tmp_path):
    path = tmp_path / "lock"
    write(path, host="elsewhere", pid=dead_pid())
    if text:
        path.write_text(text)
    untouched_for(path, locks.STALE - 20)
    host = "elsewhere" if text is None else "a host that cannot be told"
    with pytest.raises(locks.Held, match=f"on {host} is at it; if it is gone, {path} is free in 5 minutes"), locks.lock(path):
        pass
    untouched_for(path, locks.STALE + 20)
    with locks.lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_live_process_of_this_host_keeps_its_lock_however_long(tmp_path):
    path = tmp_path / "lock"
    with held_elsewhere(path) as pid:
        untouched_for(path, 10 * locks.STALE)
        assert_held(path, pid)


def test_where_the_kernel_locks_no_files_the_touches_decide(tmp_path, monkeypatch):
    def unsupported(fd, blocking):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(locks.filelock, "lock_descriptor", unsupported)
    path = tmp_path / "lock"
    write(path)
    with pytest.raises(locks.Held, match="is free in 5 minutes"), locks.lock(path):
        pass
    untouched_for(path, locks.STALE + 20)
    with locks.lock(path), pytest.raises(locks.Held), locks.lock(path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "function", "number", "refused"),
    [
        (locks.os, "link", errno.EPERM, "hard links .Operation not permitted."),
        (locks.os, "link", errno.ENOTSUP, "hard links .Operation not supported."),
        (locks.filelock, "lock_descriptor", errno.EPERM, "file locks .Operation not permitted."),
    ],
)
def test_a_mounted_bucket_is_refused_by_what_it_lacks(module, function, number, refused, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, function, refuse)
    remedy = "a run needs them to keep other runs out; give a folder on a local or network disk"
    with pytest.raises(InputError, match=f"The disk of {tmp_path} refuses {refused}, .* {remedy}"):
        with run_folder.used_alone(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module, function, lambda *args, **kwargs: refuse_as_full())
    with pytest.raises(InputError, match="cannot be written .No space left on device.: free some space"):
        with run_folder.used_alone(tmp_path):
            pass


def refuse_as_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_lock_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    path = tmp_path / "lock"
    with locks.lock(path):
        untouched_for(path, 1000)
        wait_until(lambda: time.time() - path.stat().st_mtime < 100)
        write(path)  # it was taken over
        untouched_for(path, 1000)
        time.sleep(0.1)
        assert time.time() - path.stat().st_mtime > 900
    assert threading.active_count() == 1 or not any(one.name.endswith("(_touch)") for one in threading.enumerate())


def wait_until(condition, seconds=10):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.01)


def test_a_lock_that_was_given_to_another_is_not_removed(tmp_path):
    path = tmp_path / "lock"
    with locks.lock(path):
        write(path)
    assert path.exists()


def test_of_two_that_find_a_stale_lock_one_gets_it(tmp_path, monkeypatch):
    """The second one looks while the first is between reading the lock and making it its own."""
    path, outcome, read = tmp_path / "lock", [], locks._holder
    write(path, pid=dead_pid())

    def second():
        try:
            with locks.lock(path):
                outcome.append("taken")
        except locks.Held:
            outcome.append("held")

    thread = threading.Thread(target=second)

    def slowly(text):
        if thread.ident is None:
            thread.start()
            thread.join(timeout=0.3)
        return read(text)

    monkeypatch.setattr(locks, "_holder", slowly)
    with locks.lock(path):
        thread.join()
        assert outcome == ["held"]


def test_files_that_several_processes_replace_at_once_are_whole(tmp_path, monkeypatch):
    """As `sweep.json` by the shards of a sweep; the last one counts."""
    replace, others = Path.replace, [{"by": "another"}]

    def after_another(partial, path):
        if others:
            run_folder.write_json(tmp_path / "sweep.json", others.pop())
            assert json.loads(path.read_text()) == {"by": "another"}
        return replace(partial, path)

    monkeypatch.setattr(Path, "replace", after_another)
    run_folder.write_json(tmp_path / "sweep.json", {"by": "this"})
    assert json.loads((tmp_path / "sweep.json").read_text()) == {"by": "this"}
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
