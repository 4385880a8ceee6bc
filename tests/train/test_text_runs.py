"""Runs on text, end to end with a tiny network: pre-tuned, tuned, evaluated, exported, and made to speak."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import alpaca, openwebtext, vicuna
from configs import convert as convert_config
from configs import generate as generate_config
from configs import relevance as relevance_config
from configs import score as score_config
from tests import ROOT
from tests.model.backbones.llama.test_network import D, G, H, L
from tests.words import Words
from toast_jax import trees
from toast_jax.config.run_fields import language
from toast_jax.data.text import token_cache, tokenizer
from toast_jax.devices import parallel
from toast_jax.errors import InputError, Interrupted
from toast_jax.model import steered
from toast_jax.model.backbones.llama import network as llama
from toast_jax.model.layers import dtypes
from toast_jax.tasks import convert, evaluate, train
from toast_jax.tasks.language import generate, relevance, score, stop_strings
from toast_jax.train import checkpoint, loop, saved_run, setup, text_runs
from toast_jax.weights import rename
from toast_jax.workdir import fingerprint, interrupt

LENGTH = 32
SIZE = llama.Size(D, L, H, G, hidden=24, vocabulary=Words.vocabulary, context=192, tied=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A tokenizer that needs no library, one for all, and a network that is small enough."""
    words = Words()
    monkeypatch.setattr(tokenizer, "load", lambda path: words)
    monkeypatch.setitem(llama.SIZES, "stories260k", SIZE)


def of(module, folder, **given):
    """A run of two epochs of a few steps."""
    given = ",".join(f"{name}={value}" for name, value in {"backbone": "stories260k", **given}.items())
    config = module.get_config(given)
    config.backbone.weights = "random"
    config.batch_size, config.data.length, config.epochs, config.warmup_epochs = 8, LENGTH, 2, 0.0
    config.optimizer.lr = 0.01
    config.data.splits.train = str(folder / "train.json")
    return config


def write(folder, records, name="train.json"):
    (folder / name).write_text(json.dumps(records))


