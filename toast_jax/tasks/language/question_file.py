"""Files of questions for a language model."""

from pathlib import Path
from typing import Any

from toast_jax.data.text import documents
from toast_jax.errors import InputError


def read(path: str) -> list[tuple[str, Any]]:
    """Read the records of a file, each with its place, such as "Line 2 of q.jsonl", for an error.

    Raises:
      InputError: the file cannot be read or is empty.
    """
    file = Path(path).expanduser()
    records = [(f"{place} of {file}", record) for place, record in documents.records(file)]
    if not records:
        raise InputError(f"{file} has no questions; give another file.")
    return records
