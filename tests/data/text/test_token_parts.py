"""Texts tokenized in parts: the tokens of one process and of memory, whoever makes them and however often that stops."""

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from tests import ROOT
from tests.words import Words, plain_without_jax
from toast_jax.data.text import documents, sequences, token_cache, token_parts
from toast_jax.data.text.sequences import Segments, Sequences
from toast_jax.data.text.token_parts import Hosts, Text
from toast_jax.errors import InputError

LENGTH, SIZE = 16, 400  # of a sequence in tokens, of a part in bytes
TEXTS = [f"{i} " + "cat sat on " * (i % 5) + "\n" * (i % 2) for i in range(40)]
TEXTS[7] = ""  # left out
# Characters that end a line for str.splitlines.
LINES = [json.dumps({"text": text, "note": "a\u2028b\x85c\x0c"}, ensure_ascii=False) for text in TEXTS]


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text of many small parts, with blank lines, one longer than a part and some that end as on Windows."""
    monkeypatch.setattr(token_parts, "PART", SIZE)
    monkeypatch.setattr(token_cache, "MIN_BYTES", 1)
    monkeypatch.setattr(sequences, "_AT_ONCE", 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [*LINES[:20], "", json.dumps({"text": "d e " * 200}), *LINES[20:]]
    endings = ["\r\n" if i % 7 == 3 else "\n" for i in range(len(lines))]
    content = "\ufeff" + "".join(map("".join, zip(lines, endings, strict=True)))
    (tmp_path / "text.jsonl").write_bytes(content.encode())
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path / "text.jsonl"


def in_memory(file, most=0):
    return sequences.packed(documents.stream(str(file), documents.plain, most), Words(), LENGTH)


def cached(file, most=0, processes=1, hosts=Hosts(), read=documents.plain):  # noqa: B008
    packing = token_cache.Packing(Text(file, read, Words(), most), LENGTH, processes, hosts)
    fail = lambda: pytest.fail("read into memory")  # noqa: E731
    return token_cache.cached(str(file), str(file.with_name("tokenizer.json")), [most], fail, packing)


def assert_same(packed, expected):
    assert packed.folder and not expected.folder and len(packed) == len(expected) > 0
    for row in (*range(len(expected)), -1):
        for name, array in expected[row].items():
            np.testing.assert_array_equal(packed[row][name], array)
            assert packed[row][name].dtype == array.dtype
    assert packed.digest() == expected.digest()
    with pytest.raises(IndexError):
        packed[len(expected)]


@pytest.fixture
def made(monkeypatch):
    """The files of parts that were made, by thread."""
    names, make = [], token_parts._make_part
    record = lambda text, part, file: (make(text, part, file), names.append((threading.get_ident(), file.name)))  # noqa: E731
    monkeypatch.setattr(token_parts, "_make_part", record)
    return names


@pytest.mark.parametrize("most", [0, 1, 17, 38, 1000])
def test_parts_have_the_sequences_of_the_whole(text, most, made):
    expected = in_memory(text, most) if most != 1 else None
    if most == 1:  # two tokens
        with pytest.raises(InputError, match="The text has 3 tokens, fewer than one sequence"):
            cached(text, most)
        return
    assert_same(cached(text, most), expected)
    parts = documents.parts_of(text, SIZE)
    assert len(made) == len(parts) > 8 if most in (0, 1000) else len(made) < len(parts)
    assert [entry.suffix for entry in (text.parent / "cache/toast_jax/text").iterdir()] == [""]
    again = cached(text, most)
    assert len(made) == len({*made}) and again.tokens.dtype == np.uint16


def test_rows_of_parquet_files_are_read_in_parts(text, made):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = text.with_suffix(".parquet")
    parquet.write_table(arrow.Table.from_pylist([json.loads(line) for line in LINES]), file, row_group_size=3)
    assert_same(cached(file), in_memory(file))
    assert 3 < len(made) == len(documents.parts_of(file, SIZE))


def test_processes_make_the_same_tokens_and_load_no_jax(text):
    assert_same(cached(text, processes=2, read=plain_without_jax), in_memory(text))


def test_work_that_was_interrupted_resumes(text, made, monkeypatch):
    make = token_parts._make_part

    def interrupted(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        make(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(token_parts, "_make_part", interrupted)
        cached(text)
    assert len(made) == 3
    assert_same(cached(text), in_memory(text))
    assert len(made) == len({*made}) == len(documents.parts_of(text, SIZE))


def test_hosts_share_the_work(text, made):
    parts = len(documents.parts_of(text, SIZE))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda number: cached(text, hosts=Hosts(number, 2)), range(2)))
    assert both[0].folder == both[1].folder
    assert_same(both[1], in_memory(text))
    shares = [{name for thread, name in made if thread == one} for one in {thread for thread, _ in made}]
    assert len(made) == parts and sorted(map(len, shares)) == [parts // 2, -(-parts // 2)]


def test_a_host_that_is_alone_does_all(text, made, monkeypatch):
    monkeypatch.setattr(token_parts, "_SILENT", 0.1)
    assert_same(cached(text, hosts=Hosts(1, 2)), in_memory(text))
    assert len(made) == len(documents.parts_of(text, SIZE))


@pytest.mark.parametrize(
    ("place", "line", "message"),
    [
        (3, '{"text": ', "has 1 lines that are not JSON, the first is line 4"),
        (30, '{"text": 7}', "Line 31 of .*text.jsonl is no record of this --config.data.format"),
        (30, '{"text": "\\ud800"}', "Line 31 of .*text.jsonl has half a character"),
        (30, b'{"text": "\xff"}', "text.jsonl cannot be read .*'utf-8' codec"),
    ],
)
def test_errors_are_those_of_the_whole_up_to_the_limit(text, place, line, message, caplog):
    lines, expected = text.read_bytes().split(b"\n"), in_memory(text, 17)
    text.write_bytes(b"\n".join([*lines[:place], line if isinstance(line, bytes) else line.encode(), *lines[place:]]))
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            cached(text)
    assert not list((text.parent / "cache/toast_jax/text").iterdir())
    assert_same(cached(text, most=17), expected)


def test_a_wrong_record_before_the_limit_is_an_error(text, made):
    lines = text.read_bytes().split(b"\n")
    text.write_bytes(b"\n".join([*lines[:3], b'{"text": 7}', *lines[3:]]))
    with pytest.raises(InputError, match="Line 4 of .*text.jsonl is no record of this"):
        cached(text, most=17)
    assert len(made) == 1


def test_what_a_tokenizer_refuses_is_its_sentence(text, monkeypatch):
    encode = sequences.encode

    def refusing(document, words):
        if documents_with():
            raise InputError("The model has no piece for 'x'; use another tokenizer.")
        return encode(document, words)

    documents_with = iter([False] * 5 + [True] * 10).__next__
    monkeypatch.setattr(sequences, "encode", lambda document, words: refusing(document, words))
    with pytest.raises(InputError, match="The model has no piece for 'x'"):
        cached(text)


def test_lines_belong_to_one_part_each(text):
    expected = [record for _, record in documents.records(text)]
    for size in (*range(3, 90), 10**6):
        parts = documents.parts_of(text, size)
        assert [record for part in parts for _, record in documents.records(text, part)] == expected


def test_empty_records_are_counted_and_a_text_without_any_is_refused(text, caplog):
    caplog.set_level("WARNING", "toast_jax")
    cached(text)
    assert "text.jsonl: 1 records left out (empty" in caplog.text
    text.write_text('{"text": " "}\n' * 99)
    with pytest.raises(InputError, match="has no text to learn from; give another file"):
        cached(text)


def test_a_text_may_be_moved_but_not_changed(text, made):
    cached(text)
    count, state = len(made), text.stat()
    moved = text.with_name("moved.jsonl")
    shutil.move(text, moved)
    cached(moved)
    assert len(made) == count
    content = moved.read_bytes()
    moved.write_bytes(content.replace(b"cat", b"dog", 1))
    os.utime(moved, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert_same(cached(moved), in_memory(moved))
    assert len(made) == 2 * count


def test_blocks_stand_for_large_files_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "_BLOCK", 4)
    monkeypatch.setattr(token_cache, "_BLOCKS", 3)
    for size in range(30):
        (tmp_path / "file").write_bytes(bytes(range(size)))
        seen = b"".join(token_cache._blocks(tmp_path / "file"))
        assert set(seen) == set(range(size)) if size <= 12 else (len(seen), seen[0], seen[-1]) == (12, 0, size - 1)


def test_a_large_text_that_cannot_be_cached_is_refused(text, monkeypatch):
    full = lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    monkeypatch.setattr(token_parts, "pack", full)
    monkeypatch.setattr(token_cache, "_MAX_IN_MEMORY", 100)
    with pytest.raises(InputError, match="cannot be written to the cache .*No space left.*; free some space, or set the env"):
        cached(text)
    monkeypatch.setattr(token_cache, "_MAX_IN_MEMORY", 10**6)
    with pytest.raises(pytest.fail.Exception, match="read into memory"):
        cached(text)


def test_a_process_that_is_killed_is_reported(text, monkeypatch):
    class Killed(concurrent.futures.ThreadPoolExecutor):
        def __init__(self, processes, *_):
            super().__init__(processes)

        def submit(self, *args):
            raise BrokenProcessPool

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Killed)
    with pytest.raises(InputError, match="was killed, as happens when memory runs out; set --config.data.workers to less"):
        cached(text, processes=2)


_KILLED = """
import os, sys, time
from pathlib import Path
from tests import ROOT
from tests.words import Words
from toast_jax.data.text import documents, token_parts