PLAIN = [{"text": "a cat sat on a mat and that was that " * 3} for _ in range(16)]
ASKED = [{"prompt": f"{i % 4}?", "response": f"{i % 4}!" * (1 + i % 3)} for i in range(21)]
SAID = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": f"b{i}"}]} for i in range(40)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run that pre-tuned and of one that tuned with what it left, and the result of the latter."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        words = Words()
        patch.setattr(tokenizer, "load", lambda path: words)
        patch.setitem(llama.SIZES, "stories260k", SIZE)
        write(root, PLAIN)
        config = of(openwebtext, root)
        config.backbone.update({"dtype": "bfloat16", "remat": True})  # half precision is close enough to be the same backbone
        config.microbatches, config.batch_size = 2, 16
        train.run(config, str(root / "pretuned"))
        write(root, ASKED)
        config = of(alpaca, root, method="toast")
        config.data.format, config.data.held_out = "prompts", 0.2
        config.fsdp = 4
        config.top_down = str(root / "pretuned" / "top_down.safetensors")
        loop.fit(config, root / "tuned")
    return root, config


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_pretuning_leaves_a_module_by_the_names_of_the_release(runs):
    root, _ = runs
    module = load_file(root / "pretuned" / "top_down.safetensors")
    layers = [f"model.decoders.{i}.{name}.weight" for i in range(L) for name in ("linear", "linear2")]
    assert sorted(module) == sorted(["model.prompt", "model.top_down_transform", *layers])
    lines = [json.loads(line) for line in (root / "pretuned" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/task_loss", "train/variational_loss", "train/accuracy"} <= set(lines[0])
    assert result(root / "pretuned")["tuned_parameters"]["all"] == 2 * L * D * D + D


def test_a_variational_loss_alone_has_no_perplexity(tmp_path):
    write(tmp_path, PLAIN)
    config = of(openwebtext, tmp_path)
    config.data.splits.val, config.epochs, config.task_weight = config.data.splits.train, 1, 0.0
    told = loop.fit(config, tmp_path / "run")["val"]
    assert set(told) == {"loss", "variational_loss", "count"} and told["loss"] > 0


@pytest.mark.parametrize(
    ("field", "arrays", "message"),
    [
        ("backbone.weights", {"norm.weight": D}, "of another kind or size of network than config.backbone"),
        ("top_down", {"prompt": D + 2, "top_down_transform": (D + 2, D + 2)}, "does not fit the network .* check config"),
        ("module", {"prompt": D}, "belongs to another kind or size of network than the config says"),
    ],
)
def test_files_of_another_size_are_refused_before_the_text_is_tokenized(field, arrays, message, tmp_path, monkeypatch):
    write(tmp_path, ASKED)
    layers = {f"decoders.{i}.{name}.weight": (D + 2, D + 2) for i in range(L) for name in ("linear", "linear2")}
    arrays |= layers if field == "top_down" else {}
    save_file({f"model.{name}": np.ones(shape, "f4") for name, shape in arrays.items()}, tmp_path / "other.safetensors")
    config = of(alpaca, tmp_path, method="toast")
    config.update_from_flattened_dict({field: str(tmp_path / "other.safetensors"), "data.format": "prompts"})
    monkeypatch.setattr(token_cache, "cached", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(InputError, match=message):
        loop.fit(config, tmp_path / "run")


def test_a_regex_that_matches_nothing_is_refused_before_the_text_is_tokenized(tmp_path, monkeypatch):
    write(tmp_path, PLAIN)
    config = of(openwebtext, tmp_path)
    config.optimizer.no_decay = ("nothing",)
    monkeypatch.setattr(token_cache, "cached", lambda *_: pytest.fail("tokenized"))
    with pytest.raises(InputError, match="config.optimizer.no_decay has 'nothing', which matches no parameter"):
        loop.fit(config, tmp_path / "run")


def test_a_run_that_never_leaves_its_warmup_is_refused(tmp_path):
    """The rate of the first step is 0, and there is no other one."""
    write(tmp_path, ASKED[:8])
    config = of(alpaca, tmp_path, method="toast")
    config.data.format, config.data.held_out, config.epochs, config.warmup_epochs = "prompts", 0.0, 1, 0.09
    with pytest.raises(InputError, match="The learning rate is 0 in each of the 1 steps: make the warm-up shorter"):
        setup.prepare(config, tmp_path / "run")


def test_text_of_another_format_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    write(tmp_path, [{"question": "Q", "answer": "A"}])
    config = of(alpaca, tmp_path, method="lora")
    monkeypatch.setattr(setup, "load_network", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match="Record 1 of .* is no record of this --config.data.format"):
        loop.fit(config, tmp_path / "run")


def test_tuning_starts_from_the_module_and_tells_the_perplexity(runs):
    root, config = runs
    ours, before = (load_file(path) for path in (export(root), root / "pretuned" / "top_down.safetensors"))
    assert ours.keys() == before.keys()
    moved = {name for name in ours if (ours[name] != before[name]).any()}
    assert moved == {"model.prompt", *(f"model.decoders.{i}.linear2.weight" for i in range(L))}
    told = result(root / "tuned")
    assert told["val"]["perplexity"] == pytest.approx(math.exp(told["val"]["loss"]))
    predicted = text_runs.open_sources(config, verified=True)[1]["val"]
    assert told["val"]["count"] == sum(item["mask"] for item in predicted)
    assert told["tuned_parameters"] == {"all": L * D * D + D, "without_head": L * D * D + D}
    assert told["tokens_per_second"] is None or told["tokens_per_second"] > 0


def export(root):
    target = root / "tuned.safetensors"
    convert.run(convert_config.get_config(f"from={root}/tuned,to={target}"), "unused")
    return target


def test_a_checkpoint_is_evaluated_to_the_same_numbers(runs):
    root, config = runs
    config = config.copy_and_resolve_references()
    config.task = "evaluate"
    evaluate.run(config, str(root / "tuned"))
    again = json.loads((root / "tuned" / "evaluation.json").read_text())["val"]
    assert again == pytest.approx(result(root / "tuned")["val"])


def test_a_module_of_another_backbone_is_refused(runs, tmp_path):
    root, config = runs
    config = config.copy_and_resolve_references()
    config.seed = 1  # which creates another backbone
    with pytest.raises(InputError, match="was made for another backbone"):
        loop.fit(config, tmp_path)


def spoken(root, **fields):
    config = generate_config.get_config(f"run={root}/tuned")
    config.update({"most": 4, "temperature": 0.0, **fields})
    return config


def test_a_prompt_is_answered_on_the_terminal(runs, capsys):
    root, _ = runs
    speaker = generate.Speaker(spoken(root))
    expected = speaker.answers([speaker.tokens("1?")])[0]
    capsys.readouterr()
    generate.run(spoken(root, prompt="1?"), "unused")
    assert capsys.readouterr().out == expected + "\n"


def test_a_network_whose_layers_are_all_tuned_answers(tmp_path, capsys):
    """On CPUs, generation takes its stacked layers apart, which come from a checkpoint then."""
    write(tmp_path, ASKED)
    config = of(alpaca, tmp_path, method="finetune")
    config.data.format, config.epochs = "prompts", 1
    loop.fit(config, tmp_path / "tuned")
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(saved_run.load(tmp_path / "tuned").params))
    generate.run(spoken(tmp_path, prompt="1?"), "unused")
    assert capsys.readouterr().out


def test_a_file_of_questions_is_answered(runs, tmp_path):
    root, _ = runs
    questions = [{"question": f"{i}?", "id": i} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    generate.run(spoken(root, file=str(tmp_path / "q.jsonl"), batch_size=2), str(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    speaker = generate.Speaker(spoken(root))
    expected = [speaker.answers([speaker.tokens(one["question"])])[0] for one in questions]
    assert lines == [{**one, "answer": answer} for one, answer in zip(questions, expected, strict=True)]


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_the_batch_size_or_on_the_order(runs, tmp_path):
    root, _ = runs
    questions = [f"{i % 3}?" for i in range(5)]  # two of them twice

    def answers(order, batch_size):
        lines = [json.dumps({"question": questions[i]}) for i in order]
        (tmp_path / "q.jsonl").write_text("\n".join(lines))
        fields = {"file": str(tmp_path / "q.jsonl"), "batch_size": batch_size, "temperature": 1.0, "most": 8}
        generate.run(spoken(root, **fields), str(tmp_path))
        said = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        return sorted((line["question"], line["answer"]) for line in said)

    expected = answers(range(5), 2)
    assert len(set(expected)) == 5
    assert answers([4, 2, 0, 1, 3], 2) == answers([1, 0, 3, 2, 4], 3) == expected


def test_a_conversation_goes_on_until_the_input_ends(runs, monkeypatch, capsys):
    """The second question is read with all that was said; one that does not fit begins anew."""
    root, _ = runs
    read = []
    monkeypatch.setattr(generate.Speaker, "stream", lambda self, ids, stoppable: read.append(ids) or [*ids, 7, 2])
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n" + "c" * 20 + "\n"))
    generate.run(spoken(root, format="conversations"), "unused")
    words = tokenizer.load("")
    assert [words.decode(ids)[-26:] for ids in read[:2]] == [
        " questions. USER: a ASSISTANT:"[-26:],
        words.decode(read[1])[-26:],
    ]
    assert read[1][: len(read[0]) + 2] == [*read[0], 7, 2] and "USER: b ASSISTANT:" in words.decode(read[1])
    assert len(read) == 3 and words.decode(read[2]).startswith("A chat between")


class Screen(io.StringIO):
    """A terminal that keeps what it showed after every write, and reads these lines."""

    def __init__(self, *lines):
        super().__init__()
        self.lines, self.shown = iter(lines), []

    def isatty(self):
        return True

    def write(self, text):
        super().write(text)
        self.shown.append(self.getvalue())

    def readline(self):
        line = next(self.lines, "")
        if line is KeyboardInterrupt:
            raise line
        return line


def scripted(monkeypatch, *texts, fault=None, size=1):
    """Make speakers sample these texts, `size` tokens at a time; return the numbers of the parts that were sampled."""
    rows, drawn = [tokenizer.load("").encode(text).ids for text in texts], []
    rows = np.array([row + [2] * (max(map(len, rows)) - len(row)) for row in rows])

    def sample(self, prompts, at_once, *unused):
        for start in range(0, rows.shape[1], size):
            drawn.append(start)
            yield rows[:, start : start + size]
        if fault:
            raise fault

    monkeypatch.setattr(generate.Speaker, "_sample", sample)
    return drawn


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is. USE it. USER: no", "so it is. USE it. "),
        ("a\n\nb", "a"),
        ("a USER", "a USER"),
        ("USER:", ""),
        ("of b c b d e", "of b c"),
    ],
)
def test_an_answer_ends_before_a_stop_string(text, answer, runs, monkeypatch):
    """One that begins within a token too, such as " b"; no part of it is ever shown, and nothing more is sampled."""
    speaker, screen = generate.Speaker(spoken(runs[0], stop=("USER:", "\n\n", " b d"))), Screen()
    monkeypatch.setattr("sys.stdout", screen)
    drawn, words = scripted(monkeypatch, text), tokenizer.load("")
    ids = speaker.stream([5, 6])
    assert screen.getvalue() == f"{answer}\n" and all(f"{answer}\n".startswith(shown) for shown in screen.shown)
    assert ids == [5, 6, *words.encode(answer.rstrip()).ids, 2]  # without the token that begins with a space and ends with U
    least = next(i for i in range(len(text) + 1) if stop_strings.cut(text[:i], speaker._stop)[1] or i == len(text))
    assert len(drawn) == len(words.encode(text[:least]).ids)
    drawn = scripted(monkeypatch, text, "x" + text, size=2)
    assert speaker.answers([[5], [6]]) == [answer, f"x{answer}"]
    assert len(drawn) == -(-len(words.encode("x" + text[:least]).ids) // 2)


def test_an_interrupt_stops_an_answer_or_the_program(runs, monkeypatch, capsys):
    speaker = generate.Speaker(spoken(runs[0]))
    scripted(monkeypatch, "so far", fault=KeyboardInterrupt)
    capsys.readouterr()
    assert speaker.stream([5], stoppable=True) == [5, *tokenizer.load("").encode("so far").ids, 2]
    assert capsys.readouterr().out == "so far\n"
    with pytest.raises(KeyboardInterrupt):
        speaker.stream([5])


def test_a_conversation_at_a_terminal_is_reset_and_survives_interrupts_and_long_questions(runs, monkeypatch, caplog):
    caplog.set_level("INFO", "toast_jax")
    read, lines = [], ("a\n", "/reset\n", "b\n", KeyboardInterrupt, "c" * 200 + "\n", "d\n")
    stream = lambda self, ids, stoppable: read.append((ids, stoppable)) or [*ids, 7, 2]  # noqa: E731
    monkeypatch.setattr(generate.Speaker, "stream", stream)
    monkeypatch.setattr("sys.stdin", Screen(*lines))
    generate.run(spoken(runs[0], format="conversations"), "unused")
    (first, _), (second, _), (third, _) = read
    assert len(second) == len(first) and third[: len(second) + 2] == [*second, 7, 2]
    assert all(stoppable for _, stoppable in read)
    assert "follows from those before it. /reset starts over" in caplog.text and "it does not fit the 192" in caplog.text
    monkeypatch.setattr("sys.stdin", io.StringIO("c" * 200))
    with pytest.raises(InputError, match="it does not fit the 192"):
        generate.run(spoken(runs[0], format="conversations"), "unused")


@pytest.fixture
def chats(tmp_path):
    """The config of a run on messages, with the file of a tokenizer, and conversations of which one is left out."""
    (tmp_path / "tokenizer.json").touch()
    pairs = [[("user", f"{i}?"), ("assistant", f"{i}!")] for i in range(9)] + [[("user", "alone")]]
    write(tmp_path, [{"messages": [{"role": role, "content": content} for role, content in pair]} for pair in pairs])
    config = of(alpaca, tmp_path)
    config.data.update({"format": "messages", "template": "llama-2", "tokenizer": str(tmp_path)})
    return config


def test_messages_are_tuned_on_as_the_template_writes_them(chats, caplog, capsys, tmp_path):
    caplog.set_level("WARNING", "toast_jax")
    source, _ = text_runs.open_sources(chats, verified=True)
    assert len(source) == 9 and "1 records left out" in caplog.text
    words = tokenizer.load("")
    ids, learned = source.tokens[0][source.segments[0] > 0], source.answers[0][source.segments[0] > 0]
    assert tokenizer.spelled(words, ids.tolist()) == "<s>[INST] 0? [/INST] 0! </s>"
    assert tokenizer.spelled(words, ids[learned].tolist()) == " 0! </s>" and ids[0] == words.begin
    chats.show = 2
    train.run(chats, str(tmp_path / "unused"))
    lines = [f"Example {i + 1}: 21 tokens, 4 of them learned.\n<s>[INST] {i}? [/INST][[ {i}! </s>]]\n\n" for i in range(2)]
    assert capsys.readouterr().out == "".join(lines) and not (tmp_path / "unused").exists()
    chats.data.length = 20
    train.run(chats, "unused")
    assert "21 tokens, cut to 20, 3 of them learned.\n<s>[INST] 0? [/INST][[ 0! ]]\n" in capsys.readouterr().out
    chats.data.too_long = "refuse"
    with pytest.raises(InputError, match="9 of 9 texts are longer than 20 tokens, the longest has 21"):
        text_runs.open_sources(chats, verified=True)


def test_a_chat_is_asked_with_its_template(runs, tmp_path, monkeypatch):
    root, _ = runs
    (tmp_path / "tokenizer.json").touch()
    read = []
    monkeypatch.setattr(generate.Speaker, "stream", lambda self, ids, stoppable: read.append(ids) or [*ids, 7, 2])
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    generate.run(spoken(root, format="messages", template="llama-2", tokenizer=str(tmp_path)), "unused")
    spelled = [tokenizer.spelled(tokenizer.load(""), ids) for ids in read]
    assert spelled[0] == "<s>[INST] a [/INST]" and read[1][: len(read[0]) + 2] == [*read[0], 7, 2]
    assert spelled[1].endswith("</s><s>[INST] b [/INST]") and spelled[1].count("<s>") == 2
    with pytest.raises(InputError, match="has no chat template, .*; name one in --config.template: llama-2, llama-3, chatml"):
        generate.run(spoken(root, format="messages", tokenizer=str(tmp_path)), "unused")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a" * 200}, "has 201 tokens, and with --config.most=4 more it does not fit the 192"),
        ({"most": 0}, "config.most is 0; it has to be a whole number, 1 or more"),
        ({"top_p": 0.0}, "config.top_p is 0.0; it has to be a number, 1.0 or less and more than 0.0"),
        ({"top_k": -1}, "config.top_k is -1; it has to be a whole number, 0 or more"),
        ({"repetition_penalty": 0.0}, "config.repetition_penalty is 0.0; it has to be a number, more than 0.0"),
        ({"stop": ("",)}, "config.stop is .*; of these '' is refused: give text, such as 'USER:'"),
        ({"format": "poems"}, "config.format is 'poems'; it must be one of '', text"),
        ({"file": "nowhere.jsonl"}, "The text nowhere.jsonl cannot be read"),
        ({"run": ""}, "Nothing to generate with; write --config=configs/generate.py:run=RUN"),
    ],
)
def test_what_cannot_be_answered_is_refused(fields, message, runs, tmp_path):
    with pytest.raises(InputError, match=message):
        generate.run(spoken(runs[0], **fields), str(tmp_path))


def test_questions_without_their_field_are_refused(runs, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "a"}\n{"text": "b"}')
    with pytest.raises(InputError, match='Line 2 of .*q.jsonl has no text under "question"'):
        generate.run(spoken(runs[0], file=str(tmp_path / "q.jsonl")), str(tmp_path))


def test_files_without_questions_are_refused(runs, tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    path, said = str(tmp_path / "q.jsonl"), r"/q\.jsonl has no questions; give another file\."
    with pytest.raises(InputError, match=said):
        generate.run(spoken(runs[0], file=path), str(tmp_path))
    with pytest.raises(InputError, match=said):
        looked_at(runs[0], tmp_path, file=path)
    for field in ("questions", "choices"):
        config = score_config.get_config(f"run={runs[0]}/tuned")
        config[field] = path
        with pytest.raises(InputError, match=said):
            score.run(config, str(tmp_path))
    assert not (tmp_path / "answers.jsonl").exists()


def looked_at(root, folder, **fields):
    """The text of the page of relevance, and the pieces of each question."""
    config = relevance_config.get_config(f"run={root}/tuned")
    config.update({"most": 4, **fields})
    relevance.run(config, str(folder))
    told = json.loads((folder / "relevance.json").read_text())["questions"]
    return (folder / "relevance.html").read_text(), [[relevance.Piece(**piece) for piece in each["pieces"]] for each in told]


def test_relevance_of_tokens_is_their_cosine_to_the_prior(runs, tmp_path, capsys):
    root, _ = runs
    page, (pieces,) = looked_at(root, tmp_path, prompt="<1> & 1?\n")
    answer = generate.Speaker(spoken(root)).answers([tokens := generate.Speaker(spoken(root)).tokens("<1> & 1?\n")])[0]
    ids = [*tokens, *tokenizer.load("").encode(answer).ids]
    assert capsys.readouterr().out.startswith(answer)
    spelled = "".join(piece.text for piece in pieces)
    assert spelled.removesuffix("</s>") == f"<s><1> & 1?\n{answer}" and pieces[0].special
    assert "".join(piece.text for piece in pieces if piece.answer).removesuffix("</s>") == answer
    saved = saved_run.load(f"{root}/tuned")
    text = {name: np.array([values], np.int32) for name, values in (("tokens", ids), ("segments", [1] * len(ids)))}
    first = jax.jit(functools.partial(steered.apply, saved.model, saved.method, call="frozen_features"))(saved.params, text)
    states, prior = np.asarray(first["tokens"][0], np.float64), np.asarray(saved.params["top_down"]["prior"])
    cosines = states @ prior / np.linalg.norm(states, axis=1) / np.linalg.norm(prior)
    values = [value for piece in pieces for value in piece.relevance]
    np.testing.assert_allclose(values[: len(ids)], np.clip(cosines, 0, 1), atol=1e-4)
    assert np.ptp(values) > 0.01 and page.count("<span") == 5 + len(pieces)
    assert "&lt;</span>" in page and f'title="{values[1]:.3f}">&lt;</span>' in page and "\u21b5\n</span>" in page
    assert "<script" not in page and not re.search(r'(src|href)="', page)


def test_relevance_of_answers_that_are_given(runs, tmp_path):
    root, _ = runs
    lines = [{"question": "1?", "answer": "1!"}, {"question": "2?", "answer": " 2"}, {"question": "3?", "id": 7}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, each = looked_at(root, tmp_path, file=str(tmp_path / "q.jsonl"))
    answers = ["".join(piece.text for piece in pieces if piece.answer) for pieces in each]
    assert answers[:2] == [" 1!</s>", " 2</s>"] and len(answers) == 3


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "a[[ b</s>]]"),
        ("instructions", "### Response:[[b</s>]]"),
        ("conversations", "USER: a ASSISTANT:[[ b</s>]]"),
        ("messages", "<s>[INST] a [/INST][[ b </s>]]"),
    ],
)
def test_an_answer_is_read_as_in_the_tuning_data(form, expected, runs, tmp_path):
    (tmp_path / "tokenizer.json").touch()
    speaker = generate.Speaker(spoken(runs[0], format=form, template="llama-2", tokenizer=str(tmp_path)))
    ids, flags = relevance._given(speaker, "a", "b")
    at = flags.index(True)
    assert all(flags[at:])
    spelled = [tokenizer.spelled(speaker.tokenizer, part) for part in (ids[:at], ids[at:])]
    assert "{}[[{}]]".format(*spelled).endswith(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run": ""}, "Nothing to look at; write --config=configs/relevance.py:run=RUN --config.prompt=QUESTION"),
        ({"prompt": ""}, "Nothing to look at; write --config=configs/relevance.py:run=RUN --config.prompt=QUESTION"),
        ({"answer": "b" * 200}, "The question 'a' and its answer have 203 tokens, more than the 192 that this network reads"),
        ({"file": "nowhere.jsonl"}, "The text nowhere.jsonl cannot be read .*; correct --config.file"),
    ],
)
def test_relevance_that_cannot_be_shown(fields, message, runs, tmp_path):
    with pytest.raises(InputError, match=message):
        looked_at(runs[0], tmp_path, **{"prompt": "a", **fields})


