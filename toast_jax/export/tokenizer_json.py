"""A tokenizer of llama2.c in the format of the tokenizers library, which transformers reads."""

from pathlib import Path
from typing import Any

from toast_jax.data.text.tokenizer import FIRST_BYTE, llama2c_pieces

_SPACE = "\u2581"  # spells a space in the pieces of sentencepiece
_SPECIAL = ("<unk>", "<s>", "</s>")


def converted(file: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of `tokenizer.json` and `tokenizer_config.json` for a tokenizer file of llama2.c."""
    unknown, begin, end = _SPECIAL
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": name, **added} for token, name in enumerate(_SPECIAL)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, _replaced(" ", _SPACE)]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(begin), _sequence("A", 0)],
            "pair": [_special(begin), _sequence("A", 0), _special(begin, 1), _sequence("B", 1)],
            "special_tokens": {begin: {"id": begin, "ids": [_SPECIAL.index(begin)], "tokens": [begin]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _replaced(_SPACE, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True, **_vocabulary(file)},
    }
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown, "bos_token": begin, "eos_token": end}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": names | {"clean_up_tokenization_spaces": False}}


def _vocabulary(file):
    """Return the token of each piece, and the pairs of pieces to merge: those of higher scores first, then of lower tokens."""
    pieces = [(piece.decode(errors="replace").replace(" ", _SPACE), score) for piece, score in llama2c_pieces(file)]
    pieces[:FIRST_BYTE] = [(name, 0.0) for name in _SPECIAL]
    vocabulary = {piece: token for token, (piece, _) in enumerate(pieces)}
    mergeable = {piece: token for piece, token in vocabulary.items() if token >= FIRST_BYTE + 256}
    merges = [
        (-score, mergeable[piece[:cut]], mergeable[piece[cut:]], f"{piece[:cut]} {piece[cut:]}")
        for piece, score in pieces[FIRST_BYTE + 256 :]
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    return {"vocab": vocabulary, "merges": [pair for *_, pair in sorted(merges)]}


def _replaced(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _special(name, kind=0):
    return {"SpecialToken": {"id": name, "type_id": kind}}


def _sequence(name, kind):
    return {"Sequence": {"id": name, "type_id": kind}}
