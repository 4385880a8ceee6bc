"""Tokenizers of LLaMA models, read from the files that come with them."""

import functools
import heapq
import importlib
import itertools
import json
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from toast_jax.errors import InputError

# The names of the tokens that begin and end a document.
_BEGINS, _ENDS = ("<s>", "<|begin_of_text|>"), ("</s>", "<|end_of_text|>")
_END_OF_TEXT = "<|endoftext|>"  # of GPT-2's heirs, where tokenizer_config.json names no other
# Added tokens that are special even if their file does not say so: marks of chats. The second bar is DeepSeek's.
_CHAT_MARK = re.compile(r"<[|\uff5c].+[|\uff5c]>")

_MAX_BYTES = 4  # of a character in UTF-8


class Encoded(NamedTuple):
    """Tokens, and for each the number of characters of the text before its end."""

    ids: list[int]
    ends: list[int]


class Tokenizer(Protocol):
    """The interface of all tokenizers.

    Attributes:
      vocabulary: number of tokens.
      begin: the token before a document, or None.
      end: the token after a document.
      special: tokens that stand for no text, by name.
    """

    vocabulary: int
    begin: int | None
    end: int
    special: dict[str, int]

    def encode(self, text: str) -> Encoded: ...

    def encode_marked(self, text: str, special: Sequence[tuple[int, int]]) -> Encoded:
        """Encode a text with the names of special tokens at these places; anywhere else a name is plain text."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens; those beyond `vocabulary`, which a padded embedding has, stand for no text."""


def load(path: str) -> Tokenizer:
    """Open a tokenizer file, or the first one in a folder; see `file_of`.

    Raises:
      InputError: the file does not exist or is damaged, or the library that reads it is not installed.
    """
    file = file_of(path)
    readers: dict[str, Callable[[Path], Tokenizer]] = {".json": _Json, ".bin": _Llama2c}
    return readers.get(file.suffix, _SentencePiece)(file)


def file_of(path: str) -> Path:
    """Find the tokenizer file that a path names.

    Args:
      path: `tokenizer.model` (sentencepiece), `tokenizer.json` (tokenizers), `tok*.bin` (llama2.c) or a folder.

    Raises:
      InputError: there is none.
    """
    if not path:
        raise InputError("config.data.tokenizer is empty; give a tokenizer.model or tokenizer.json, or a folder with one.")
    file = Path(path).expanduser()
    if file.is_dir():
        patterns = ("tokenizer.json", "tokenizer.model", "tok*.bin")
        file = next((match for pattern in patterns for match in sorted(file.glob(pattern))), file)
    if not file.is_file():
        raise InputError(f"There is no tokenizer.json, tokenizer.model or tok*.bin at {file}; correct --config.data.tokenizer.")
    return file