def test_relevance_needs_a_top_down_module_and_questions_that_are_text(runs, tmp_path, monkeypatch):
    (tmp_path / "q.jsonl").write_text('{"question": "a"}\n{"question": "b", "answer": ["c"]}')
    with pytest.raises(InputError, match='Line 2 of .*q.jsonl has no text under "question", or an "answer" that is no text'):
        looked_at(runs[0], tmp_path, file=str(tmp_path / "q.jsonl"))
    saved = saved_run.load(f"{runs[0]}/tuned")
    plain = dataclasses.replace(saved, model=saved.model.clone(top_down=None))
    monkeypatch.setattr(saved_run, "load", lambda *args: plain)
    with pytest.raises(InputError, match=r"tuned has no top-down module \(method toast\), so it selects no tokens"):
        looked_at(runs[0], tmp_path, prompt="a")


@pytest.mark.parametrize(
    ("backbone", "count", "fits"),
    [
        ("qwen2_5_7b", 151_665, True),
        ("qwen3_0_6b", 151_669, True),
        ("qwen3_0_6b", 151_937, False),
        ("qwen3_0_6b", 32_000, False),
        ("llama2_7b", 31_999, False),
        ("llama2_7b", 32_000, True),
    ],
)
def test_embeddings_of_qwen_have_more_rows_than_its_tokenizer_has_tokens(backbone, count, fits, monkeypatch):
    words = Words()
    monkeypatch.setattr(words, "vocabulary", count, raising=False)
    monkeypatch.setattr(tokenizer, "load", lambda place: words)
    config = language(name="x", method="lora", backbone=backbone)
    config.data.tokenizer = "x"
    if fits:
        assert text_runs.open_tokenizer(config) is words
    else:
        with pytest.raises(InputError, match=f"has {count} tokens, and {backbone} .*set --config.backbone.vocabulary to the"):
            text_runs.open_tokenizer(config)
        config.backbone.vocabulary = 152_064
        assert text_runs.open_tokenizer(config) is words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.held_out": 0.999}, "config.data.held_out is 0.999, which leaves nothing of 40 texts on one side"),
        ({"batch_size": 48}, "The training data has 39 examples, fewer than one batch of 48"),
        (
            {"backbone.size": "stories15m"},
            f"has {Words.vocabulary} tokens, and stories15m 32000; give the tokenizer that",
        ),
    ],
)
def test_configs_that_are_refused(changes, message, tmp_path):
    write(tmp_path, SAID)
    config = of(vicuna, tmp_path)
    config.data.length = 192  # Vicuna's words are long by the letter
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        setup.prepare(config, tmp_path / "run")


