"""Scores of language models equal those of one sequence at a time, and files without answers are refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import score as score_config
from tests.model.backbones.llama.test_network import D, G, H, L
from tests.words import Words
from toast_jax.data.text import tokenizer
from toast_jax.errors import InputError
from toast_jax.model import steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.tasks.language import score
from toast_jax.tasks.language.speaker import Speaker

SIZE = llama.Size(D, L, H, G, hidden=24, vocabulary=Words.vocabulary, context=64, tied=True)
CHOICES = [
    {"context": "a cat", "choices": ["sat", "on a mat", " x"], "answer": 1},
    {"context": "e\n", "choices": ["y", "zz z"], "answer": 0},
    {"context": "b ", "choices": ["y", "zz z"], "answer": "zz z"},
    {"context": "c " * 70, "choices": ["d", "e e"], "answer": 0},  # longer than the context
    {"context": "", "choices": ["d", "e e" * 12, "f", "g"], "answer": 2},
]
TEXTS = [{"prompt": f"{i} is", "response": " one" * (1 + i)} for i in range(5)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    words = Words()
    monkeypatch.setattr(tokenizer, "load", lambda path: words)
    monkeypatch.setitem(llama.SIZES, "stories260k", SIZE)


def of(folder, **fields):
    config = score_config.get_config("backbone=stories260k")
    config.network.backbone.weights = "random"
    for name, lines in fields.items():
        if isinstance(lines, list):
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
            fields[name] = str(folder / f"{name}.jsonl")
    config.update({"most": 4, "batch_size": 3, "format": "prompts", **fields})
    return config


def greedy(config):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update({"temperature": 0.0, "top_p": 1.0})
    return Speaker(config)


@functools.partial(jax.jit, static_argnums=(0, 1))
def log_probabilities(model, method, params, tokens):
    pooled = steered.apply(model, method, params, {"tokens": tokens, "segments": jnp.ones_like(tokens)}, call="pooled")
    return jax.nn.log_softmax(steered.apply(model, method, params, pooled, call="logits")[0])


def slow(speaker, ids, start):
    """The log-probabilities of the tokens from `start` on, of a sequence by itself; later ones change nothing."""
    tokens = np.array([ids + [5] * (SIZE.context - len(ids))], np.int32)
    logits = np.asarray(log_probabilities(*speaker.network, tokens))
    return [float(logits[i - 1, ids[i]]) for i in range(start, len(ids))]


def slow_choice(speaker, context, choice):
    words = Words()
    glue = "" if not context or context[-1].isspace() or choice[0] == " " else " "
    before = len(words.encode(context.rstrip()).ids)
    ids = [words.begin, *words.encode(context + glue + choice).ids]
    surplus = max(len(ids) - SIZE.context, 0)
    return sum(slow(speaker, [ids[0], *ids[1 + surplus :]], 1 + before - surplus))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder of scores, and a speaker of the same network. Some expected answers are those that it generates."""
    folder = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "load", lambda path: Words())
        patch.setitem(llama.SIZES, "stories260k", SIZE)
        speaker = greedy(of(folder))
        generated = [speaker.answers([speaker.tokens(f"{i}")])[0] for i in range(9)]
        questions = [{"question": f"{i}", "answer": [text, "x"] if i % 3 else f"{text} y"} for i, text in enumerate(generated)]
        score.run(of(folder, choices=CHOICES, questions=questions, text=TEXTS), str(folder))  # of context 64, not 512
    return folder, speaker, generated


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_likelihoods_of_choices_are_those_of_one_at_a_time(scored):
    folder, speaker, _ = scored
    result, correct = json.loads((folder / "score.json").read_text())["choices"], []
    differ = 0
    for line, record in zip(lines(folder / "choices_scored.jsonl"), CHOICES, strict=True):
        expected = [slow_choice(speaker, record["context"], choice) for choice in record["choices"]]
        np.testing.assert_allclose(line["log_likelihoods"], expected, rtol=1e-5)
        by_character = [value / len(choice.strip()) for value, choice in zip(expected, record["choices"], strict=True)]
        picked = [values.index(max(values)) for values in (expected, by_character)]
        assert [line["picked"], line["picked_normalized"]] == picked
        differ += picked[0] != picked[1]
        correct.append([choice == line["answer"] for choice in picked])
        assert record["answer"] in (line["answer"], record["choices"][line["answer"]])
    for name, values in zip(("accuracy", "accuracy_normalized"), np.array(correct).T, strict=True):
        assert result[name]["mean"] == np.mean(values)
    assert (result["count"], result["contexts_cut"]) == (5, 1) and differ