def _library(name: str, file: Path):
    """Import an optional library when a file needs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'Reading {file} needs {name}; `pip install -r requirements-language.txt` or `pip install "toast_jax[language]"`.'
        ) from error


def special_spans(text: str, names: Collection[str]) -> list[tuple[int, int]]:
    """Return where a text spells special tokens: start and end of each, from left to right."""
    return [match.span() for match in _pattern(tuple(names)).finditer(text)]


@functools.cache
def _pattern(names):
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode tokens, with special ones by their names."""
    names = {token: name for name, token in tokenizer.special.items()}
    runs = itertools.groupby(ids, key=names.get)
    return "".join(tokenizer.decode(list(run)) if name is None else name * len(list(run)) for name, run in runs)


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Split the text of tokens into the shortest pieces of whole characters; special tokens are spelled by their names.

    Byte tokens of one character share a piece. A piece has at most as many of them as a character has bytes, because a model
    may generate invalid UTF-8, which is decoded as U+FFFD.

    Returns:
      for each piece the number of its tokens, and its text.
    """
    names = {token: name for name, token in tokenizer.special.items()}
    for name, run in itertools.groupby(ids, key=names.get):
        tokens, before, start = list(run), 0, 0
        if name is not None:
            yield from ((1, name) for _ in tokens)
            continue
        for end in range(1, len(tokens) + 1):
            # Decoded behind the piece before it, because the space at the beginning of a text may be dropped.
            context, text = tokenizer.decode(tokens[before:start]), tokenizer.decode(tokens[before:end])
            is_whole = not text.endswith("\ufffd") or end - start == _MAX_BYTES or end == len(tokens)
            if is_whole:
                yield end - start, text[len(context) :]
                before, start = start, end


def encode_parts(encode: Callable[[str], Encoded], names: Mapping[str, int], text: str, special) -> Encoded:
    """Encode a text whose special tokens are at these places, and what is between them by `encode`, each part by itself."""
    ids: list[int] = []
    ends: list[int] = []
    start = 0
    for left, right in [*special, (len(text), len(text))]:
        part = encode(text[start:left])
        ids += part.ids
        # A token for the space that a tokenizer puts before a text belongs to its first character.
        ends += [start + max(end, 1) for end in part.ends]
        if left < right:
            ids.append(names[text[left:right]])
            ends.append(right)
        start = right
    return Encoded(ids, ends)


class _SentencePiece:
    def __init__(self, file: Path):
        self._file = file
        try:
            self._model = _library("sentencepiece", file).SentencePieceProcessor(model_file=str(file))
        except InputError:
            raise
        except Exception as error:  # damaged bytes can raise nearly anything
            raise InputError(f"{file} is no model of sentencepiece; download it again.") from error
        self._piece = self._model.id_to_piece
        self.vocabulary = self._model.vocab_size()
        self.begin = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.end = self._model.eos_id()
        if self.end < 0:
            raise InputError(f"{file} has no token that ends a document; give the tokenizer of a LLaMA.")
        control = (token for token in range(self.vocabulary) if self._model.is_control(token))
        self.special = {self._piece(token): token for token in control}

    def encode(self, text: str) -> Encoded:
        ids = self._model.encode(text)
        # Offsets of the library differ between its versions; the pieces spell the text after one space, in which U+2581 is a
        # space too.
        spelled = text.replace("▁", " ")
        sizes = [1 if self._model.is_byte(token) else len(self._piece(token).replace("▁", " ").encode()) for token in ids]
        if ids and sum(sizes) != 1 + len(spelled.encode()):
            raise InputError(f"{self._file} rewrites text before it splits it ({text[:40]!r}); give the tokenizer of a LLaMA.")
        return Encoded(ids, _ends(spelled, sizes))

    def encode_marked(self, text: str, special: Sequence[tuple[int, int]]) -> Encoded:
        return encode_parts(self.encode, self.special, text, special)

    def decode(self, ids: list[int]) -> str:
        return self._model.decode([token for token in ids if token < self.vocabulary])


def _ends(text: str, sizes: list[int]) -> list[int]:
    """Return the characters of a text before the end of each piece; the pieces have `sizes` bytes and spell one space first."""
    ends = np.cumsum([-1, *sizes])[1:]
    starts = np.cumsum([0, *(len(character.encode()) for character in text)])
    return np.searchsorted(starts[:-1], ends).tolist()


_LLAMA2C_SPECIAL = (b"<unk>", b"\n<s>\n", b"\n</s>\n")
FIRST_BYTE = len(_LLAMA2C_SPECIAL)  # of llama2.c: the first of 256 tokens for bytes that no other token covers


def llama2c_pieces(file: Path) -> list[tuple[bytes, float]]:
    """Read a tokenizer of llama2.c: the piece of every token, and its score; merges of higher scores come first.

    Raises:
      InputError: the file is another one or damaged.
    """
    pieces: list[tuple[bytes, float]] = []
    content, place = file.read_bytes(), 4  # skips the length of the longest token
    try:
        while place < len(content):
            score, size = struct.unpack_from("<fi", content, place)
            place += 8 + size
            pieces.append((content[place - size : place], score))
    except struct.error:
        place = -1
    special = tuple(piece for piece, _ in pieces[:FIRST_BYTE])
    if place != len(content) or special != _LLAMA2C_SPECIAL or len(pieces) < FIRST_BYTE + 256:
        raise InputError(f"{file} is no tokenizer of llama2.c; copy or download it again.")
    return pieces


class _Llama2c:
    """The tokenizer of llama2.c (https://github.com/karpathy/llama2.c): sentencepiece's byte-pair encoding."""

    begin: int | None = 1
    end = 2
    special: dict[str, int] = {"<s>": 1, "</s>": 2}

    def __init__(self, file: Path):
        pieces = llama2c_pieces(file)
        self._pieces = [piece for piece, _ in pieces]
        self._tokens = {piece: (-score, token) for token, (piece, score) in enumerate(pieces)}
        for byte in range(256):
            del self._tokens[self._pieces[FIRST_BYTE + byte]]
            self._pieces[FIRST_BYTE + byte] = bytes([byte])
        self.vocabulary = len(self._pieces)

    def encode(self, text: str) -> Encoded:
        ids = []
        for piece in self._merged([character.encode() for character in f" {text}"]) if text else []:
            token = self._tokens.get(piece)
            ids += [FIRST_BYTE + byte for byte in piece] if token is None else [token[1]]
        return Encoded(ids, _ends(text, [len(self._pieces[token]) for token in ids]))

    def encode_marked(self, text: str, special: Sequence[tuple[int, int]]) -> Encoded:
        return encode_parts(self.encode, self.special, text, special)

    def _merged(self, pieces: list[bytes]) -> list[bytes]:
        """Merge neighbors, highest score first and then leftmost, until no two form a token."""
        before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))
        possible: list[tuple[float, int, bytes]] = []

        def offer(left):
            if left >= 0 and after[left] < len(pieces):
                joined = pieces[left] + pieces[after[left]]
                if joined in self._tokens:
                    heapq.heappush(possible, (self._tokens[joined][0], left, joined))

        for left in range(len(pieces)):
            offer(left)
        while possible:
            _, left, joined = heapq.heappop(possible)
            right = after[left]
            if not pieces[left] or right >= len(pieces) or pieces[left] + pieces[right] != joined:
                continue  # a neighbor has been merged into another token
            pieces[left], pieces[right], after[left] = joined, b"", after[right]
            if after[left] < len(pieces):
                before[after[left]] = left
            offer(before[left])
            offer(left)
        return [piece for piece in pieces if piece]

    def decode(self, ids: list[int]) -> str:
        text = b"".join(self._pieces[token] for token in ids if FIRST_BYTE <= token < self.vocabulary).decode(errors="replace")
        return text.removeprefix(" ")


