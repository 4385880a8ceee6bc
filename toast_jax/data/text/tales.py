"""Tales for a demonstration that needs no download: what three children did, and a question about one of them.

    Tom found a red ball. Lily saw a big hat. Ben lost an old key. What did Lily see?  ->  Lily saw a big hat.

The words are those of stories for small children. Splits share all names and things, but none of the pairs of a child and its
thing, so no answer to a question of one split stands anywhere in another.
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

# A pair of a child and its thing belongs to the split that has the remainder of the sum of their numbers by five.
SPLITS = {"train": (0, 1, 2), "val": (3,), "test": (4,)}
_REMAINDERS = 5
QUESTIONS = "questions.jsonl"
_CHILDREN = 3  # of a tale


class Tale(NamedTuple):
    """A tale, a question about it, and the only answer that counts as right."""

    text: str
    question: str
    answer: str


def tale(split: str, index: int) -> Tale:
    """Tells tale `index` of a split, always the same one."""
    rng = np.random.default_rng((tuple(SPLITS).index(split), index))
    children, kinds, verbs = rng.permutation(len(NAMES))[:_CHILDREN], rng.permutation(KINDS), rng.permutation(list(VERBS))
    said, things = [], []
    for child, kind, past in zip(children, kinds, verbs, strict=False):
        own = [i for i in range(len(THINGS)) if (child + i) % _REMAINDERS in SPLITS[split] and i not in things]
        things.append(int(rng.choice(own)))
        article = "an" if kind[0] in "aeiou" else "a"
        said.append(f"{NAMES[child]} {past} {article} {kind} {THINGS[things[-1]]}.")
    asked = rng.integers(_CHILDREN)
    return Tale(" ".join(said), f"What did {NAMES[children[asked]]} {VERBS[verbs[asked]]}?", said[asked])


def write(folder: Path, counts: dict[str, int]) -> None:
    """Writes the first tales of each split as `SPLIT.jsonl`, and what is asked about those of test as `questions.jsonl`.

    Args:
      folder: there already.
      counts: tales by split, and of `text` the number of tales of the split train without questions.

    Lines are `{"prompt", "response"}` for `--config.data.format=prompts`, `{"text"}` for plain text, and `{"question"}` for
    `configs/generate.py`.
    """
    for split in SPLITS:
        told = [tale(split, i) for i in range(counts[split])]
        asked = [f"{one.text} {one.question}" for one in told]
        answered = [{"prompt": one, "response": f" {tale.answer}"} for one, tale in zip(asked, told, strict=True)]
        _write_lines(folder / f"{split}.jsonl", answered)
        if split == "test":
            _write_lines(folder / QUESTIONS, [{"question": one} for one in asked])
    first = counts["train"]
    _write_lines(folder / "text.jsonl", [{"text": tale("train", first + i).text} for i in range(counts["text"])])


def _write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
