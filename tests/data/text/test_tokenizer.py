"""Tokenizers of both libraries: tokens, where they end in the text, and files that are refused."""

import importlib
import io
import random
import struct

import pytest

from tests.conftest import refusals_of_damaged_copies
from toast_jax.data.text import tokenizer
from toast_jax.errors import InputError

TEXT = "Once upon a time,\n\nthere was  a naïve 🙂 owl"


def sentencepiece_model(path, **options):
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(["once upon a time there was an owl"] * 50),
        model_writer=model,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
        **{"model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2},
    )
    path.write_bytes(model.getvalue())
    return path


def json_model(path, special=("<s>", "</s>")):
    library = pytest.importorskip("tokenizers")
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(["once upon a time there was an owl"] * 50, trainer)
    model.save(str(path))
    return path


def llama2c_file(path, pieces):
    """A file of llama2.c with these pieces, `(score, bytes)`, after the special ones and those of single bytes."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    every = [*((0.0, piece) for piece in special), *pieces]
    lines = [struct.pack("<fi", score, len(piece)) + piece for score, piece in every]
    path.write_bytes(struct.pack("<i", max(len(piece) for _, piece in every)) + b"".join(lines))
    return path


def llama2c_model(path):
    """What llama2.c makes of `sentencepiece_model`'s file."""
    library = pytest.importorskip("sentencepiece")
    model = library.SentencePieceProcessor(model_file=str(sentencepiece_model(path.parent / "of_llama2c.model")))
    rest = range(259, model.vocab_size())
    return llama2c_file(path, [(model.get_score(i), model.id_to_piece(i).replace("▁", " ").encode()) for i in rest])


MODELS = [(sentencepiece_model, "tokenizer.model"), (json_model, "tokenizer.json"), (llama2c_model, "tok300.bin")]


@pytest.mark.parametrize(("make", "name"), MODELS)
def test_tokens_end_where_they_do_in_the_text(make, name, tmp_path):
    make(tmp_path / name)
    words = tokenizer.load(str(tmp_path))
    ids, ends = words.encode(TEXT)
    assert words.decode(ids) == TEXT and ends[-1] == len(TEXT) and ends == sorted(ends)
    assert len(set(ids)) > 10 and max(ids) < words.vocabulary
    for i, end in enumerate(ends):
        beginning = words.decode(ids[: i + 1]).rstrip("\ufffd")
        # A character that is not whole yet counts as begun.
        assert TEXT.startswith(beginning) and end - len(beginning) in (0, 1)
    assert words.encode("") == ([], [])
    assert {words.begin, words.end} == ({0, 1} if name.endswith("json") else {1, 2})


@pytest.mark.parametrize(("make", "name"), MODELS)
def test_pieces_are_of_whole_characters(make, name, tmp_path):
    make(tmp_path / name)
    words = tokenizer.load(str(tmp_path))
    encoded = words.encode(TEXT).ids
    ids = [words.begin, *encoded, words.end, words.end, *words.encode("é").ids]
    pieces = list(tokenizer.pieces(words, ids))
    names = {token: spelled for spelled, token in words.special.items()}
    ended = names[words.end]
    assert "".join(text for _, text in pieces) == names[words.begin] + TEXT + 2 * ended + "é"
    assert sum(count for count, _ in pieces) == len(ids) and (1, names[words.begin]) == pieces[0]
    owl = next(count for count, text in pieces if "🙂" in text)
    assert owl == 4 and max(len(text.strip()) for _, text in pieces) < len(TEXT) / 2
    # Bytes of a model that has learned little: the middle of a character, and one that is never finished.
    cut = [token for token in encoded if words.decode([token]) == "\ufffd"][-3:]
    broken = list(tokenizer.pieces(words, [*cut, *cut, *words.encode("a").ids]))
    assert sum(count for count, _ in broken) == 6 + len(words.encode("a").ids) and all(count <= 4 for count, _ in broken)
    assert "\ufffd" in broken[0][1] and broken[-1][1].strip("\ufffd ") == "a"


@pytest.mark.parametrize(("make", "name"), MODELS)
def test_tokens_that_only_a_padded_embedding_has_are_no_text(make, name, tmp_path):
    make(tmp_path / name)
    words = tokenizer.load(str(tmp_path))
    beyond, encoded = [words.vocabulary, words.vocabulary + 63], words.encode("an owl").ids
    assert words.decode([*encoded, *beyond]) == "an owl" and words.decode(beyond) == ""
    assert "".join(text for _, text in tokenizer.pieces(words, [*encoded, *beyond, *encoded])).count("owl") == 2


