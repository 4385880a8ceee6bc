"""Documents of text files, split into the text to read and the text to predict.

A document is a list of turns, or a conversation that a chat template has rendered. The text of a turn before `answer` is
context; the rest is predicted.
"""

import collections
import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from toast_jax.errors import InputError, of_extra

log = logging.getLogger(__name__)

LEFT_OUT = "%s: %d records left out (empty, or not a conversation of two speakers)."  # file and number


class Turn(NamedTuple):
    """A text, the character where prediction begins, and whether the end-of-document token follows."""

    text: str
    answer: int = 0
    ends: bool = True


Span = tuple[int, int]  # of characters: start and end


class Rendered(NamedTuple):
    """A conversation as a chat template writes it.

    Attributes:
      text: with every special token of the template spelled by its name.
      special: where these are. The same name elsewhere, as in the words of a user, is plain text.
      learned: the assistant's answers, each with the special token that ends it.
      changes: what was changed in the conversation, in words, for a count.
    """

    text: str
    special: list[Span]
    learned: list[Span]
    changes: tuple[str, ...] = ()


Document = list[Turn] | Rendered


class Message(NamedTuple):
    """What one speaker says; the role is system, user or assistant."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Messages of a user and an assistant in turn, after one of the system if there is one, and what was dropped for that."""

    messages: list[Message]
    changes: tuple[str, ...] = ()


# Stanford Alpaca's prompts (https://github.com/tatsu-lab/stanford_alpaca), with and without an input.
_INSTRUCTED = "Below is an instruction that describes a task"
_ALPACA = (
    _INSTRUCTED + ", paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    _INSTRUCTED + ". Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
)
# The system prompt and the roles of Vicuna 1.1 (https://github.com/lm-sys/FastChat).
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
)
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}
_LOST_ANSWER = "\u200b"  # ShareGPT's placeholder
_SPEAKERS = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


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
    document: list[Turn] = []
    for question, answer in zip(turns[::2], turns[1::2], strict=False):
        if (question["from"], answer["from"]) != ("human", "gpt"):
            break
        text = converse(_text(question, "value"), first=not document)
        document.append(Turn(f"{text} {_text(answer, 'value')}", len(text) + 1))
    return [document] if document else []


def converse(text: str, first: bool = True) -> str:
    """Write Vicuna's prompt for a message, up to where the assistant's answer begins."""
    return f"{SYSTEM if first else ''}{_ROLES['human']}: {text} {_ROLES['gpt']}:"


def messages(record: Any) -> list[Conversation]:
    """Read `{"messages": [{"role", "content"}, ...]}`, or ShareGPT's `conversations`, for a chat template.

    A conversation with another role, such as a tool, or without an answer is left out. A first turn by the assistant is
    dropped. The conversation ends before an empty turn, before two turns of the same role, and after its last answer.
    """
    role, content = ("role", "content") if "messages" in record else ("from", "value")
    turns = record["messages" if "messages" in record else "conversations"]
    if any(_text(turn, role) not in _SPEAKERS for turn in turns):
        return []
    said = [Message(_SPEAKERS[turn[role]], _text(turn, content)) for turn in turns]
    kept, changes = [message for message in said[:1] if message.role == "system" and message.content.strip()], []
    rest = said[1:] if said and said[0].role == "system" else said
    if rest and rest[0].role == "assistant":
        rest, changes = rest[1:], ["lost a first turn by the assistant"]
    for number, message in enumerate(rest):
        if not message.content.strip() or message.content == _LOST_ANSWER:
            changes.append("end before an empty turn")
        elif message.role != ("user", "assistant")[number % 2]:
            changes.append("end before a turn of the same role as the one before it, or of the system")
        else:
            kept.append(message)
            continue
        break
    while kept and kept[-1].role != "assistant":
        kept.pop()
    return [Conversation(kept, tuple(changes))] if kept else []


# By `config.data.format`: makes documents of a record, or conversations that `chat.Template.render` makes documents of.
FORMATS: dict[str, Callable[[Any], list]] = {
    "text": plain,
    "instructions": instruction,
    "prompts": prompt,
    "conversations": conversation,
    "messages": messages,
}

# The prompt of a question, by the format of the tuning data; the flag is True for the first question of a conversation. That of
# messages is `chat.Template.prompt`.
PROMPTS: dict[str, Callable[[str, bool], str]] = {
    "text": lambda question, first: question,
    "prompts": lambda question, first: question,
    "instructions": lambda question, first: instruct(question),
    "conversations": converse,
}


def check(path: str, of_record: Callable[[Any], list[Document]], most: int) -> None:
    """Check that a file exists, and its first document; arguments and errors as of `stream`.

    A `.txt`, and a `.json` of more than `most` bytes, is only looked for, as it would have to be read whole.
    """
    file = Path(path).expanduser()
    if file.is_file() and (file.suffix == ".txt" or (file.suffix == ".json" and file.stat().st_size > most)):
        return
    next(stream(path, of_record))