def test_weights_with_added_tokens_are_read_with_their_number(tmp_path):
    """Of a padding token and of rows that pad the embedding to a round number, which no tokenizer writes."""
    write(tmp_path, ASKED)
    config = of(alpaca, tmp_path)
    config.data.format, config.method = "prompts", "lora"
    network = setup.load_network(config, 0)
    backbone = {path: np.asarray(leaf) for path, leaf in trees.flat(network.frozen).items() if leaf is not None}
    embedding = backbone["backbone/embed"]
    backbone["backbone/embed"] = np.concatenate([embedding, np.full((3, D), 7, np.float32)])
    save_file(rename.to_torch(backbone), tmp_path / "added.safetensors")
    config.backbone.weights = str(tmp_path / "added.safetensors")
    with pytest.raises(InputError, match=f"set --config.backbone.vocabulary={len(embedding) + 3} and give the tokenizer of"):
        setup.prepare(config, tmp_path / "run")
    config.backbone.vocabulary = len(embedding) + 3
    run, _ = setup.prepare(config, tmp_path / "run")
    np.testing.assert_array_equal(run.frozen["backbone"]["embed"], backbone["backbone/embed"])
    config.backbone.vocabulary = len(embedding) - 1
    with pytest.raises(InputError, match=f"has {len(embedding)} tokens, and stories260k {len(embedding) - 1}"):
        setup.prepare(config, tmp_path / "other")


