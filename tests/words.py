"""A tokenizer for tests, which needs no library: single characters, letters with the space before them."""

import re
import string
import sys

from toast_jax.data.text import documents
from toast_jax.data.text.tokenizer import Encoded, encode_parts

_SINGLE = [*string.printable]
_PIECES = ["", "<s>", "</s>", *_SINGLE, *(f" {one}" for one in _SINGLE)]


class Words:
    vocabulary, begin, end = len(_PIECES), 1, 2
    pieces = _PIECES
    special = {"<s>": 1, "</s>": 2}

    def encode(self, text):
        found = list(re.finditer(r" ?\w|.", text, re.DOTALL))
        return Encoded([_PIECES.index(match[0]) for match in found], [match.end() for match in found])

    def encode_marked(self, text, special):
        return encode_parts(self.encode, self.special, text, special)

    def decode(self, ids):
        return "".join(_PIECES[i] if i > 2 else "" for i in ids)


def plain_without_jax(record):
    """`documents.plain`, for worker processes, which must not load JAX."""
    assert "jax" not in sys.modules and not {"toast_jax.train", "toast_jax.model", "toast_jax.devices"} & sys.modules.keys()
    return documents.plain(record)
