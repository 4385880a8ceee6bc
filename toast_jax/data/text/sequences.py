"""Token sequences of equal length: documents packed together, or one per row.

Letters in shapes: N tokens of a sequence.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from toast_jax.data.text.documents import Document
from toast_jax.data.text.tokenizer import Tokenizer
from toast_jax.errors import InputError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A random-access source of token sequences.

    `source[i]` is a dict of `tokens`, `segments` and `label` (the next token) int32 `[N]`, `weight` float32 `[N]`, which sums
    to 1 over the predicted tokens, and `mask` float32, their number.

    Attributes:
      tokens, segments: int32 `[count, N]`; a segment is a document, negative in padding.
      answers: bool `[count, N]`, whether a token is predicted from those before it.
    """

    tokens: np.ndarray
    segments: np.ndarray
    answers: np.ndarray

    classes = ()  # part of the interface of sources

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens, segments = self.tokens[index], self.segments[index]
        # The next token, if it belongs to the same document; the last token of a row predicts nothing.
        predicted = np.append(self.answers[index][1:] & (segments[1:] == segments[:-1]), False).astype(np.float32)
        mask = predicted.sum()
        label = np.append(tokens[1:], 0).astype(np.int32)
        weight = predicted / np.maximum(mask, 1)
        return {"tokens": tokens, "segments": segments, "label": label, "weight": weight, "mask": mask}


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Encode a document, with its begin token, and mark the answer tokens.

    A token is an answer if any of its characters is, because a word's token may begin with the space before it. The token that
    ends a turn is an answer.
    """
    ids = [] if tokenizer.begin is None else [tokenizer.begin]
    answers = [False] * len(ids)
    for turn in document:
        encoded = tokenizer.encode(turn.text)
        ids += encoded.ids
        answers += [end > turn.answer for end in encoded.ends]
        if turn.ends:
            ids.append(tokenizer.end)
            answers.append(True)
    return ids, answers


def packed(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> Sequences:
    """Concatenate documents and cut them into rows of `length` tokens; the incomplete last row is dropped, as in the release.

    Raises:
      InputError: there is not enough text for one row.
    """
    encoded = [encode(document, tokenizer) for document in documents]
    tokens = np.concatenate([np.array(ids, np.int32) for ids, _ in encoded])
    answers = np.concatenate([np.array(flags, bool) for _, flags in encoded])
    numbers = np.repeat(np.arange(1, len(encoded) + 1, dtype=np.int32), [len(ids) for ids, _ in encoded])
    rows = len(tokens) // length
    if not rows:
        raise InputError(f"The text has {len(tokens)} tokens, fewer than one sequence; set --config.data.length to less.")
    return Sequences(*(array[: rows * length].reshape(rows, length) for array in (tokens, numbers, answers)))


def padded(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> Sequences:
    """Make a row of each document, truncated to `length` tokens; documents whose answers lie beyond are left out.

    Raises:
      InputError: no document is left.
    """
    encoded = [encode(document, tokenizer) for document in documents]
    rows = [(ids, flags) for ids, flags in encoded if any(flags[:length])]
    cut, dropped = sum(len(ids) > length for ids, _ in rows), len(encoded) - len(rows)
    if cut or dropped:
        log.warning("%d texts are cut off at %d tokens; %d are left out, as no answer begins before it.", cut, length, dropped)
    if not rows:
        raise InputError(f"No answer begins within {length} tokens; set --config.data.length to more.")
    shape = (len(rows), length)
    tokens, segments, answers = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, bool)
    for row, (ids, flags) in enumerate(rows):
        size = min(len(ids), length)
        tokens[row, :size], segments[row, :size], answers[row, :size] = ids[:size], 1, flags[:size]
    return Sequences(tokens, segments, answers)
