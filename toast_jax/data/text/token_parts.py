"""Tokenize a large text in parts, by several processes and hosts, and pack the tokens into files.

A part is a range of a `.jsonl` or `.parquet` file (`documents.parts_of`), or another file as a whole. The ranges depend on the
text alone, so the tokens do not depend on the number of processes. The tokens of a part are written to a file, which is renamed
once complete: an interrupted run resumes with the missing parts. A process holds one part in memory at a time.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from toast_jax.data.text import documents, sequences
from toast_jax.data.text.documents import Part
from toast_jax.data.text.tokenizer import Tokenizer
from toast_jax.errors import InputError

log = logging.getLogger(__name__)

PART = 2**24  # bytes of text
MAX_PROCESSES = 8  # by default; each takes about 150 MB
_LOG_EVERY = 15.0  # seconds
_SILENT = 60.0  # seconds without a heartbeat after which the other hosts stop waiting for a host


class Text(NamedTuple):
    """A file of documents to tokenize.

    Attributes:
      file: `.jsonl`, `.parquet`, or another that is one part.
      read: a value of `documents.FORMATS` that makes documents of a record.
      words: the tokenizer.
      most: number of documents to read; 0 for all.
    """

    file: Path
    read: Callable
    words: Tokenizer
    most: int = 0


class Hosts(NamedTuple):
    """The hosts that share the folder of the parts, and the number of this host.

    Each host touches a file of its own as a heartbeat. The others stop waiting for a host whose file is a minute old, or is
    missing because the folder is not shared, and take over its parts.
    """

    number: int = 0
    total: int = 1

    @contextlib.contextmanager
    def at_work(self, folder: Path) -> Iterator[None]:
        """Send heartbeats to the other hosts inside the block."""
        ended = threading.Event()

        def beat():
            while self.total > 1:
                with contextlib.suppress(OSError):  # the folder is removed when all is done
                    (folder / f"host{self.number}").touch()
                if ended.wait(_SILENT / 6):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def wait(self, folder: Path, ready: Callable[[], bool], others: Iterable[int]) -> bool:
        """Wait until `ready()`; return False once none of the other hosts has a heartbeat."""
        heartbeats = [folder / f"host{number}" for number in others if number != self.number]
        began = time.time()
        while not ready():
            last = max((file.stat().st_mtime for file in heartbeats if file.exists()), default=0.0)
            if not heartbeats or time.time() - max(last, began) > _SILENT:
                return False
            time.sleep(0.2)
        return True


class _Made(NamedTuple):
    """Counts documents and omitted records of a part, and says whether it has lines that are not JSON or an invalid record."""

    documents: int
    left_out: int
    malformed: bool
    wrong: bool


def tokenize(text: Text, folder: Path, processes: int, hosts: Hosts, obsolete: Callable[[], bool]) -> list[Path]:
    """Tokenize the parts that are missing from a folder.

    Hosts that share the folder take every n-th part each, and then wait for one another.

    Args:
      processes: 0 for one per core, at most `MAX_PROCESSES`. They start without JAX.
      obsolete: returns whether another host has already packed the parts, and may have removed them.

    Returns:
      the files of the parts up to the last document to read; nothing if they are obsolete.

    Raises:
      InputError: as of `documents.stream`; or a process was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = documents.parts_of(text.file, PART)
    files = [folder / f"{number:06}.npz" for number in range(len(parts))]
    prefix = _Prefix(files, text.most)
    processes = max(1, min(processes or min(os.cpu_count() or 1, MAX_PROCESSES), len(parts)))

    def make(numbers: Iterable[int]) -> None:
        missing = (number for number in numbers if not files[number].exists())
        tasks = ((parts[number], files[number]) for number in missing if not prefix.complete())
        with _Progress(text, len(parts), prefix) as progress:
            for part in _finished(text, tasks, processes):
                progress.count(part)

    make(range(hosts.number, len(parts), hosts.total))
    if not hosts.wait(folder, lambda: obsolete() or prefix.complete(), range(hosts.total)):
        make(range(len(parts)))
        prefix.complete()
    return [] if obsolete() else prefix.checked(text)


class _Prefix:
    """Counts the finished parts from the first one on, up to a gap or the part with the last document to read."""

    def __init__(self, files: list[Path], most: int):
        self._files, self._most = files, most
        self.made: list[_Made] = []
        self._documents = 0

    def complete(self) -> bool:
        """Return whether no part is missing before the last document to read, or before an invalid record."""
        while not self._ended() and len(self.made) < len(self._files) and self._files[len(self.made)].exists():
            with np.load(self._files[len(self.made)]) as part:
                self.made.append(_Made(*part["made"].tolist()))
            self._documents += self.made[-1].documents
        return self._ended() or len(self.made) == len(self._files)

    def _ended(self):
        return bool(self.made) and (self.made[-1].wrong or bool(self._most) and self._documents >= self._most)

    def checked(self, text: Text) -> list[Path]:
        """Return the files of the parts; raise the InputError that reading all records in turn raises."""
        enough = bool(self._most) and self._documents >= self._most
        if not self._documents or not enough and any(made.wrong or made.malformed for made in self.made):
            fault = _fault(self._files[len(self.made) - 1]) if self.made else ""
            shutil.rmtree(self._files[0].parent if self._files else "", ignore_errors=True)
            if fault:
                raise InputError(fault)
            for _ in documents.stream(str(text.file), text.read, text.most):
                pass
            raise InputError(f"The text {text.file} has changed while it was read; start again.")
        if left_out := sum(made.left_out for made in self.made):
            log.warning(documents.LEFT_OUT, text.file, left_out)
        return self._files[: len(self.made)]


