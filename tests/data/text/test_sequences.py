"""Sequences: which tokens are predicted, against a slow count; packing, padding and batches."""

import json
import os
import tracemalloc

import numpy as np
import pytest

from tests.words import Words
from toast_jax.data.text import batches, documents, sequences, tokenizer
from toast_jax.data.text.documents import Turn
from toast_jax.data.text.tokenizer import Encoded
from toast_jax.errors import InputError

LLAMA = os.environ.get("TOAST_STORIES15M", "")
SHAREGPT = os.environ.get("TOAST_SHAREGPT", "")
DOCUMENTS = [
    [Turn("ask a: bc", 7), Turn("d: ef", 3)],
    [Turn("xy", 0, ends=False)],
    documents.conversation({"conversations": [{"from": "human", "value": "h i"}, {"from": "gpt", "value": "yo u"}]})[0],
]


def slow(document, words):
    """A token is an answer if the text is longer with it than where the answer begins, told by decoding every beginning."""
    ids, answers = [words.begin], [False]
    for turn in document:
        tokens = words.encode(turn.text).ids
        for count in range(1, len(tokens) + 1):
            ids.append(tokens[count - 1])
            beginning = words.decode(tokens[:count])
            # Bytes of a character that is not whole yet are shown as one; it counts as begun.
            answers.append(len(beginning) > turn.answer)
        if turn.ends:
            ids.append(words.end)
            answers.append(True)
    return ids, answers


@pytest.mark.parametrize("document", DOCUMENTS)
def test_answers_are_those_of_a_slow_count(document):
    words = Words()
    assert sequences.encode(document, words) == slow(document, words)
    assert any(sequences.encode(document, words)[1])


def test_a_space_before_the_answer_is_of_its_first_word():
    words = Words()
    ids, answers = sequences.encode([Turn("a: bc", 3)], words)
    assert [words.pieces[i] for i, one in zip(ids, answers, strict=True) if one] == [" b", "c", "</s>"]


@pytest.mark.skipif(not (LLAMA and SHAREGPT), reason="set TOAST_STORIES15M and TOAST_SHAREGPT (a .json of ShareGPT)")
def test_answers_of_real_conversations_by_a_real_tokenizer():
    pytest.importorskip("sentencepiece")
    words = tokenizer.load(LLAMA)
    texts = list(documents.stream(SHAREGPT, documents.conversation))[:60]
    for document in texts:
        ids, answers = sequences.encode(document, words)
        assert (ids, answers) == slow(document, words)
        expected = "".join(turn.text[turn.answer :] for turn in document)
        got = "".join(words.decode(run) for run in _runs(ids, answers, words.end))
        assert got.replace(" ", "") == expected.replace(" ", "")


def _runs(ids, answers, end):
    run = []
    for token, one in zip(ids, answers, strict=True):
        if one and token != end:
            run.append(token)
        elif run:
            yield run
            run = []


def test_packed_documents_follow_one_another():
    words = Words()
    source = sequences.packed(DOCUMENTS[:2], words, 8)
    encoded = [sequences.encode(document, words)[0] for document in DOCUMENTS[:2]]
    joined = [*encoded[0], *encoded[1]]
    assert len(source) == len(joined) // 8 == 2
    np.testing.assert_array_equal(source.tokens.ravel(), joined[:16])
    np.testing.assert_array_equal(source.segments.ravel(), np.repeat([1, 2], [len(encoded[0]), 3])[:16])
    for row in (0, 1):
        item = source[row]
        np.testing.assert_array_equal(item["label"][:-1], item["tokens"][1:])
        for place in range(8):
            last = place == 7
            expected = not last and source.answers[row, place + 1] and item["segments"][place] == item["segments"][place + 1]
            assert (item["weight"][place] > 0) == expected
        assert item["mask"] == (item["weight"] > 0).sum() > 0
        np.testing.assert_allclose(item["weight"].sum(), 1, rtol=1e-6)