def test_tokenizer_of_llama2c_gives_the_tokens_of_sentencepiece(tmp_path):
    theirs = tokenizer.load(str(sentencepiece_model(tmp_path / "tokenizer.model")))
    ours = tokenizer.load(str(llama2c_model(tmp_path / "tok300.bin")))
    draw = random.Random(0)
    for text in [TEXT, " ", "<s>", *("".join(draw.choices("once upn\n.,é🙂", k=40)) for _ in range(200))]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text).ids) == text


def test_tokenizer_of_llama2c_merges_the_highest_score_first_and_the_leftmost_of_equals(tmp_path):
    pieces = [(-9, b" "), (-9, b"a"), (-9, b"b"), (-3, b"aa"), (-2, b"ab"), (-1, b"aab"), (-4, b" a")]
    words = tokenizer.load(str(llama2c_file(tmp_path / "tok.bin", pieces)))
    said = lambda text: [pieces[one - 259][1].decode() for one in words.encode(text).ids]  # noqa: E731
    assert said("aaa") == [" ", "aa", "a"]  # not " a", "aa"
    assert said("aab") == [" ", "aab"]  # by way of "ab"
    assert words.encode("é") == ([259, 3 + 0xC3, 3 + 0xA9], [0, 1, 1]) and words.vocabulary == 266


def test_tokenizer_that_rewrites_text_is_refused(tmp_path):
    sentencepiece_model(tmp_path / "tokenizer.model", normalization_rule_name="nfkc")
    with pytest.raises(InputError, match="rewrites text before it splits it"):
        tokenizer.load(str(tmp_path)).encode("½ owl")


def test_tokenizer_without_an_end_is_refused(tmp_path):
    json_model(tmp_path / "tokenizer.json", special=("[CLS]",))
    with pytest.raises(InputError, match="has none of </s>, <|end_of_text|>, which end a document"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer.bin"])
def test_damaged_files_are_refused(name, tmp_path):
    if not name.endswith("bin"):
        pytest.importorskip("sentencepiece" if name.endswith("model") else "tokenizers")
    (tmp_path / name).write_bytes(b"{}nothing")
    with pytest.raises(InputError, match=f"{name} is no "):
        tokenizer.load(str(tmp_path / name))


@pytest.mark.parametrize(("make", "name"), [(sentencepiece_model, "tokenizer.model"), (json_model, "tokenizer.json")])
def test_damaged_bytes_give_a_tokenizer_or_an_input_error(make, name, tmp_path):
    def used(path):
        words = tokenizer.load(path)
        words.decode(words.encode(TEXT).ids)

    assert refusals_of_damaged_copies(make(tmp_path / name), used)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:99], lambda content: b"\xff" * 400])
def test_damaged_tokenizer_of_llama2c_is_refused(damage, tmp_path):
    file = llama2c_file(tmp_path / "tok.bin", [(0, b"a")])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="tok.bin is no tokenizer of llama2.c"):
        tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_missing_library_is_told(name, tmp_path, monkeypatch):
    def missing(_):
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="needs (sentencepiece|tokenizers); `pip install -r requirements-language.txt`"):
        tokenizer.load(str(tmp_path))


def test_missing_files_are_told_by_their_field(tmp_path):
    with pytest.raises(
        InputError, match="There is no tokenizer.json, tokenizer.model or tok.*.bin at .*--config.data.tokenizer"
    ):
        tokenizer.load(str(tmp_path))
    with pytest.raises(InputError, match="config.data.tokenizer is empty"):
        tokenizer.load("")


@pytest.mark.parametrize("text", ["\u2581\u2584\u2588", "a\u2581b", "bars \u2581\u2582\u2583 and \u2581\u2581 an owl \u2581"])
def test_the_lower_block_is_learned_as_the_tokenizer_encodes_it(tmp_path, text):
    words = tokenizer.load(str(sentencepiece_model(tmp_path / "tokenizer.model")))
    ids, ends = words.encode(text)
    library = importlib.import_module("sentencepiece").SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ids == library.encode(text) and words.decode(ids) == text.replace("\u2581", " ")
    assert (ids, ends) == words.encode(text.replace("\u2581", " ")) and ends[-1] == len(text)


def test_state_in_a_tokenizer_json_is_ignored(tmp_path):
    path = json_model(tmp_path / "tokenizer.json")
    expected = tokenizer.load(str(path)).encode(TEXT)
    library = importlib.import_module("tokenizers")
    for change in (
        lambda model: model.enable_truncation(4),
        lambda model: model.enable_padding(length=512, pad_id=0, pad_token="<s>"),
        lambda model: setattr(model.model, "dropout", 0.9),
    ):
        model = library.Tokenizer.from_file(str(path))
        change(model)
        model.save(str(tmp_path / "changed.json"))
        assert (tmp_path / "changed.json").read_text() != path.read_text()
        assert tokenizer.load(str(tmp_path / "changed.json")).encode(TEXT) == expected
