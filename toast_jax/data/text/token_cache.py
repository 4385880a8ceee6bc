"""Cache the tokens of large files of text, so that they are encoded once and no process copies them.

The cache is `toast_jax/text` in $XDG_CACHE_HOME or ~/.cache. An entry is a folder with an `.npy` file for each array, their
checksums, and a hash of all arrays for fingerprints of runs. Its name is a hash of everything its arrays depend on, so an entry
is never stale. It may be removed at any time.

Opening an entry reads neither the text nor the entry as a whole. A text is identified by its size, the time of its last change
and evenly spaced blocks; an entry is verified by the sizes of its files and evenly spaced blocks.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toast_jax import package_files
from toast_jax.data.text import token_parts, tokenizer
from toast_jax.data.text.sequences import DIGEST, Sequences, mapped
from toast_jax.data.text.token_parts import Hosts, Text
from toast_jax.errors import InputError

log = logging.getLogger(__name__)

MIN_BYTES = 2**24  # smaller files are encoded in seconds
_VERSION = 2  # to increase when the same text and fields give other arrays
_CHECKSUMS = "checksums.json"
_MAX_IN_MEMORY = 2**30  # bytes of a text
_BLOCK, _BLOCKS = 2**20, 64  # bytes, and how many of a file are read at most


class Packing(NamedTuple):
    """How to pack a plain text that may not fit in memory: by several processes, and by hosts that share the cache."""

    text: Text
    length: int
    processes: int = 0
    hosts: Hosts = Hosts()

    def write(self, parts: Path, draft: Path) -> None:
        """Write packed sequences to the folder `draft`; unfinished work stays in the folder `parts`.

        The first host writes for all: others return as soon as the entry exists.
        """
        entry = parts.with_suffix("")
        files = token_parts.tokenize(self.text, parts, self.processes, self.hosts, entry.exists)
        if files and not (self.hosts.number and self.hosts.wait(parts, entry.exists, [0])):
            token_parts.pack(files, self.text.most, self.length, draft)


def cached(text: str, words: str, fields: Sequence, make: Callable[[], Sequences], packing: Packing | None = None) -> Sequences:
    """Return the sequences of a text as memory-mapped arrays, from the cache if they are there.

    A text smaller than `MIN_BYTES` is not cached. If the cache cannot be written, the sequences stay in memory.

    Args:
      text: path of the file; its size, the time of its last change and blocks of it identify its content, so it may be moved.
      words: path of the tokenizer, whose content is hashed.
      fields: everything else that the sequences depend on, as JSON.
      make: makes the sequences in memory.
      packing: how to make the same sequences without holding them in memory, or None.

    Raises:
      InputError: as of `make`; or a text of more than 1 GB cannot be cached.
    """
    file = Path(text).expanduser()
    if not file.is_file() or file.stat().st_size < MIN_BYTES:
        return make()
    folder = _folder(file, tokenizer.file_of(words), fields)
    if entry := _opened(folder):
        log.info("The tokens of %s are in the cache, %s.", file, folder)
        return entry
    sequences = None if packing else make()
    parts = folder.with_name(f"{folder.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not _opened(folder):
            folder.rename(tempfile.mkdtemp(prefix="damaged.", dir=parts))
        with packing.hosts.at_work(parts) if packing else contextlib.nullcontext():
            _save(lambda draft: packing.write(parts, draft) if packing else _write(sequences or make(), draft), parts, folder)
    except OSError as error:
        if not (entry := _opened(folder)):  # else another process was faster, and has removed the parts
            if packing and file.stat().st_size > _MAX_IN_MEMORY:
                raise InputError(
                    f"The tokens of {file} cannot be written to the cache {folder.parent} ({error}); free some space, or set "
                    "the environment variable XDG_CACHE_HOME to a folder on a larger disk."
                ) from error
            log.warning("The tokens of %s are not cached (%s).", file, error)
    shutil.rmtree(parts, ignore_errors=True)
    return _opened(folder) or sequences or make()


def _folder(text, words, fields):
    state = text.stat()
    content, sampled = hashlib.sha256(words.read_bytes()).hexdigest(), hashlib.sha256(b"".join(_blocks(text)))
    identity = [_VERSION, text.suffix, state.st_size, state.st_mtime_ns, sampled.hexdigest(), content, *fields]
    cache = package_files.cache_folder("text")
    return cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _blocks(file: Path) -> Iterator[bytes]:
    """Read a small file as a whole, and of a large one the first, the last and further blocks, evenly spaced."""
    size = file.stat().st_size
    count = min(_BLOCKS, -(-size // _BLOCK))
    with file.open("rb") as content:
        for start in np.linspace(0, max(0, size - _BLOCK), count).astype(int).tolist():
            content.seek(start)
            yield content.read(_BLOCK)


def _opened(folder: Path) -> Sequences | None:
    """Open an entry, or return None if it does not exist or is damaged."""
    try:
        sequences, checksums = mapped(folder), json.loads((folder / _CHECKSUMS).read_text())
        return sequences if checksums == _checksums(folder) else None
    except (OSError, ValueError, EOFError):
        return None


def _checksums(folder: Path) -> dict[str, list[int]]:
    return {file.stem: [file.stat().st_size, zlib.crc32(b"".join(_blocks(file)))] for file in folder.glob("*.npy")}


def _write(sequences: Sequences, draft: Path) -> None:
    for field in dataclasses.fields(sequences):
        np.save(draft / f"{field.name}.npy", getattr(sequences, field.name), allow_pickle=False)


def _save(write: Callable[[Path], None], parts: Path, folder: Path) -> None:
    """Write an entry among its parts and rename it, so that other processes see all of it or nothing."""
    draft = Path(tempfile.mkdtemp(prefix="draft.", dir=parts))
    try:
        write(draft)
        if not folder.exists():  # else another process or host was faster
            (draft / DIGEST).write_text(mapped(draft).digest())
            (draft / _CHECKSUMS).write_text(json.dumps(_checksums(draft)))
            for file in draft.iterdir():
                _flush(file)
            with contextlib.suppress(OSError):
                draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _flush(file: Path) -> None:
    """Put a file on the disk before its folder is renamed; after a power failure, blocks in between could be empty."""
    with file.open("rb") as content:
        os.fsync(content.fileno())
