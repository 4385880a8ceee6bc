"""Token sequences of equal length: documents packed together, or one per row.

Letters in shapes: N tokens of a sequence.
"""

import dataclasses
import hashlib
import logging
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from toast_jax.data.text.documents import Document, Rendered, Span
from toast_jax.data.text.tokenizer import Tokenizer
from toast_jax.errors import InputError

log = logging.getLogger(__name__)

_AT_ONCE = 2**22  # tokens to hash
DIGEST = "sha256"  # file of `Sequences.digest` beside mapped arrays


@dataclasses.dataclass(frozen=True)
class Segments:
    """The documents' numbers of packed tokens, computed row by row from where the documents begin.

    Attributes:
      starts: int64 `[documents]`, ascending positions among all tokens. They may be memory-mapped.
      length: N.
    """

    starts: np.ndarray
    length: int

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """Return int32 `[N]` of a row, or `[rows, N]` of a slice whose ends are positions of rows."""
        first, last = (rows.start, rows.stop) if isinstance(rows, slice) else (rows, rows + 1)
        places = np.arange(first * self.length, last * self.length)
        numbers = np.searchsorted(self.starts, places, side="right").astype(np.int32)
        return numbers.reshape(last - first, self.length) if isinstance(rows, slice) else numbers


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A random-access source of token sequences.

    `source[i]` is a dict of `tokens`, `segments` and `label` (the next token) int32 `[N]`, `weight` float32 `[N]`, which sums
    to 1 over the predicted tokens, and `mask` float32, their number.

    Attributes:
      tokens: integers `[count, N]`.
      segments: int32 `[count, N]`; a segment is a document, negative in padding.
      answers: bool `[count, N]`, whether a token is predicted from those before it. All three may be memory-mapped.
    """

    tokens: np.ndarray
    segments: np.ndarray | Segments
    answers: np.ndarray

    classes = ()  # part of the interface of sources

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = range(len(self))[index]
        tokens, segments = (np.asarray(part[index], np.int32) for part in (self.tokens, self.segments))
        # The next token, if it belongs to the same document; the last token of a row predicts nothing.
        predicted = np.append(self.answers[index][1:] & (segments[1:] == segments[:-1]), False).astype(np.float32)
        mask = predicted.sum()
        label = np.append(tokens[1:], 0).astype(np.int32)
        weight = predicted / np.maximum(mask, 1)
        return {"tokens": tokens, "segments": segments, "label": label, "weight": weight, "mask": mask}

    @property
    def folder(self) -> Path | None:
        """The folder that the arrays are mapped from, or None if they are in memory."""
        return Path(str(self.tokens.filename)).parent if isinstance(self.tokens, np.memmap) else None

    def __reduce__(self):
        # Worker processes map the same files; a memory-mapped array would be pickled as a copy.
        return (mapped, (self.folder,)) if self.folder else (Sequences, (self.tokens, self.segments, self.answers))

    def digest(self) -> str:
        """Return the SHA-256 of the arrays, as int32 and bool, which does not depend on how they are stored."""
        if self.folder and (stored := self.folder / DIGEST).is_file():
            return stored.read_text()
        hashed, step = hashlib.sha256(), max(1, _AT_ONCE // self.tokens.shape[1])
        for name, kind in (("tokens", np.int32), ("segments", np.int32), ("answers", bool)):
            for start in range(0, len(self), step):
                # Mapped anew, because pages that were read count as memory of the process for as long as they are mapped.
                source = mapped(self.folder) if self.folder else self
                rows = getattr(source, name)[start : min(start + step, len(self))]
                hashed.update(np.ascontiguousarray(rows, kind).data)
        return hashed.hexdigest()


def mapped(folder: Path) -> Sequences:
    """Open the arrays in a folder, without reading them into memory.

    They are an `.npy` file for each attribute, or `starts.npy` instead of `segments.npy`.
    """
    load = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r")  # noqa: E731
    tokens = load("tokens")
    is_packed = (folder / "starts.npy").exists()
    return Sequences(tokens, Segments(load("starts"), tokens.shape[1]) if is_packed else load("segments"), load("answers"))


def encode(document: Document, tokenizer: Tokenizer, begins: bool = True) -> tuple[list[int], list[bool]]:
    """Encode a document, with its begin token unless it continues another, and mark the answer tokens.

    A token is an answer if any of its characters is, because a word's token may begin with the space before it. The token that
    ends a turn is an answer. A rendered conversation that spells the begin token has no second one.
    """
    ids = [tokenizer.begin] if begins and tokenizer.begin is not None else []
    answers = [False] * len(ids)
    if isinstance(document, Rendered):
        encoded = tokenizer.encode_marked(document.text, document.special)
        before = 0 if encoded.ids[:1] == ids else len(ids)
        return ids[:before] + encoded.ids, answers[:before] + _overlapping(encoded.ends, document.learned)
    for turn in document:
        encoded = tokenizer.encode(turn.text)
        ids += encoded.ids
        answers += [end > turn.answer for end in encoded.ends]
        if turn.ends:
            ids.append(tokenizer.end)
            answers.append(True)
    return ids, answers


def _overlapping(ends: list[int], spans: list[Span]) -> list[bool]:
    """Return whether each token has a character in one of the ascending spans; a span does not end within a character."""
    flags, left = [], list(spans)
    for start, end in zip([0, *ends], ends, strict=False):
        while left and left[0][1] <= start:
            left.pop(0)
        flags.append(bool(left) and left[0][0] < end)
    return flags


def packed(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Sequences:
    """Concatenate documents and cut them into rows of `length` tokens; the incomplete last row is dropped, as in the release.

    Raises:
      InputError: there is not enough text for one row.
    """
    # Growing arrays take 4 bytes per token and 1 per flag; lists of Python integers take 8 to 36.
    tokens, answers, sizes = array("i"), bytearray(), array("i")
    for document in documents:
        ids, flags = encode(document, tokenizer)
        tokens.extend(ids)
        answers.extend(flags)
        sizes.append(len(ids))
    rows = rows_of(len(tokens), length)
    numbers = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    flat = np.frombuffer(tokens, np.int32), numbers, np.frombuffer(answers, bool)
    return Sequences(*(values[: rows * length].reshape(rows, length) for values in flat))


def rows_of(count: int, length: int) -> int:
    """Return how many sequences of `length` tokens `count` tokens make; raise InputError if there is not one."""
    if count < length:
        raise InputError(f"The text has {count} tokens, fewer than one sequence; set --config.data.length to less.")
    return count // length


def padded(documents: Iterable[Document], tokenizer: Tokenizer, length: int, too_long: str = "cut") -> Sequences:
    """Make a row of each document, truncated to `length` tokens; documents whose answers lie beyond are left out.

    Raises:
      InputError: no document is left; or, with `too_long="refuse"`, a document is longer.
    """
    rows, sizes, cut, dropped = [], [], 0, 0
    for document in documents:
        ids, flags = encode(document, tokenizer)
        sizes.append(len(ids))
        if any(flags[1:length]):  # the first token is not predicted
            rows.append((np.array(ids[:length], np.int32), np.array(flags[:length], bool)))
            cut += len(ids) > length
        else:
            dropped += 1
    if too_long == "refuse" and (longer := [size for size in sizes if size > length]):
        raise InputError(
            f"{len(longer)} of {len(sizes)} texts are longer than {length} tokens, the longest has {max(longer)}; set "
            "--config.data.length to more, or --config.data.too_long=cut."
        )
    if cut or dropped:
        log.warning("%d texts are cut off at %d tokens; %d are left out, as no answer begins before it.", cut, length, dropped)
    if not rows:
        raise InputError(f"No answer begins within {length} tokens; set --config.data.length to more.")
    shape = (len(rows), length)
    tokens, segments, answers = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, bool)
    for row, (ids, flags) in enumerate(rows):
        size = len(ids)
        tokens[row, :size], segments[row, :size], answers[row, :size] = ids, 1, flags
    return Sequences(tokens, segments, answers)