def read(record):
    os.write(1, b"x")
    time.sleep(0.2)
    return []


if __name__ == "__main__":
    token_parts.PART = 10**6
    text = token_parts.Text(Path(sys.argv[1]), read, Words())
    token_parts.tokenize(text, Path(sys.argv[2]), 2, token_parts.Hosts(), lambda: False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(text, tmp_path, signal):
    (tmp_path / "script.py").write_text(_KILLED)
    text.write_bytes(b'{"text": "a"}\n' * 200_000)
    command = [sys.executable, str(tmp_path / "script.py"), str(text), str(tmp_path / "parts")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout.read(8) == 8 * b"x"
    process.send_signal(signal)
    assert len(process.stdout.read()) < 100  # of 200,000 documents; the pipe is closed by the last process that holds it
    assert process.wait()


def test_numbers_of_documents_are_those_of_a_slow_count():
    sizes = [3, 0, 5, 1, 9]
    numbers = Segments(np.cumsum([0, *sizes[:-1]]), 6)
    expected = np.repeat(np.arange(1, 6), sizes).reshape(3, 6)
    np.testing.assert_array_equal(numbers[0:3], expected)
    np.testing.assert_array_equal([numbers[i] for i in range(3)], expected)
    assert numbers[1].dtype == np.int32
    source = Sequences(np.zeros((3, 6), np.int32), numbers, np.ones((3, 6), bool))
    np.testing.assert_array_equal(source[-1]["segments"], expected[2])
