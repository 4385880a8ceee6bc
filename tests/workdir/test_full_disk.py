"""A disk that is full, or fails: what is said, what is left, and that a run goes on once there is room."""

import contextlib
import errno
import json
import os
import re
import resource
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests import ROOT
from tests.conftest import tiny_config
from tests.train.test_loop import Killed, final_state, kill_after, losses
from toast_jax import cli
from toast_jax.errors import InputError
from toast_jax.model.backbones.vit import network as vit
from toast_jax.train import checkpoint, feature_cache, loop
from toast_jax.workdir import metrics, run_folder


@contextlib.contextmanager
def room_for(size):
    """Every file of this process ends at so many bytes, as on a full disk; writing on is an OSError, in C++ too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fill_at(monkeypatch, saves, fill):
    """Enters `fill` when so many checkpoints are to be written; it is left at the end of the patch."""
    save, seen, filled = checkpoint.save, [], contextlib.ExitStack()

    def save_on_a_full_disk(checkpoints, *args):
        seen.append(args)
        if len(seen) == saves:
            checkpoints.wait_until_finished()
            filled.enter_context(fill)
        save(checkpoints, *args)

    monkeypatch.setattr(checkpoint, "save", save_on_a_full_disk)
    return filled


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory):
    """What a run left alone comes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "tiny", vit.Size(width=16, depth=3, num_heads=2))
        config, folder = tiny_config(image_folder, "linear"), tmp_path_factory.mktemp("whole")
        loop.fit(config, folder)
        return config, folder, final_state(folder, config)


def assert_goes_on(whole, folder):
    config, left_alone, state = whole
    with checkpoint.manager(folder) as checkpoints:
        assert checkpoints.all_steps() == [3]
    loop.fit(config, folder)
    jax.tree.map(np.testing.assert_array_equal, final_state(folder, config), state)
    assert losses(folder) == losses(left_alone)
    files = {path.name for path in (folder / "checkpoints").iterdir()}
    assert files == {"3", "6"}


# What is cut off: everything; the arrays and the metadata; the largest file alone.
@pytest.mark.parametrize("size", [0, 300, *(pytest.param(size, marks=pytest.mark.slow) for size in range(400, 2400, 100))])
def test_a_checkpoint_that_finds_no_room_ends_the_run_and_it_goes_on_when_there_is(size, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, fill_at(patch, 2, room_for(size)):
        told = (
            rf"No checkpoint can be written in {tmp_path}/checkpoints \(File too large\); those that are there are whole: free"
        )
        with pytest.raises(InputError, match=told):
            loop.fit(whole[0], tmp_path)
    assert not (tmp_path / "running").exists() and not (tmp_path / "result.json").exists()
    assert_goes_on(whole, tmp_path)


def test_a_checkpoint_that_failed_is_told_before_the_next_one(whole, tmp_path, monkeypatch):
    """Which may be hours away."""
    config = whole[0].copy_and_resolve_references()
    config.epochs, config.checkpoint_every, save, saved = 4, 2, checkpoint.save, []

    def save_and_wait(checkpoints, state, meta):
        saved.append(state.step)
        save(checkpoints, state, meta)
        time.sleep(1)  # the loop is faster than the disk

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_wait)
        with fill_at(patch, 1, room_for(300)), pytest.raises(InputError, match="No checkpoint can be written"):
            loop.fit(config, tmp_path)
    assert saved == [6]


def test_numbers_that_find_no_room_are_told_once_and_the_run_goes_on(tmp_path, caplog):
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, {"train/loss": 1.0})
        with room_for(40):
            for step in (2, 3, 4):
                writer.write(step, {"train/loss": 1.0})
                writer.flush()
        writer.write(5, {"train/loss": 1.0})
    assert [one.getMessage() for one in caplog.records] == [
        "Metrics cannot be written (File too large); the run continues without them."
    ]
    steps = [line["step"] for line in metrics._lines(tmp_path / "metrics.jsonl", 5)]
    assert steps[0] == 1 and steps[-1] == 5 and steps == sorted(set(steps))
    assert sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) > 100


def test_numbers_are_not_lost_when_a_run_goes_on_without_room(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(50)))
    before = (tmp_path / "metrics.jsonl").read_text()
    with room_for(100), pytest.raises(InputError, match=r"metrics.jsonl cannot be written \(File too large\): free some space"):
        metrics.Writer(tmp_path, 30)
    assert (tmp_path / "metrics.jsonl").read_text() == before and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_the_old_one_when_the_new_one_finds_no_room(tmp_path):
    run_folder.write_json(tmp_path / "result.json", {"accuracy": 0.5})
    with room_for(4), pytest.raises(InputError, match="result.json cannot be written .*; a run goes on from its last"):
        run_folder.write_json(tmp_path / "result.json", {"accuracy": 0.6})
    assert json.loads((tmp_path / "result.json").read_text()) == {"accuracy": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_without_room_for_its_lock_is_told_and_left_empty(tmp_path):
    with room_for(0), pytest.raises(InputError, match=r"run cannot be written \(File too large\): free some space"):
        with run_folder.used_alone(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])