def test_nothing_is_predicted_across_documents():
    source = sequences.packed([[Turn("ab", 0, False)], [Turn("cd", 0, False)]], Words(), 6)
    np.testing.assert_array_equal(source[0]["segments"], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(source[0]["weight"] > 0, [True, True, False, True, True, False])


def test_padded_documents_are_cut_and_those_without_answer_left_out(caplog):
    caplog.set_level("WARNING", "toast_jax")
    documents = [[Turn("a:b", 2)], [Turn("a:bcdefgh", 2)], [Turn("asking on", 8)]]
    source = sequences.padded(documents, Words(), 6)
    assert "1 texts are cut off at 6 tokens; 1 are left out" in caplog.text
    np.testing.assert_array_equal(source[0]["segments"], [1, 1, 1, 1, 1, -1])
    np.testing.assert_array_equal(source[0]["weight"] > 0, [False, False, True, True, False, False])  # b, and what ends it
    np.testing.assert_array_equal(source[1]["weight"] > 0, [False, False, True, True, True, False])
    with pytest.raises(InputError, match="No answer begins within 3 tokens; set --config.data.length to more"):
        sequences.padded(documents, Words(), 3)
    with pytest.raises(InputError, match="2 of 3 texts are longer than 6 tokens, the longest has 11; set --config.data.length"):
        sequences.padded(documents, Words(), 6, too_long="refuse")
    assert len(sequences.padded(documents, Words(), 11, too_long="refuse")) == 3


def test_a_text_whose_only_answer_is_its_first_token_is_left_out(monkeypatch, caplog):
    """Nothing comes before it, so it is not predicted; a validation set of such texts had a loss of 0 / 0."""
    words = Words()
    monkeypatch.setattr(words, "begin", None, raising=False)
    assert len(sequences.padded([[Turn("", 0)], [Turn("a", 0)]], words, 6)) == 1 and "1 are left out" in caplog.text
    with pytest.raises(InputError, match="No answer begins within 6 tokens"):
        sequences.padded([[Turn("", 0)]], words, 6)


class Numbers:
    """A tokenizer that takes no time: as many tokens as characters, of all sizes."""

    begin = None

    def encode(self, text):
        return Encoded(list(range(1000, 1000 + len(text))), list(range(1, len(text) + 1)))


def test_packing_holds_few_bytes_a_token():
    """In use of Python's own memory, and NumPy's; the documents come from an iterator."""
    count, length = 2000, 300
    tracemalloc.start()
    try:
        source = sequences.packed(([Turn("x" * length, 0, False)] for _ in range(count)), Numbers(), 512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.tokens.dtype == source.segments.dtype == np.int32 and source.answers.all()
    assert source.tokens.ravel()[-1] == 1000 + (source.tokens.size - 1) % length
    assert peak < 12 * count * length  # 9 that stay; lists of integers took 50


def test_too_little_text_is_refused():
    with pytest.raises(InputError, match="The text has 3 tokens, fewer than one sequence"):
        sequences.packed([DOCUMENTS[1]], Words(), 4)


def source(count=7):
    return sequences.padded([[Turn(f"{i}:{i}", 2)] for i in range(count)], Words(), 6)


def train_batches(*args, **fields):
    return list(batches.train_batches(source(), batch_size=2, epochs=2, seed=0, **fields))


def test_epochs_have_their_own_orders_and_a_run_goes_on_where_it_was():
    whole = train_batches()
    assert len(whole) == 6 and whole[0]["tokens"].shape == (2, 6)
    orders = [tuple(batch["tokens"][:, 1].tolist()) for batch in whole]
    assert len(set(sum(orders[:3], ()))) == 6 and orders[:3] != orders[3:]
    for batch in whole:
        np.testing.assert_array_equal(batch["tokens"], source().tokens[batch["index"]])
    for ours, theirs in zip(train_batches(start_step=4), whole[4:], strict=True):
        np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])
    first, second = train_batches(shard=(0, 2)), train_batches(shard=(1, 2))
    for batch, parts in zip(whole, zip(first, second, strict=True), strict=True):
        np.testing.assert_array_equal(batch["tokens"], np.concatenate([part["tokens"] for part in parts]))


def test_evaluation_has_every_sequence_once_and_padding_that_counts_for_nothing():
    seen = list(batches.eval_batches(source(), batch_size=4))
    tokens = np.concatenate([batch["tokens"] for batch in seen])
    np.testing.assert_array_equal(tokens[:7], source().tokens)
    assert np.concatenate([batch["index"] for batch in seen]).tolist() == [*range(7), -1]
    last = seen[-1]
    assert len(seen) == 2 and last["mask"][-1] == 0 and not last["weight"][-1].any() and last["mask"][0] == 2
    assert {batch["mask"].dtype for batch in seen} == {np.dtype(np.float32)}
    assert json.dumps(sorted(last)) == json.dumps(["index", "label", "mask", "segments", "tokens", "weight"])
