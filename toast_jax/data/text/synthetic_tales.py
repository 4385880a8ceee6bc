"""Tales for a demonstration without downloads: what three children did, and a question about one of them.

    Tom found a red ball. Lily saw a big hat. Ben lost an old key. What did Lily see?  ->  Lily saw a big hat.

The words are those of stories for small children. Splits share all names and things but no pair of a child and a thing, so no
answer of one split occurs in another.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAMES = ("Lily", "Tom", "Ben", "Sara", "Mia", "Tim", "Anna", "Max", "Sam", "Lucy", "Jack", "Sue", "Amy", "Bob", "Jane")
THINGS = (
    *("ball", "hat", "doll", "car", "book", "box", "key", "cup", "boat", "shell"),
    *("flower", "leaf", "rock", "coin", "apple", "egg", "stick", "drum", "bell", "bag"),
)
KINDS = ("red", "blue", "green", "yellow", "big", "small", "old", "new")
VERBS = {
    **{"found": "find", "saw": "see", "took": "take", "made": "make"},
    **{"got": "get", "lost": "lose", "bought": "buy", "drew": "draw"},
}

# The pair of child i and thing j belongs to the split that lists (i + j) modulo five.
SPLITS = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
_REMAINDERS = 5
QUESTIONS = "questions.jsonl"
_CHILDREN = 3  # per tale


class Tale(NamedTuple):
    """A tale, a question about it, and the only correct answer."""

    text: str
    question: str
    answer: str


def tale(split: str, index: int) -> Tale:
    """Compose tale `index` of a split, deterministically."""
    rng = np.random.default_rng((tuple(SPLITS).index(split), index))
    children, kinds, verbs = rng.permutation(len(NAMES))[:_CHILDREN], rng.permutation(KINDS), rng.permutation(list(VERBS))
    sentences, things = [], []
    for child, kind, past in zip(children, kinds, verbs, strict=False):
        possible = [i for i in range(len(THINGS)) if (child + i) % _REMAINDERS in SPLITS[split] and i not in things]
        things.append(int(rng.choice(possible)))
        article = "an" if kind[0] in "aeiou" else "a"
        sentences.append(f"{NAMES[child]} {past} {article} {kind} {THINGS[things[-1]]}.")
    asked = rng.integers(_CHILDREN)
    return Tale(" ".join(sentences), f"What did {NAMES[children[asked]]} {VERBS[verbs[asked]]}?", sentences[asked])


def write(folder: Path, counts: dict[str, int]) -> None:
    """Write the first tales of each split as `SPLIT.jsonl`, and the questions of the test split as `questions.jsonl`.

    Args:
      folder: an existing folder.
      counts: number of tales by split; `text` counts further tales of the training split, written without questions.

    Lines are `{"prompt", "response"}` for `--config.data.format=prompts`, `{"text"}` for plain text, and `{"question"}` for
    `configs/generate.py`.
    """
    for split in SPLITS:
        tales = [tale(split, i) for i in range(counts[split])]
        prompts = [f"{each.text} {each.question}" for each in tales]
        records = [{"prompt": prompt, "response": f" {each.answer}"} for prompt, each in zip(prompts, tales, strict=True)]
        _write_lines(folder / f"{split}.jsonl", records)
        if split == "test":
            _write_lines(folder / QUESTIONS, [{"question": prompt} for prompt in prompts])
    first = counts["train"]
    _write_lines(folder / "text.jsonl", [{"text": tale("train", first + i).text} for i in range(counts["text"])])


def _write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