def stream(path: str, of_record: Callable[[Any], list[Document]], most: int = 0) -> Iterator[Document]:
    """Iterate over the documents of a file. A `.jsonl` is read line by line, and only up to the last document.

    Args:
      path: a `.txt`, which is one record, a `.json` with a list of records, a `.jsonl` with one record per line, or a
        `.parquet` with one per row.
      of_record: a value of `FORMATS` that makes documents, or `chat.Template.documents`.
      most: stop after this many documents; 0: read all.

    Raises:
      InputError: the file does not exist, a record has another format, or no document is left.
    """
    file = Path(path).expanduser()
    count, left_out, changes = 0, 0, collections.Counter[str]()
    for place, record in records(file):
        made = made_of(file, place, record, of_record)
        left_out += not made
        changes.update(change for document in made if not isinstance(document, list) for change in document.changes)
        yield from made[: most - count] if most else made
        count += len(made)
        if most and count >= most:
            break
    if left_out:
        log.warning(LEFT_OUT, file, left_out)
    for change, times in changes.items():
        log.warning("%s: %d conversations %s.", file, times, change)
    if not count:
        raise InputError(f"{file} has no text to learn from; give another file.")


def made_of(file: Path, place: str, record: Any, of_record: Callable[[Any], list[Document]]) -> list[Document]:
    """Make documents of the record at a place of a file; see `stream`."""
    try:
        made = of_record(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{place} of {file} is no record of this --config.data.format ({error!r}); correct one of them."
        ) from error
    except InputError as error:
        raise InputError(f"{place} of {file}: {error}") from error
    if any("\ud800" <= character <= "\udfff" for document in made for text in _texts(document) for character in text):
        raise InputError(f"{place} of {file} has half a character, written as \\ud8.. or \\udc..; correct or remove it.")
    return made


def _texts(document: Document | Conversation) -> list[str]:
    if isinstance(document, Conversation):
        return [message.content for message in document.messages]
    return [document.text] if isinstance(document, Rendered) else [turn.text for turn in document]


class Part(NamedTuple):
    """A range of a file: bytes of a `.jsonl` (the lines that begin there), or row groups of a `.parquet`.

    Attributes:
      start, end: of the range; end 0: to the end of the file.
      size: bytes of text, for the progress.
    """

    start: int = 0
    end: int = 0
    size: int = 0


class NotJson(InputError):
    """Says how many lines of a file are not JSON; raised after the last line."""


def parts_of(file: Path, size: int) -> list[Part]:
    """Divide a file into parts of about `size` bytes; a file that is neither `.jsonl` nor `.parquet` is one part."""
    whole = file.stat().st_size
    if file.suffix == ".jsonl":
        return [Part(start, min(start + size, whole), min(size, whole - start)) for start in range(0, whole, size)]
    if file.suffix != ".parquet":
        return [Part(size=whole)]
    parts, start, filled = [], 0, 0
    with _table(file) as table:
        groups = table.metadata.num_row_groups
        for group in range(groups):
            filled += table.metadata.row_group(group).total_byte_size
            if filled >= size or group == groups - 1:
                parts.append(Part(start, group + 1, filled))
                start, filled = group + 1, 0
    return parts


def records(file: Path, part: Part = Part()) -> Iterator[tuple[str, Any]]:  # noqa: B008
    """Iterate over the records of a file, each with its place in words, for messages; places are counted from `part.start`.

    Raises:
      InputError: the file does not exist, is damaged or is not JSON.
    """
    readers = {".txt": _whole, ".json": _listed, ".jsonl": _lines}
    if file.suffix == ".parquet":
        yield from _rows(file, part)
        return
    try:
        if part.end:
            yield from _lines(file, _lines_in(file, part))
            return
        with file.open(encoding="utf-8-sig") as content:
            if file.suffix not in readers:
                raise InputError(f"The text {file} has an unknown ending; give a .txt, .json or .jsonl file, or a .parquet.")
            yield from readers[file.suffix](file, content)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The text {file} cannot be read ({error}); correct --config.data.splits.") from error


@contextlib.contextmanager
def _table(file: Path) -> Iterator[Any]:
    parquet = of_extra("pyarrow.parquet", "parquet", "Reading a Parquet file")
    try:
        with parquet.ParquetFile(file) as table:
            yield table
    except (OSError, ValueError, NotImplementedError) as error:  # the bases of pyarrow's own
        raise InputError(f"The text {file} cannot be read ({error}); correct --config.data.splits.") from error


def _rows(file: Path, part: Part) -> Iterator[tuple[str, Any]]:
    with _table(file) as table:
        groups = range(part.start, part.end or table.metadata.num_row_groups)
        rows = (row for batch in table.iter_batches(batch_size=1024, row_groups=groups) for row in batch.to_pylist())
        yield from ((f"Row {number}", row) for number, row in enumerate(rows, start=1))


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


def _lines_in(file: Path, part: Part) -> Iterator[str]:
    """Iterate over the lines that begin in a range of bytes, split where a file that is opened as text is."""
    with file.open("rb") as content:
        if part.start:
            content.seek(part.start - 1)
            content.readline()
        while content.tell() < part.end and (line := content.readline()):
            yield from io.StringIO(line.decode(), newline=None)


def _lines(file: Path, content: Iterable[str]) -> Iterator[tuple[str, Any]]:
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
        raise NotJson(
            f"{file} has {len(malformed)} lines that are not JSON, the first is line {malformed[0]}; correct or remove them."
        )
