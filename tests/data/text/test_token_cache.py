"""Cached tokens: mapped instead of read, made again when stale or damaged, and written by several processes at once."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests import ROOT
from toast_jax.data.text import batches, token_cache
from toast_jax.data.text.sequences import Sequences

ARRAYS = (np.arange(600, dtype=np.int32).reshape(20, 30), np.ones((20, 30), np.int32), np.arange(600).reshape(20, 30) % 2 == 0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A text and a tokenizer, which are small but cached."""
    monkeypatch.setattr(token_cache, "MIN_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text, words = tmp_path / "text.jsonl", tmp_path / "tokenizer.json"
    text.write_text('{"text": "a"}')
    words.write_text("{}")
    return text, words


def arrays_of(source):
    return source.tokens, source.segments, source.answers


def opened(files, *fields):
    """The sequences, and whether they had to be made."""
    made = []
    sequences = token_cache.cached(*map(str, files), fields, lambda: made.append(1) or Sequences(*ARRAYS))
    for ours, expected in zip(arrays_of(sequences), ARRAYS, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)
    return sequences, bool(made)


def entries(files):
    return sorted((files[0].parent / "cache" / "toast_jax" / "text").iterdir())


def test_tokens_are_made_once_and_mapped(files):
    first, second = opened(files), opened(files)
    assert (first[1], second[1]) == (True, False) and len(entries(files)) == 1
    assert all(isinstance(array, np.memmap) for made in (first, second) for array in arrays_of(made[0]))
    assert not any(array.flags.writeable for array in arrays_of(second[0]))
    for i in (0, -1):
        assert {name: type(value) for name, value in second[0][i].items()}["tokens"] is np.ndarray
        for name, value in Sequences(*ARRAYS)[i].items():
            np.testing.assert_array_equal(second[0][i][name], value)


def test_worker_processes_map_the_same_files(files):
    source, _ = opened(files)
    content = pickle.dumps(source)
    assert len(content) < 500 < ARRAYS[0].nbytes
    assert isinstance(pickle.loads(content).answers, np.memmap)
    batch = next(batches.eval_batches(source, batch_size=4))
    np.testing.assert_array_equal(batch["tokens"], ARRAYS[0][:4])
    in_memory = pickle.loads(pickle.dumps(Sequences(*ARRAYS)))
    np.testing.assert_array_equal(in_memory.tokens, ARRAYS[0])


@pytest.mark.parametrize("stale", ["size", "time", "tokenizer", "fields", "format"])
def test_an_entry_is_of_one_text_tokenizer_and_fields(files, stale):
    text, words = files
    state = text.stat()
    opened(files, 512)
    if stale == "size":
        text.write_text('{"text": "ab"}')
        os.utime(text, ns=(state.st_atime_ns, state.st_mtime_ns))
    if stale == "time":
        os.utime(text, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    if stale == "tokenizer":
        words.write_text("[]")
    if stale == "format":  # that a name states
        files = text.rename(text.with_suffix(".txt")), words
    fields = (256,) if stale == "fields" else (512,)
    assert [opened(files, *fields)[1] for _ in range(2)] == [True, False]


@pytest.mark.parametrize("name", ["tokens.npy", "segments.npy", "answers.npy", "checksums.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "missing"])
def test_a_damaged_entry_is_made_again(files, name, damage):
    opened(files)
    path = entries(files)[0] / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"changed": content[:-1] + b"\x02", "cut": content[:-1], "empty": b""}[damage])
    assert [opened(files)[1] for _ in range(2)] == [True, False]
    assert len(entries(files)) == 1


def test_an_entry_is_never_unpickled(files):
    opened(files)
    path = entries(files)[0]
    np.save(path / "tokens.npy", np.array([print], object), allow_pickle=True)
    assert opened(files)[1]


def test_tokens_stay_in_memory_where_the_cache_cannot_be_written(files, monkeypatch, caplog):
    caplog.set_level("WARNING", "toast_jax")
    full = lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    monkeypatch.setattr(np, "save", full)
    source, made = opened(files)
    assert made and not isinstance(source.tokens, np.memmap) and not entries(files)
    assert "are not cached ([Errno 28] No space left on device)" in caplog.text


def test_small_texts_are_not_cached(files, monkeypatch):
    monkeypatch.setattr(token_cache, "MIN_BYTES", 1000)
    assert opened(files)[1] and opened(files)[1]
    assert not (files[0].parent / "cache").exists()


PROCESS = """
import sys, time
import numpy as np
from toast_jax.data.text import token_cache
from toast_jax.data.text.sequences import Sequences

def make():
    print("made", flush=True)
    sys.stdin.readline()
    return Sequences(*(np.full((50, 100), 7, dtype) for dtype in (np.int32, np.int32, bool)))

token_cache.MIN_BYTES = 1
source = token_cache.cached(*sys.argv[1:], [], make)
print(type(source.tokens).__name__, int(source.tokens.sum()))
"""


def test_two_processes_that_make_the_same_tokens_at_once(files):
    command = [sys.executable, "-c", PROCESS, *map(str, files)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["made\n"] * 2  # neither finds an entry
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["memmap 35000\n"] * 2
    (entry,) = entries(files)
    assert set(json.loads((entry / "checksums.json").read_text())) == {"tokens", "segments", "answers"}
