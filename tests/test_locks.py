"""Locks: one process at a time, whoever died."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from toast_jax import locks


def write(path, **facts):
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), **facts}))


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


def test_live_process_keeps_it(tmp_path):
    path = tmp_path / "lock"
    write(path)
    before = path.read_text()
    with pytest.raises(locks.Held, match=f"process {os.getppid()} on {socket.gethostname()} is at it; .* remove {path}"):
        with locks.lock(path):
            pass
    assert path.read_text() == before


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "lock"
    for pid in (dead_pid(), os.getpid()):  # ours: a container that was started anew numbers its processes alike
        write(path, pid=pid, more="x" * 100)
        with locks.lock(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()


def test_another_hosts_lock_is_respected(tmp_path):
    path = tmp_path / "lock"
    write(path, host="elsewhere", pid=dead_pid())
    with pytest.raises(locks.Held, match="on elsewhere is at it; if that process is gone, remove"), locks.lock(path):
        pass
    path.write_text("{")
    with pytest.raises(locks.Held, match=f"cannot be told is at it; if there is none, remove {path}"), locks.lock(path):
        pass


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
    monkeypatch.setattr(locks, "_alive", lambda pid: pid == os.getpid())
    with locks.lock(path):
        thread.join()
        assert outcome == ["held"]