def _finished(text: Text, tasks: Iterator[tuple[Part, Path]], processes: int) -> Iterator[Part]:
    """Make parts in processes, and yield each finished part; a task is drawn when a process is free."""
    if processes == 1:
        for part, file in tasks:
            _make_part(text, part, file)
            yield part
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads and locks of JAX
    stop = context.Event()
    with concurrent.futures.ProcessPoolExecutor(processes, context, _begin, (text, stop)) as pool:
        running: dict[concurrent.futures.Future, Part] = {}
        try:
            while True:
                for part, file in itertools.islice(tasks, processes - len(running)):
                    running[pool.submit(_make_part_of_process, part, file)] = part
                if not running:
                    return
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool as error:
            raise InputError(
                f"A process that tokenized {text.file} was killed, as happens when memory runs out; set --config.data.workers "
                f"to less than {processes} and start again, which keeps the finished parts."
            ) from error
        finally:
            stop.set()  # after Ctrl-C or an error, the pool waits for its processes


_of_process: tuple[Text, multiprocessing.synchronize.Event]  # sent once to each worker, with the tokenizer


def _begin(text: Text, stop: multiprocessing.synchronize.Event) -> None:
    global _of_process
    _of_process = text, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent sets `stop`
    # A parent that is killed cannot set it, and its workers would wait forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _make_part_of_process(part: Part, file: Path) -> None:
    text, stop = _of_process
    _make_part(text, part, file, stop.is_set)


def _make_part(text: Text, part: Part, file: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write the tokens of a part, which tokens are learned, and the number of tokens of each document, unless `stopped()`."""
    tokens, answers, sizes = array("i"), bytearray(), array("q")
    left_out, malformed, wrong, fault = 0, False, False, ""
    try:
        for place, record in documents.records(text.file, part):
            if stopped():
                return
            made = documents.made_of(text.file, place, record, text.read)
            left_out += not made
            for document in made:
                try:
                    ids, flags = sequences.encode(document, text.words)
                except InputError as error:
                    fault = str(error)
                    raise
                tokens.extend(ids)
                answers.extend(flags)
                sizes.append(len(ids))
    except documents.NotJson:  # an error only if the text is read to its end
        malformed = True
    except InputError:
        wrong = True
    counts = np.array(_Made(len(sizes), left_out, malformed, wrong))
    learned = np.array(answers, np.uint8).view(bool)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    with draft.open("wb") as content:
        np.savez(content, tokens=_narrow(tokens, text.words), answers=learned, sizes=np.array(sizes), made=counts, fault=fault)
        content.flush()
        os.fsync(content.fileno())  # else it could be empty after a power failure
    draft.replace(file)


def _fault(part: Path) -> str:
    """Return why the tokenizer refused a document of a part, or ""."""
    with np.load(part) as content:
        return str(content["fault"])


def _narrow(tokens: array, words: Tokenizer) -> np.ndarray:
    return np.array(tokens, np.uint16 if words.vocabulary <= 2**16 else np.int32)


def pack(files: Sequence[Path], most: int, length: int, folder: Path) -> None:
    """Write packed sequences of the parts to a folder, which `sequences.mapped` opens; see `sequences.packed`.

    Raises:
      InputError: there is not enough text for one sequence.
    """
    sizes: list[np.ndarray] = []
    for file in files:
        with np.load(file) as part:
            sizes.append(part["sizes"][: most - sum(map(len, sizes)) if most else None])
    count = sum(int(part.sum()) for part in sizes)
    rows = sequences.rows_of(count, length)
    ends = np.cumsum(np.concatenate(sizes))
    np.save(folder / "starts.npy", np.concatenate([[0], ends[:-1]]))
    for name in ("tokens", "answers"):
        left = rows * length
        with (folder / f"{name}.npy").open("wb") as target:
            for number, file in enumerate(files):
                with np.load(file) as part:
                    values = part[name]
                if not number:
                    header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(target, {**header, "shape": (rows, length)})
                target.write(values[:left].tobytes())  # a mapped array would count as memory of this process
                left -= min(left, len(values))


class _Progress:
    """Shows how much of a text is tokenized: a bar in a terminal, a line in the log every 15 seconds elsewhere."""

    def __init__(self, text: Text, parts: int, prefix: _Prefix):
        self._text, self._parts, self._prefix = text, parts, prefix
        self._done = self._bytes = 0
        self._began = self._logged = time.monotonic()
        self._bar = None

    def __enter__(self):
        shown = f"Tokenizing {self._text.file.name}"
        if sys.stdout.isatty():
            size = self._text.file.stat().st_size
            options = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "leave": False}
            self._bar = tqdm(total=None if self._text.most else size, desc=shown, file=sys.stdout, **options)
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def count(self, part: Part) -> None:
        self._done, self._bytes = self._done + 1, self._bytes + part.size
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(part.size)
        elif now - self._logged > _LOG_EVERY:
            self._logged = now
            speed = self._bytes / 1e6 / (now - self._began)
            log.info("Tokenizing %s: %d parts of at most %d, %.1f MB/s.", self._text.file, self._done, self._parts, speed)