def test_an_answer_ends_with_the_token_that_the_config_says(tmp_path, monkeypatch):
    write(tmp_path, ASKED)
    config = of(alpaca, tmp_path)
    config.data.format = "prompts"
    for end, token in (("end", 2), ("begin", 1)):
        monkeypatch.setattr(tokenizer, "load", lambda path: Words())
        config.data.end = end
        train, _ = text_runs.open_sources(config, verified=True)
        assert train.tokens[0][train.answers[0]][-1] == token
    monkeypatch.setattr(Words, "begin", None)
    with pytest.raises(InputError, match="config.data.end is 'begin', and this tokenizer begins a document with nothing"):
        text_runs.open_sources(config, verified=True)


def test_plain_text_is_packed_in_the_cache_as_in_memory(tmp_path, monkeypatch):
    """And a run that resumes with the cached text continues at the same batch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, PLAIN)))
    config = of(openwebtext, tmp_path)
    config.data.update({"tokenizer": str(tmp_path), "documents": 13})
    config.data.splits.train = config.data.splits.val = str(tmp_path / "text.jsonl")
    plain = text_runs.open_sources(config, verified=True)
    monkeypatch.setattr(token_cache, "MIN_BYTES", 1)
    packed = text_runs.open_sources(config, verified=True)
    for ours, expected in ((packed[0], plain[0]), (packed[1]["val"], plain[1]["val"])):
        assert ours.folder and not expected.folder and fingerprint.of_source(ours) == fingerprint.of_source(expected)
    assert len(packed[0]) < len(packed[1]["val"])
    # As earlier versions hashed them.
    hashed = fingerprint._hashed(plain[0], fingerprint._relative).hexdigest()
    assert fingerprint.of_source(packed[0]) == {"count": len(plain[0]), "content": hashed}
    batches = [list(text_runs.train_batches(config, source, 3)) for source in (packed[0], plain[0])]
    for ours, expected in zip(*batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_dtype_that_the_device_lacks_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    def lacking(x):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: no kernel\nof that type")

    monkeypatch.setattr(dtypes, "_multiplied", lacking)
    config = of(vicuna, tmp_path)
    with pytest.raises(InputError, match="The text .* cannot be read"):  # float32 is not even tried
        setup.prepare(config, tmp_path / "run")
    config.backbone.dtype = "bfloat16"
    message = r"config.backbone.dtype is 'bfloat16', which cpu cannot compute in \(UNIMPLEMENTED: no kernel\); set it"
    with pytest.raises(InputError, match=message):
        setup.prepare(config, tmp_path / "run")


@pytest.mark.parametrize("method", ["finetune", "lora", "toast", "toast_lite"])
@pytest.mark.parametrize("name", ["alpaca", "vicuna"])
def test_networks_of_the_recipes(name, method):
    """As released: rates, lengths, batches; shapes alone of the real size."""
    config = importlib.import_module(f"configs.{name}").get_config(f"method={method}")
    expected = {"alpaca": (144, 512, 3, 0.0), "vicuna": (96, 1024, 2, 0.02)}[name]
    assert (config.batch_size, config.data.length, config.epochs, config.data.held_out) == expected
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.warmup_epochs / config.epochs) == (2e-5, 0, 0.03)
    network, row = steered.build(config, 0)
    assert "blocks" in jax.eval_shape(lambda: steered.init(network, row, jax.random.key(0)))["backbone"]


def test_recipe_of_openwebtext():
    config = openwebtext.get_config()
    assert (config.batch_size, config.data.length, config.epochs, config.data.documents) == (144, 512, 1, 200_000)
    assert (config.optimizer.lr, config.warmup_epochs, config.stage) == (3e-5, 0.03, "pretune")


def test_held_out_texts_are_those_of_the_release():
    np.random.seed(0)
    order = np.random.permutation(50)
    kept, held = text_runs._held_out(list(range(50)), 0.02)
    assert (kept, held) == (order[:49].tolist(), order[49:].tolist())


def losses_and_parameters(folder, config):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with checkpoint.manager(folder) as checkpoints:
        step, tuned = checkpoint.restore_tuned(checkpoints, setup.load_network(config, 0).tuned)
    return step, [line["train/loss"] for line in lines if "train/loss" in line], trees.flat(trees.prune(tuned))


@pytest.mark.slow
def test_a_run_whose_state_is_split_resumes_bit_for_bit(tmp_path, monkeypatch):
    write(tmp_path, ASKED)
    config = of(alpaca, tmp_path, method="finetune")
    config.data.format, config.fsdp = "prompts", 4
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop.fit(config, whole)
    with monkeypatch.context() as patch:
        answers = iter([False, False, True])
        patch.setattr(interrupt, "asked", lambda: contextlib.nullcontext(lambda: next(answers)))
        with pytest.raises(Interrupted, match="Stopped after step 3 of 4"):
            loop.fit(config, parts)
    loop.fit(config, parts)
    (last, losses, expected), (step, resumed, tuned) = (losses_and_parameters(folder, config) for folder in (whole, parts))
    assert (step, resumed) == (last, losses) and len(losses) == last == 4
    assert "backbone/blocks/attn/q/kernel" in expected
    jax.tree.map(np.testing.assert_array_equal, tuned, expected)


@pytest.mark.slow
def test_the_backbone_of_a_pretuned_module_stays_on_its_devices(tmp_path, monkeypatch):
    """Checkpoints hold the tuned module alone, and so does the file; moments of split parameters come from the devices."""
    write(tmp_path, PLAIN)
    config = of(openwebtext, tmp_path)
    config.fsdp, fetched, asarray = 4, set(), np.asarray

    def fetch(tree):
        fetched.update(jax.tree.map(lambda leaf: leaf.shape, jax.tree.leaves(tree)))
        return jax.device_get(tree)

    def seen(array, *args, **kwargs):
        assert not (isinstance(array, jax.Array) and fingerprint.is_split(array)), array.shape
        return asarray(array, *args, **kwargs)

    monkeypatch.setattr(parallel, "fetch", fetch)
    monkeypatch.setattr(np, "asarray", seen)
    loop.fit(config, tmp_path / "run")
    monkeypatch.undo()
    split = {(L, D, 24), (L, 24, D), (Words.vocabulary, D)}  # of the MLP and the embedding
    assert (L, D, D) in fetched and not split & fetched
    params = {"backbone": {"embed": np.asarray(np.random.default_rng(0).normal(size=(8, D)), np.float32)}}
    placed = setup.devices_of(config).place(params)
    assert fingerprint.is_split(placed["backbone"]["embed"])
    (whole,), (moments,) = (list(fingerprint.of_frozen(tree).values()) for tree in (params, placed))
    assert moments == pytest.approx(whole, rel=1e-5)


def on_hosts(folder, stage, method, size):
    """Trains by two processes and by one, which must give the same numbers; returns how many lines of them there are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = []
    for hosts in (2, 1):
        command = [sys.executable, "tests/text_on_hosts.py", str(folder), str(port), str(hosts), stage, method, str(size)]
        flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={4 // hosts}"
        env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{folder}/cache{hosts}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes = [subprocess.Popen([*command, str(i)], cwd=ROOT, env=env, **pipes) for i in range(hosts)]
        outputs += [process.communicate(timeout=300)[0] for process in processes]
        assert not any(process.returncode for process in processes), outputs
    several, alone = (
        [json.loads(line) for line in (folder / str(hosts) / "metrics.jsonl").read_text().splitlines()] for hosts in (2, 1)
    )
    for row, expected in zip(several, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7)
    return len(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "method", "size"), [("tune", "toast", 2), ("tune", "toast", 4), ("tune", "finetune", 4), ("pretune", "toast", 4)]
)
def test_hosts_that_share_parameters_equal_one(stage, method, size, tmp_path):
    """Two processes of two devices, and one of four; a group of four spans both processes."""
    write(tmp_path, ASKED)
    assert on_hosts(tmp_path, stage, method, size) == 6
    if stage == "pretune":
        files = (load_file(tmp_path / str(hosts) / "top_down.safetensors") for hosts in (2, 1))
        jax.tree.map(lambda array, expected: np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5), *files)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "count"), [("pretune", 300), ("tune", 40)])
