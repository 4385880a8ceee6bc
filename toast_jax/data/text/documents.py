"""Texts of files, as what is read and what is to be predicted of it.

A document is a list of turns. Of a turn, what comes before `answer` is read, and the rest is predicted.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from toast_jax.errors import InputError

log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """A text, where in it prediction begins (in characters), and whether the token that ends a document follows it."""

    text: str
    answer: int = 0
    ends: bool = True


Document = list[Turn]

# Of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), with an input and without one.
_INSTRUCTED = "Below is an instruction that describes a task"
_ALPACA = (
    _INSTRUCTED + ", paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:",
    _INSTRUCTED + ". Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
)
# Of Vicuna 1.1 (https://github.com/lm-sys/FastChat): what a conversation begins with, and who speaks.
_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. "
)
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}
_EMPTY = "\u200b"  # stands for an answer that was lost


def plain(record: Any) -> list[Document]:
    """A document of `{"text": ...}`; nothing ends it, as in the release."""
    return [[Turn(record["text"], ends=False)]] if record["text"].strip() else []


def instruction(record: Any) -> list[Document]:
    """Alpaca's `{"instruction", "input", "output"}`, or self-instruct's with several of the latter two as `instances`."""
    pairs = record.get("instances", [record])
    return [_answered(instruct(record["instruction"], pair.get("input", "")), pair["output"]) for pair in pairs]


def instruct(text: str, context: str = "") -> str:
    """Alpaca's prompt for an instruction, with or without an input."""
    return _ALPACA[0 if context else 1].format(instruction=text, input=context)


def prompt(record: Any) -> list[Document]:
    """`{"prompt", "response"}`, as they are."""
    return [_answered(record["prompt"], record["response"])]


def _answered(asked, answer):
    return [Turn(asked + answer, len(asked))]


def conversation(record: Any) -> list[Document]:
    """ShareGPT's `{"conversations": [{"from": "human" or "gpt", "value"}, ...]}`, in Vicuna's words.

    As in the release, one with another speaker or of less than two turns is left out; a first turn that is not the human's is
    dropped, so is a lost answer with its question; and it ends before two turns of the same speaker.
    """
    said = record["conversations"]
    if len(said) < 2 or any(one["from"] not in _ROLES for one in said):
        return []
    said = said[1:] if said[0]["from"] != "human" else said
    lost = {i for i, one in enumerate(said) if one["from"] == "gpt" and one["value"] == _EMPTY}
    said = [one for i, one in enumerate(said) if not {i, i + 1} & lost]
    turns = []
    for asked, answer in zip(said[::2], said[1::2], strict=False):
        if (asked["from"], answer["from"]) != ("human", "gpt"):
            break
        text = converse(asked["value"], first=not turns)
        turns.append(Turn(f"{text} {answer['value']}", len(text) + 1))
    return [turns] if turns else []


def converse(text: str, first: bool = True) -> str:
    """What a conversation looks like when the assistant's answer to a text is to come."""
    return f"{_SYSTEM if first else ''}{_ROLES['human']}: {text} {_ROLES['gpt']}:"


# By `config.data.format`: what is made of a record.
FORMATS: dict[str, Callable[[Any], list[Document]]] = {
    "text": plain,
    "instructions": instruction,
    "prompts": prompt,
    "conversations": conversation,
}


def read(path: str, of_record: Callable[[Any], list[Document]]) -> list[Document]:
    """All documents of a file: a `.txt`, which is one record, a `.json` with a list of records, or a `.jsonl` of one a line.

    Raises:
      InputError: there is no such file, it holds other things, or no document is left.
    """
    file = Path(path).expanduser()
    documents, left_out = [], 0
    for place, record in records(file):
        try:
            made = of_record(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{place} of {file} is no record of this --config.data.format ({error!r}); correct one of them."
            ) from error
        if any("\ud800" <= character <= "\udfff" for turns in made for turn in turns for character in turn.text):
            raise InputError(f"{place} of {file} has half a character, written as \\ud8.. or \\udc..; correct or remove it.")
        documents += made
        left_out += not made
    if left_out:
        log.warning("%s: %d records left out, which have no text or are no conversations of two speakers.", file, left_out)
    if not documents:
        raise InputError(f"{file} has no text to learn from; give another file.")
    return documents


def records(file: Path) -> list[tuple[str, Any]]:
    """What a file holds, each with its place in words.

    Raises:
      InputError: there is no such file, or it is no JSON.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The text {file} cannot be read ({error}); correct --config.data.splits.") from error
    if file.suffix == ".txt":
        return [("The text", {"text": content})]
    if file.suffix == ".json":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is not JSON ({error}); correct it, or name a file of lines .jsonl.") from error
        if not isinstance(found, list):
            raise InputError(f"{file} holds no list of records; correct it, or name a file of lines .jsonl.")
        return [(f"Record {i}", record) for i, record in enumerate(found, start=1)]
    if file.suffix == ".jsonl":
        return _lines(file, content)
    raise InputError(f"The text {file} has an unknown ending; give a .txt, .json or .jsonl file.")


def _lines(file, content):
    bad, found = [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                found.append((f"Line {number}", json.loads(line)))
            except (ValueError, RecursionError):
                bad.append(number)
    if bad:
        raise InputError(f"{file} has {len(bad)} lines that are not JSON, the first is line {bad[0]}; correct or remove them.")
    return found