def test_any_task_on_a_disk_that_fails_ends_with_a_sentence(number, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(number, os.strerror(number), "pictures/1.png")

    monkeypatch.setattr(cli.app, "run", full)
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.cli()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: pictures/1.png cannot be written ({os.strerror(number)}): free")


@pytest.mark.parametrize(
    "write, told",
    [
        (lambda folder: (folder / "folder").write_text(""), "error: {}/folder is a folder, where a file is needed: move"),
        (lambda folder: (folder / "file").mkdir(), "error: {}/file is a file, where a folder is needed: move it away"),
        (lambda folder: (folder / "file/1.png").write_text(""), "error: {}/file/1.png is in no folder, as a part of "),
        (lambda folder: (folder / "folder").mkdir(), "Traceback (most recent call last)"),
    ],
)
def test_any_task_whose_file_finds_something_else_ends_with_a_sentence(write, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cli.app, "run", lambda *_, **__: write(tmp_path))
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit):
        cli.cli()
    assert capsys.readouterr().err.startswith(told.format(tmp_path))


def test_another_error_of_the_system_keeps_its_traceback(monkeypatch, capsys):
    def missing(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "x")

    monkeypatch.setattr(cli.app, "run", missing)
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit, match="1"):
        cli.cli()
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path]).returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@contextlib.contextmanager
def full_but_for(disk, size):
    file = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(file, bytes(4096))
    os.truncate(file, os.fstat(file).st_size - size)
    os.close(file)
    yield
    os.remove(disk / "filler")


def test_a_file_of_first_looks_has_its_room_before_it_is_written(small_disk, monkeypatch):
    """Else the process is ended by a signal when the disk is full, and says nothing."""
    monkeypatch.setattr(feature_cache, "_free_memory", lambda: 0)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**40))
    shape = {"tokens": ((3, 2**20), np.dtype(np.uint8))}
    assert feature_cache._room(shape, small_disk) is None
    assert feature_cache._room({"tokens": ((1, 2**20), np.dtype(np.uint8))}, small_disk)["tokens"].shape == (1, 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("pages", range(12))
def test_a_real_disk_that_is_full(pages, whole, small_disk, monkeypatch):
    with monkeypatch.context() as patch, fill_at(patch, 2, full_but_for(small_disk, 4096 * pages)):
        with pytest.raises(InputError, match=r"^(No checkpoint|.*) can(not)? be written .*\(No space left on device\)"):
            loop.fit(whole[0], small_disk / "run")
    assert_goes_on(whole, small_disk / "run")


@pytest.mark.slow
def test_a_command_whose_disk_fills_ends_with_a_sentence_and_goes_on(image_folder, small_disk):
    """By its own checkpoints and numbers, while it runs; then there is room for the rest."""
    flags = [
        "--config=configs/folder.py:method=linear,backbone=vit_ti16",
        f"--workdir={small_disk / 'run'}",
        f"--config.data.root={image_folder}",
        "--config.backbone.weights=random",
        *("--config.data.image_size=16", "--config.data.resize=18", "--config.batch_size=8", "--config.warmup_epochs=0"),
        *("--config.epochs=60", "--config.eval_every=60", "--config.checkpoint_every=1", "--config.log_every=1"),
    ]
    room = 2_000_000 - 120_000
    (small_disk / "filler").write_bytes(bytes(room))
    for _ in range(2):
        done = subprocess.run([sys.executable, "main.py", *flags], capture_output=True, text=True, cwd=ROOT, timeout=300)
        if done.returncode == 2:
            (small_disk / "filler").unlink()
            *_, last = done.stderr.splitlines()
            assert re.match(
                r"error: (No checkpoint|.*) can(not)? be written .*\(No space left on device\).*free some space", last
            )
            assert "Traceback" not in done.stderr + done.stdout
            with checkpoint.manager(small_disk / "run") as checkpoints:
                assert len(checkpoints.all_steps()) >= 1
    assert done.returncode == 0 and not (small_disk / "filler").exists(), done.stderr
    assert len(losses(small_disk / "run")) == 180


@pytest.mark.slow
def test_a_disk_that_became_read_only(whole, small_disk, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, saves=1)
        with pytest.raises(Killed):
            loop.fit(whole[0], small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match="run cannot be written .*; give another --workdir"):
        loop.fit(whole[0], small_disk / "run")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert_goes_on(whole, small_disk / "run")


def test_of_several_writes_that_fail_none_leaves_a_traceback():
    """Orbax raises the error of one of them; asyncio would print the others after the sentence that ends the command."""
    code = """if True:
        import asyncio, gc
        from toast_jax import cli
        cli._set_logging()

        async def fail(error):
            raise error

        async def main():
            words = "RESOURCE_EXHAUSTED: Failed to write 174 bytes: No space left on device [os_error_code='28']"
            tasks = [asyncio.create_task(fail(error)) for error in (ValueError(words), KeyError("another fault"))]
            await asyncio.sleep(0)

        asyncio.run(main())
        gc.collect()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0 and "another fault" in done.stderr and "No space left" not in done.stderr, done.stderr