def test_hosts_that_read_one_large_text_equal_one(stage, count, tmp_path):
    """A plain text is packed in parts that the hosts share, and instructions are encoded by each."""
    words = np.random.default_rng(0).integers(100, 1000, size=count).tolist()
    plain = [{"text": f"the {word} sat on {i}"} for i, word in enumerate(words)]
    asked = [{"prompt": f"{i}?", "response": f"{word}!"} for i, word in enumerate(words)]
    records = {"pretune": plain, "tune": asked}[stage]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert on_hosts(tmp_path, stage, "toast", "large") >= 6
    entries = [sorted((tmp_path / f"cache{hosts}/toast_jax/text").iterdir()) for hosts in (2, 1)]
    assert [[path.name for path in entry] for entry in entries] == [[entries[0][0].name]] * 2  # one, and nothing beside it
    for file in entries[0][0].iterdir():
        assert file.read_bytes() == (entries[1][0] / file.name).read_bytes()


def test_tokens_of_a_large_text_are_cached_and_give_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, ASKED)
    (tmp_path / "tokenizer.json").write_text("{}")
    config = of(alpaca, tmp_path)
    config.data.format, config.data.held_out, config.data.tokenizer = "prompts", 0.2, str(tmp_path)
    plain = text_runs.open_sources(config, verified=True)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(token_cache, "MIN_BYTES", 1)
    text_runs.open_sources(config, verified=True)
    monkeypatch.setattr(Words, "encode", None)  # nothing is encoded again
    cached = text_runs.open_sources(config, verified=True)
    assert isinstance(cached[0].tokens, np.memmap) and len(list((tmp_path / "cache/toast_jax/text").iterdir())) == 2
    for ours, expected in ((cached[0], plain[0]), (cached[1]["val"], plain[1]["val"])):
        assert fingerprint.of_source(ours) == fingerprint.of_source(expected)
