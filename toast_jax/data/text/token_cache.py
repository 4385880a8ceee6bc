"""Cache the tokens of large files of text, so that they are encoded once and no process copies them.

The cache is `toast_jax/text` in $XDG_CACHE_HOME or ~/.cache. An entry is a folder with an `.npy` file for each array and their
checksums. Its name is a hash of everything its arrays depend on, so an entry is never stale. It may be removed at any time.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from toast_jax import package_files
from toast_jax.data.text import tokenizer
from toast_jax.data.text.sequences import Sequences, mapped

log = logging.getLogger(__name__)

MIN_BYTES = 2**24  # smaller files are encoded in seconds
_VERSION = 1  # to increase when the same text and fields give other arrays
_CHECKSUMS = "checksums.json"


def cached(text: str, words: str, fields: Sequence, make: Callable[[], Sequences]) -> Sequences:
    """Return the sequences of a text as memory-mapped arrays, from the cache if they are there.

    A text smaller than `MIN_BYTES` is not cached. If the cache cannot be written, the sequences stay in memory.

    Args:
      text: path of the file; its size and the time of its last change identify its content.
      words: path of the tokenizer, whose content is hashed.
      fields: everything else that the sequences depend on, as JSON.
      make: makes the sequences.
    """
    file = Path(text).expanduser()
    if not file.is_file() or file.stat().st_size < MIN_BYTES:
        return make()
    folder = _folder(file, tokenizer.file_of(words), fields)
    if entry := _opened(folder):
        log.info("The tokens of %s are in the cache, %s.", file, folder)
        return entry
    sequences = make()
    try:
        return _saved(sequences, folder) or sequences
    except OSError as error:
        log.warning("The tokens of %s are not cached (%s).", file, error)
        return sequences


def _folder(text, words, fields):
    state = text.stat()
    content = hashlib.sha256(words.read_bytes()).hexdigest()
    identity = [_VERSION, str(text.resolve()), state.st_size, state.st_mtime_ns, content, *fields]
    cache = package_files.cache_folder("text")
    return cache / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _opened(folder: Path) -> Sequences | None:
    """Open an entry, or return None if it does not exist or is damaged."""
    try:
        sequences, checksums = mapped(folder), json.loads((folder / _CHECKSUMS).read_text())
    except (OSError, ValueError, EOFError):
        return None
    return sequences if checksums == _checksums(sequences) else None


def _checksums(sequences):
    return {name: zlib.crc32(np.ascontiguousarray(array)) for name, array in _arrays(sequences).items()}


def _arrays(sequences):
    return {field.name: getattr(sequences, field.name) for field in dataclasses.fields(sequences)}


def _saved(sequences: Sequences, folder: Path) -> Sequences | None:
    """Write an entry under another name and rename it, so that other processes see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    damaged = draft.with_name(f"{draft.name}.damaged")
    try:
        for name, array in _arrays(sequences).items():
            np.save(draft / f"{name}.npy", array, allow_pickle=False)
        (draft / _CHECKSUMS).write_text(json.dumps(_checksums(sequences)))
        if not _opened(folder):  # else another process was faster
            with contextlib.suppress(OSError):
                folder.rename(damaged)
            with contextlib.suppress(OSError):
                draft.rename(folder)
    finally:
        for remains in (draft, damaged):
            shutil.rmtree(remains, ignore_errors=True)
    return _opened(folder)
