"""Generate text with a tuned language model: `--config=configs/generate.py:run=FOLDER`."""

import json
import logging
import sys
from pathlib import Path

from ml_collections import ConfigDict

from toast_jax.config.check import check_fields
from toast_jax.errors import InputError, renaming
from toast_jax.tasks.language import question_file
from toast_jax.tasks.language.speaker import Speaker
from toast_jax.workdir import run_folder

log = logging.getLogger(__name__)

RESET = "/reset"  # typed in place of a question


def run(config: ConfigDict, folder: str) -> None:
    """Answer `config.file`, else `config.prompt`, else the lines typed at the terminal.

    Answers to a file are written to `answers.jsonl` in the folder; all others are streamed to the terminal. There, with a
    prompt format of conversations, a question follows from those before it.

    Raises:
      InputError: no such run or backbone, a number out of range, or a question that does not fit the context.
    """
    check_fields(config)
    speaker = Speaker(config)
    with speaker.precision():
        if config.file:
            _answer_file(config, speaker, run_folder.writable(folder))
        elif config.prompt:
            speaker.stream(speaker.tokens(config.prompt))
        else:
            _converse(speaker)


def _answer_file(config, speaker, folder: Path) -> None:
    with renaming({"data.splits": "file"}):
        questions = question_file.read(config.file)
    for place, record in questions:
        if not isinstance(record, dict) or not isinstance(record.get("question"), str):
            raise InputError(f'{place} has no text under "question"; write {{"question": "..."}} in every line.')
    prompts = [speaker.tokens(record["question"]) for _, record in questions]
    answered = folder / "answers.jsonl"
    with answered.open("w", encoding="utf-8") as file:
        for (_, record), answer in zip(questions, speaker.each(prompts, config.batch_size), strict=True):
            file.write(json.dumps({**record, "answer": answer}, ensure_ascii=False) + "\n")
            file.flush()
    log.info("The answers are in %s.", answered)


def _converse(speaker) -> None:
    """Answer each line of the input until it ends.

    At a terminal, an interrupt stops the answer alone, and a question that cannot be answered ends nothing.
    """
    is_typed = sys.stdin.isatty()
    before: list[int] = []
    if is_typed:
        follows = "follows from those before it" if speaker.converses else "is answered by itself"
        log.info("Each question %s. %s starts over, Ctrl-C stops an answer, Ctrl-D ends the program.", follows, RESET)
    while True:
        try:
            print("> " * is_typed, end="", flush=True)
            line = sys.stdin.readline()
            question = line.rstrip("\n")
            if not line:
                return print() if is_typed else None
            if question.strip() == RESET:
                before = []
            elif question.strip():
                tokens = speaker.stream(_following(speaker, question, before), stoppable=is_typed)
                before = tokens if speaker.converses else []
        except KeyboardInterrupt:  # at the prompt
            if not is_typed:
                raise
            print("\nCtrl-D ends the program.")
        except InputError as message:
            if not is_typed:
                raise
            log.warning("%s", message)


def _following(speaker, question: str, before: list[int]) -> list[int]:
    """Encode a question after the conversation before it, which starts over if both do not fit the context."""
    try:
        return speaker.tokens(question, before)
    except InputError as message:
        if not before:
            raise
        log.warning("%s The conversation starts over.", message)
        return speaker.tokens(question)