class _Json:
    def __init__(self, file: Path):
        try:
            self._model = _library("tokenizers", file).Tokenizer.from_file(str(file))
        except InputError:
            raise
        except Exception as error:  # the only class that the library raises
            raise InputError(f"{file} is no tokenizer.json ({error}); download it again.") from error
        # Files that were saved after training or batching keep this state, which cuts, fills or randomly splits text.
        self._model.no_truncation()
        self._model.no_padding()
        if getattr(self._model.model, "dropout", None):
            self._model.model.dropout = None
        self.vocabulary = self._model.get_vocab_size(with_added_tokens=True)
        added = self._model.get_added_tokens_decoder()
        self.special = {
            token.content: number for number, token in added.items() if token.special or _CHAT_MARK.fullmatch(token.content)
        }
        self._model.add_special_tokens(
            [token.content for token in added.values() if token.content in self.special and not token.special]
        )
        self.begin = next((token for name in _BEGINS if (token := self._model.token_to_id(name)) is not None), None)
        ends = (*_ENDS, _named_end(file), _END_OF_TEXT)
        end = next((token for name in ends if (token := self._model.token_to_id(name)) is not None), None)
        if end is None:
            raise InputError(f"{file} has none of {', '.join(_ENDS)}, which end a document; give the tokenizer of a LLaMA.")
        self.end: int = end

    def encode(self, text: str) -> Encoded:
        encoded = self._model.encode(text, add_special_tokens=False)
        return Encoded(encoded.ids, [end for _, end in encoded.offsets])

    def encode_marked(self, text: str, special: Sequence[tuple[int, int]]) -> Encoded:
        if special_spans(text, self.special) == list(special):
            return self.encode(text)  # may differ from its parts by spaces, as the library puts or drops them
        self._model.encode_special_tokens = True
        try:
            return encode_parts(self.encode, self.special, text, special)
        finally:
            self._model.encode_special_tokens = False

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _named_end(file: Path) -> str:
    """Return the name of the token that ends a text in the tokenizer_config.json beside a tokenizer, or ""."""
    try:
        end = json.loads(file.with_name("tokenizer_config.json").read_text(encoding="utf-8-sig"))["eos_token"]
        return str(end["content"] if isinstance(end, dict) else end)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
