"""Text as tokens, and back: the tokenizers of LLaMAs, from the files that come with them."""

import importlib
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from toast_jax.errors import InputError

# How the files name the tokens that begin and end a document.
_BEGINS, _ENDS = ("<s>", "<|begin_of_text|>"), ("</s>", "<|end_of_text|>")


class Encoded(NamedTuple):
    """Tokens, and for each the number of characters of the text up to its end."""

    ids: list[int]
    ends: list[int]


class Tokenizer(Protocol):
    """What every tokenizer offers.

    Attributes:
      vocabulary: number of tokens.
      begin: the token before a document, or None.
      end: the token after one.
    """

    vocabulary: int
    begin: int | None
    end: int

    def encode(self, text: str) -> Encoded: ...

    def decode(self, ids: list[int]) -> str: ...


def load(path: str) -> Tokenizer:
    """Opens `tokenizer.model` (sentencepiece) or `tokenizer.json` (tokenizers), or a folder with one of them.

    Raises:
      InputError: there is no such file, it is damaged, or the library that reads it is not installed.
    """
    if not path:
        raise InputError("config.data.tokenizer is empty; give a tokenizer.model or tokenizer.json, or a folder with one.")
    file = Path(path).expanduser()
    if file.is_dir():
        file = next((file / name for name in ("tokenizer.json", "tokenizer.model") if (file / name).is_file()), file)
    if not file.is_file():
        raise InputError(f"There is no tokenizer.json and no tokenizer.model at {file}; correct --config.data.tokenizer.")
    return (_Json if file.suffix == ".json" else _SentencePiece)(file)


def _library(name: str, file: Path):
    """Imported where a file makes it necessary and nowhere else."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Reading {file} needs {name}; `pip install -r requirements-language.txt`.") from error


class _SentencePiece:
    def __init__(self, file: Path):
        self._file = file
        try:
            self._model = _library("sentencepiece", file).SentencePieceProcessor(model_file=str(file))
        except InputError:
            raise
        except Exception as error:  # nearly any, when bytes are damaged
            raise InputError(f"{file} is no model of sentencepiece; download it again.") from error
        self._piece = self._model.id_to_piece
        self.vocabulary = self._model.vocab_size()
        self.begin = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.end = self._model.eos_id()
        if self.end < 0:
            raise InputError(f"{file} has no token that ends a document; give the tokenizer of a LLaMA.")

    def encode(self, text: str) -> Encoded:
        ids = self._model.encode(text)
        # What the library tells about offsets differs from version to version; the pieces are the text, after one space.
        sizes = [1 if self._model.is_byte(one) else len(self._piece(one).replace("▁", " ").encode()) for one in ids]
        ends = np.cumsum([-1, *sizes])[1:] if ids else []
        starts = np.cumsum([0, *(len(character.encode()) for character in text)])
        if ids and ends[-1] != starts[-1]:
            raise InputError(f"{self._file} rewrites text before it splits it ({text[:40]!r}); give the tokenizer of a LLaMA.")
        return Encoded(ids, np.searchsorted(starts[:-1], ends).tolist())

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


class _Json:
    def __init__(self, file: Path):
        try:
            self._model = _library("tokenizers", file).Tokenizer.from_file(str(file))
        except InputError:
            raise
        except Exception as error:  # the library raises no other kind
            raise InputError(f"{file} is no tokenizer.json ({error}); download it again.") from error
        self.vocabulary = self._model.get_vocab_size(with_added_tokens=True)
        self.begin, self.end = (
            next((token for name in names if (token := self._model.token_to_id(name)) is not None), None)
            for names in (_BEGINS, _ENDS)
        )
        if self.end is None:
            raise InputError(f"{file} has none of {', '.join(_ENDS)}, which end a document; give the tokenizer of a LLaMA.")

    def encode(self, text: str) -> Encoded:
        encoded = self._model.encode(text, add_special_tokens=False)
        return Encoded(encoded.ids, [end for _, end in encoded.offsets])

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)