def test_a_context_that_is_cut_without_a_begin_token_is_its_end(scored, monkeypatch):
    _, speaker, _ = scored
    words, choices = Words(), ["!", "?!"]
    monkeypatch.setattr(words, "begin", None, raising=False)
    monkeypatch.setattr(speaker, "tokenizer", words)
    context = "".join("ab"[i % 3 == 0] for i in range(SIZE.context + 9)) + ":"
    (values,), cut = score.log_likelihoods(speaker, [score.Question(context, choices, 0)], 8)
    ids = [words.encode(f"{context} {choice}").ids for choice in choices]
    counts = [len(one) - len(words.encode(context).ids) for one in ids]
    expected = [sum(slow(speaker, one[-SIZE.context :], SIZE.context - count)) for one, count in zip(ids, counts, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert cut == 1


def test_answers_are_those_of_one_question_at_a_time(scored):
    folder, _, generated = scored
    result, answered = json.loads((folder / "score.json").read_text())["questions"], lines(folder / "answers.jsonl")
    assert [line["generated"] for line in answered] == generated
    assert [line["exact_match"] for line in answered] == [float(i % 3 > 0) for i in range(9)]
    assert result["exact_match"]["mean"] == pytest.approx(6 / 9) and result["count"] == 9
    assert (
        result["f1"]["mean"] == pytest.approx(np.mean([line["f1"] for line in answered])) and 6 / 9 < result["f1"]["mean"] < 1
    )
    assert result["f1"]["interval"][0] < result["f1"]["mean"] < result["f1"]["interval"][1]


def test_perplexity_is_that_of_one_text_at_a_time(scored):
    folder, speaker, _ = scored
    result, words, expected = json.loads((folder / "score.json").read_text())["text"], Words(), []
    for text in TEXTS:
        ids = [words.begin, *words.encode(text["prompt"] + text["response"]).ids, words.end]
        expected += slow(speaker, ids, 1 + len(words.encode(text["prompt"]).ids))
    assert result["count"] == len(expected) and result["perplexity"] == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "expected", "match", "f1"),
    [
        ("The  Cat!", "a cat", 1, 1),
        ("cat dog", "cat", 0, 2 / 3),
        ("cat cat", "cat dog", 0, 0.5),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("cat", "", 0, 0),
        ("theatre", "atre", 0, 0),
    ],
)
def test_words_are_compared_as_in_squad(text, expected, match, f1):
    assert score.exact_match(text, expected) == match
    assert score.token_f1(text, expected) == score.token_f1(expected, text) == pytest.approx(f1)


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 0}


@pytest.mark.parametrize(
    ("field", "record", "message"),
    [
        (
            "choices",
            {"context": "a", "choices": ["b", "c"]},
            r'Line 2 .* has no "answer" among its 2 choices \(None\); write the',
        ),
        ("choices", GOOD | {"answer": 2}, r'has no "answer" among its 2 choices \(2\)'),
        ("choices", GOOD | {"answer": True}, r'has no "answer" among its 2 choices \(True\)'),
        ("choices", GOOD | {"answer": "d"}, r'has no "answer" among its 2 choices \(.d.\)'),
        ("choices", GOOD | {"choices": ["b"]}, 'no list of two or more under "choices"'),
        ("choices", GOOD | {"choices": ["b", " "]}, "has a choice that is empty or no text"),
        ("choices", GOOD | {"choices": ["b", 3]}, "has a choice that is empty or no text"),
        ("choices", GOOD | {"context": None}, 'has no text under "context"'),
        ("choices", ["a"], 'has no text under "context"'),
        ("choices", GOOD | {"choices": ["b", "c" * 64]}, "The choice 'c+' has no context before it in the 64 tokens"),
        ("questions", {"question": "a"}, 'has no text under "question" or none under "answer"'),
        ("questions", {"question": "a", "answer": []}, 'has no text under "question" or none under "answer"'),
        ("questions", {"question": "a", "answer": [1]}, "has an answer that is no text"),
        ("questions", {"question": "a" * 64, "answer": "b"}, "it does not fit the 64"),
    ],
)
def test_files_without_answers_are_refused(field, record, message, tmp_path):
    good = GOOD if field == "choices" else {"question": "a", "answer": "b"}
    with pytest.raises(InputError, match=message):
        score.run(of(tmp_path, **{field: [good, record]}), str(tmp_path))


def test_nothing_to_score_is_refused(tmp_path):
    with pytest.raises(InputError, match="Nothing to measure; name a file in --config.choices, --config.questions or --config"):
        score.run(of(tmp_path), str(tmp_path))
    config = of(tmp_path, choices=[GOOD])
    config.network = {}
    with pytest.raises(
        InputError, match="Nothing to score with; write --config=configs/score.py:run=RUN, or :backbone=BACKBONE"
    ):
        score.run(config, str(tmp_path))
    with pytest.raises(InputError, match="config.length is 65, but this network reads 64 tokens; set --config.length=64"):
        score.run(of(tmp_path, text=TEXTS, length=65), str(tmp_path))
    for field in ("choices", "questions", "text"):
        with pytest.raises(InputError, match=f"The text nowhere.jsonl cannot be read .*; correct --config.{field}."):
            score.run(of(tmp_path, **{field: "nowhere.jsonl"}), str(tmp_path))
