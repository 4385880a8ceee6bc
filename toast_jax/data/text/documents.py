"""Documents of text files, split into the text to read and the text to predict.

A document is a list of turns. The text of a turn before `answer` is context; the rest is predicted.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from toast_jax.errors import InputError

log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """A text, the character where prediction begins, and whether the end-of-document token follows."""

    text: str
    answer: int = 0
    ends: bool = True


Document = list[Turn]

# Stanford Alpaca's prompts (https://github.com/tatsu-lab/stanford_alpaca), with and without an input.
_INSTRUCTED = "Below is an instruction that describes a task"
_ALPACA = (
    _INSTRUCTED + ", paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    _INSTRUCTED + ". Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
)
# The system prompt and the roles of Vicuna 1.1 (https://github.com/lm-sys/FastChat).
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
)
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}
_LOST_ANSWER = "\u200b"  # ShareGPT's placeholder


def _text(record: Any, field: str) -> str:
    """Read a field that must hold text; in an f-string, None or a list would become words to learn."""
    value = record[field]
    if not isinstance(value, str):
        raise TypeError(f"{field} is {value!r:.40}, not text")
    return value


def plain(record: Any) -> list[Document]:
    """Make a document of `{"text": ...}`, without an end token, as in the release."""
    text = _text(record, "text")
    return [[Turn(text, ends=False)]] if text.strip() else []


def instruction(record: Any) -> list[Document]:
    """Make documents of Alpaca's `{"instruction", "input", "output"}` or self-instruct's `instances` of the latter two.

    A missing or null input counts as empty.
    """
    return [
        _answered(
            instruct(_text(record, "instruction"), "" if pair.get("input") is None else _text(pair, "input")),
            _text(pair, "output"),
        )
        for pair in record.get("instances", [record])
    ]


def instruct(text: str, context: str = "") -> str:
    """Write Alpaca's prompt for an instruction, with or without an input."""
    return _ALPACA[0 if context else 1].format(instruction=text, input=context)


def prompt(record: Any) -> list[Document]:
    """Make a document of `{"prompt", "response"}` without a template."""
    return [_answered(_text(record, "prompt"), _text(record, "response"))]


def _answered(question: str, answer: str) -> Document:
    return [Turn(question + answer, len(question))]


def conversation(record: Any) -> list[Document]:
    """Make a document of ShareGPT's `{"conversations": [{"from": "human" or "gpt", "value"}, ...]}` with Vicuna's prompts.

    As in the release, a conversation with another speaker or fewer than two turns is left out. A first turn by the assistant is
    dropped, and so is a lost answer with its question. The conversation ends before two turns of the same speaker.
    """
    turns = record["conversations"]
    if len(turns) < 2 or any(turn["from"] not in _ROLES for turn in turns):
        return []
    turns = turns[1:] if turns[0]["from"] != "human" else turns
    lost = {i for i, turn in enumerate(turns) if turn["from"] == "gpt" and turn["value"] == _LOST_ANSWER}
    turns = [turn for i, turn in enumerate(turns) if not {i, i + 1} & lost]
    document: Document = []
    for question, answer in zip(turns[::2], turns[1::2], strict=False):
        if (question["from"], answer["from"]) != ("human", "gpt"):
            break
        text = converse(_text(question, "value"), first=not document)
        document.append(Turn(f"{text} {_text(answer, 'value')}", len(text) + 1))
    return [document] if document else []


def converse(text: str, first: bool = True) -> str:
    """Write Vicuna's prompt for a message, up to where the assistant's answer begins."""
    return f"{_SYSTEM if first else ''}{_ROLES['human']}: {text} {_ROLES['gpt']}:"


# By `config.data.format`: makes documents of a record.
FORMATS: dict[str, Callable[[Any], list[Document]]] = {
    "text": plain,
    "instructions": instruction,
    "prompts": prompt,
    "conversations": conversation,
}


def read(path: str, of_record: Callable[[Any], list[Document]]) -> list[Document]:
    """Read all documents of a file into memory; see `stream`."""
    return list(stream(path, of_record))


def stream(path: str, of_record: Callable[[Any], list[Document]], most: int = 0) -> Iterator[Document]:
    """Iterate over the documents of a file. A `.jsonl` is read line by line, and only up to the last document.

    Args:
      path: a `.txt`, which is one record, a `.json` with a list of records, or a `.jsonl` with one record per line.
      of_record: a value of `FORMATS`.
      most: stop after this many documents; 0: read all.

    Raises:
      InputError: the file does not exist, a record has another format, or no document is left.
    """
    file = Path(path).expanduser()
    count, left_out = 0, 0
    for place, record in records(file):
        try:
            made = of_record(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{place} of {file} is no record of this --config.data.format ({error!r}); correct one of them."
            ) from error
        if any("\ud800" <= character <= "\udfff" for turns in made for turn in turns for character in turn.text):
            raise InputError(f"{place} of {file} has half a character, written as \\ud8.. or \\udc..; correct or remove it.")
        left_out += not made
        yield from made[: most - count] if most else made
        count += len(made)
        if most and count >= most:
            break
    if left_out:
        log.warning("%s: %d records left out (empty, or not a conversation of two speakers).", file, left_out)
    if not count:
        raise InputError(f"{file} has no text to learn from; give another file.")


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """Iterate over the records of a file, each with its place in words, for messages.

    Raises:
      InputError: the file does not exist or is not JSON.
    """
    readers = {".txt": _whole, ".json": _listed, ".jsonl": _lines}
    try:
        with file.open(encoding="utf-8-sig") as content:
            if file.suffix not in readers:
                raise InputError(f"The text {file} has an unknown ending; give a .txt, .json or .jsonl file.")
            yield from readers[file.suffix](file, content)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The text {file} cannot be read ({error}); correct --config.data.splits.") from error


def _whole(file: Path, content: TextIO) -> Iterator[tuple[str, Any]]:
    yield "The text", {"text": content.read()}


def _listed(file: Path, content: TextIO) -> Iterator[tuple[str, Any]]:
    try:
        listing = json.loads(content.read())
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); correct it, or name a file of lines .jsonl.") from error
    if not isinstance(listing, list):
        raise InputError(f"{file} holds no list of records; correct it, or name a file of lines .jsonl.")
    yield from ((f"Record {i}", record) for i, record in enumerate(listing, start=1))


def _lines(file: Path, content: TextIO) -> Iterator[tuple[str, Any]]:
    malformed = []
    for number, line in enumerate(content, start=1):
        line = line.removeprefix("\ufeff")  # of a file that was appended to another
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                malformed.append(number)
            else:
                yield f"Line {number}", record
    if malformed:
        raise InputError(
            f"{file} has {len(malformed)} lines that are not JSON, the first is line {malformed[0]}; correct or remove them."
        )
