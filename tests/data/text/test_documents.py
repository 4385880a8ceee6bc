"""Records of files as documents: what is read of each, what is predicted, and what is refused."""

import json

import pytest

from toast_jax.data.text import documents
from toast_jax.data.text.documents import Turn
from toast_jax.errors import InputError


def said(*values, start="human"):
    speakers = ("human", "gpt") if start == "human" else ("gpt", "human")
    return {"conversations": [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]}


def answers(documents):
    return [[turn.text[turn.answer :] for turn in document] for document in documents]


def test_plain_text_is_predicted_from_its_first_word():
    assert documents.plain({"text": "Once upon"}) == [[Turn("Once upon", 0, False)]]
    assert documents.plain({"text": " \n"}) == []


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", b"a\r\nb\x00\x0c", ["a\nb\x00\x0c"]),
        ("a.jsonl", b'{"text": "a\\r\\nb"}\r\n\r\n\xef\xbb\xbf{"text": "c\\u0000"}\r\n', ["a\r\nb", "c\x00"]),
        ("a.jsonl", '{"text": "a\u2028\u0085b"}\n{"text": ""}'.encode(), ["a\u2028\u0085b"]),  # not the end of a line
        ("a.json", b'\xef\xbb\xbf[{"text": "a"}]', ["a"]),
        ("a.jsonl", b'{"text": "' + b"x" * 3_000_000 + b'"}', ["x" * 3_000_000]),
        ("a.txt", "a".encode("utf-16"), None),
        ("a.txt", b"a\xff", None),
        ("a.jsonl", b'{"text": "\xff"}', None),
    ],
)
def test_line_ends_marks_and_control_characters(tmp_path, name, content, texts):
    (tmp_path / name).write_bytes(content)
    if texts is None:
        with pytest.raises(InputError, match=f"The text .*/{name} cannot be read .*utf-8.*; correct --config.data.splits"):
            list(documents.stream(str(tmp_path / name), documents.plain))
    else:
        made = list(documents.stream(str(tmp_path / name), documents.plain))
        assert [turn.text for document in made for turn in document] == texts


def test_instructions_with_and_without_input():
    (with_input,) = documents.instruction({"instruction": "Add", "input": "1 2", "output": "3"})
    assert with_input[0].text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:3"
    )
    (without,) = documents.instruction({"instruction": "Sing", "input": "", "output": "La"})
    assert without[0].text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing\n\n### Response:La"
    )
    assert answers([with_input, without]) == [["3"], ["La"]] and with_input[0].ends


def test_instances_of_an_instruction_are_documents():
    record = {"instruction": "Add", "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "0"}]}
    made = documents.instruction(record)
    assert answers(made) == [["3"], ["0"]]
    assert "### Input:" in made[0][0].text and "### Input:" not in made[1][0].text


def test_prompts_are_taken_as_they_are():
    assert documents.prompt({"prompt": "2+2=", "response": "4"}) == [[Turn("2+2=4", 4)]]


def test_conversations_are_in_the_words_of_vicuna():
    (document,) = documents.conversation(said("Hi", "Hello!", "Bye", "See you."))
    # With </s> after every turn this is FastChat's vicuna_v1.1.
    assert "</s>".join(turn.text for turn in document) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: Hi ASSISTANT: Hello!</s>USER: Bye ASSISTANT: See you."
    )
    assert answers([document]) == [["Hello!", "See you."]] and all(turn.ends for turn in document)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (said(), []),
        (said("Hi"), []),
        ({"conversations": [{"from": "system", "value": "Be"}, *said("Hi", "Ho")["conversations"]]}, []),
        (said("I am", "Hi", "Ho", start="gpt"), [["Ho"]]),
        (said("Hi", "Ho", "What?", "\u200b", "Bye", "Yes"), [["Ho", "Yes"]]),
        (said("Hi", "Ho", "Unanswered"), [["Ho"]]),
        ({"conversations": [*said("a", "b")["conversations"], *said("c", "d", start="gpt")["conversations"]]}, [["b"]]),
        (said("Hi", "\u200b"), []),
    ],
)
def test_bad_turns_of_conversations(record, expected):
    assert answers(documents.conversation(record)) == expected


def test_files_of_every_ending(tmp_path, caplog):
    records = [{"text": "a"}, {"text": ""}, {"text": "b"}]
    (tmp_path / "x.json").write_text(json.dumps(records))
    (tmp_path / "x.jsonl").write_text("\n\n".join(map(json.dumps, records)) + "\n")
    (tmp_path / "x.txt").write_text("all of\n\nit")
    caplog.set_level("WARNING", "toast_jax")
    for name in ("x.json", "x.jsonl"):
        assert answers(list(documents.stream(str(tmp_path / name), documents.plain))) == [["a"], ["b"]]
        assert f"{name}: 1 records left out" in caplog.text
    assert answers(list(documents.stream(str(tmp_path / "x.txt"), documents.plain))) == [["all of\n\nit"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text"\n\nno\n', "x.jsonl has 2 lines that are not JSON, the first is line 2;"),
        ("x.jsonl", '{"text": "a"}\n{"words": "a"}', r"Line 2 of .*x.jsonl is no record of this .* \(KeyError\('text'\)\)"),
        ("x.jsonl", '["a"]', "Line 1 of .*x.jsonl is no record of this --config.data.format"),
        ("x.json", "{", "x.json is not JSON"),
        ("x.json", "{}", "x.json holds no list of records"),
        ("x.json", "[]", "x.json has no text to learn from"),
        ("x.txt", "", "x.txt has no text to learn from"),
        ("x.csv", "a,b", "x.csv has an unknown ending; give a .txt, .json or .jsonl file"),
        ("x.txt", None, "The text .*x.txt cannot be read"),
        ("x.jsonl", '{"text": "a"}\n{"text": "b\\ud83d"}', r"Line 2 of .*x.jsonl has half a character, written as \\ud8.. or"),
        ("x.jsonl", "[" * 100_000, "x.jsonl has 1 lines that are not JSON, the first is line 1"),
        ("x.json", "[" * 100_000, "x.json is not JSON .maximum recursion depth"),
        ("x.txt", b"\xff\xfe", "The text .*x.txt cannot be read"),
    ],
)
def test_files_that_are_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        list(documents.stream(str(tmp_path / name), documents.plain))


def chat_of(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


U, A, S = ("user", "u"), ("assistant", "a"), ("system", "s")
SAME, EMPTY, FIRST = "a turn of the same role", "an empty turn", "a first turn"


@pytest.mark.parametrize(
    ("turns", "kept", "changes"),
    [
        ([U, A], [U, A], []),
        ([S, U, A, U, A], [S, U, A, U, A], []),
        ([("system", " "), U, A], [U, A], []),
        ([U, A, U], [U, A], []),
        ([A, U, A], [U, A], [FIRST]),
        ([S, A, U, A], [S, U, A], [FIRST]),
        ([U, U, A], None, []),
        ([U, A, A, U, A], [U, A], [SAME]),
        ([U, A, U, U, A], [U, A], [SAME]),
        ([U, A, S, U, A], [U, A], [SAME]),
        ([U, A, U, ("assistant", " \n")], [U, A], [EMPTY]),
        ([U, A, ("user", ""), A, U, A], [U, A], [EMPTY]),
        ([U, ("assistant", "\u200b")], None, []),
        ([A], None, []),
        ([S], None, []),
        ([], None, []),
        ([U, A, ("tool", "t")], None, []),
    ],
)
def test_turns_of_messages(turns, kept, changes):
    made = documents.messages(chat_of(*turns))
    assert [list(conversation.messages) for conversation in made] == ([] if kept is None else [kept])
    for conversation in made:
        assert len(conversation.changes) == len(changes)
        assert all(part in change for part, change in zip(changes, conversation.changes, strict=True))


def test_messages_of_sharegpt_are_read_by_their_names():
    said = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}
    assert documents.messages(said) == documents.messages(chat_of(S, U, A))


@pytest.mark.parametrize(
    "record",
    [{}, {"messages": 3}, {"messages": [{"role": "user"}]}, {"messages": ["a"]}, chat_of((1, "a")), {"messages": None}],
)
def test_records_that_are_no_messages_are_refused(record, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([record]))
    with pytest.raises(InputError, match="^Record 1 of .*x.json is no record of this --config.data.format"):
        list(documents.stream(str(tmp_path / "x.json"), documents.messages))


def test_parquet_is_read_like_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for of_record, records in (
        (documents.plain, [{"text": "a\r\nb"}, {"text": ""}, {"text": "c"}]),
        (documents.messages, [chat_of(S, U, A), chat_of(U, A, U, A)]),
        (documents.conversation, [said("a", "b"), said("c", "d", "e")]),
        (
            documents.instruction,
            [{"instruction": "a", "input": None, "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}],
        ),
    ):
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "x.parquet", row_group_size=1)
        assert list(documents.stream(str(tmp_path / "x.parquet"), of_record)) == list(
            documents.stream(str(tmp_path / "x.jsonl"), of_record)
        )
    with pytest.raises(InputError, match=r"^Row 1 of .*x.parquet is no record of this --config.data.format \(KeyError\('text'"):
        list(documents.stream(str(tmp_path / "x.parquet"), documents.plain))
    for content in (b"", b"PAR1 and no more", None):
        (tmp_path / "x.parquet").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(InputError, match="The text .*x.parquet cannot be read .*; correct --config.data.splits"):
            list(documents.stream(str(tmp_path / "x.parquet"), documents.plain))


def turns(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


NO_TEXT = [None, 3, float("nan"), True, ["a"], {"text": "a"}, [{"type": "text", "text": "a"}]]


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
@pytest.mark.parametrize(
    ("of_record", "field", "made"),
    [
        (documents.plain, "text", lambda value: {"text": value}),
        (documents.prompt, "prompt", lambda value: {"prompt": value, "response": "b"}),
        (documents.prompt, "response", lambda value: {"prompt": "a", "response": value}),
        (documents.instruction, "instruction", lambda value: {"instruction": value, "input": "", "output": "b"}),
        (documents.instruction, "output", lambda value: {"instruction": "a", "input": "", "output": value}),
        (documents.instruction, "output", lambda value: {"instruction": "a", "instances": [{"output": value}]}),
        (documents.instruction, "input", lambda value: {"instruction": "a", "input": value, "output": "b"}),
        (documents.conversation, "value", lambda value: turns(value, "b")),
        (documents.conversation, "value", lambda value: turns("a", value)),
        (documents.messages, "content", lambda value: chat_of(("user", "a"), ("assistant", value))),
        (documents.messages, "value", lambda value: turns("a", value)),
    ],
)
def test_only_text_becomes_text(tmp_path, value, of_record, field, made):
    (tmp_path / "x.json").write_text(json.dumps([made("a"), made(value)]))
    if field == "input" and value is None:
        assert len(list(documents.stream(str(tmp_path / "x.json"), of_record))) == 2
        return
    with pytest.raises(
        InputError, match=r"^Record 2 of .*x.json is no record of this .*data.format \(TypeError\(.*not text"
    ) as raised:
        list(documents.stream(str(tmp_path / "x.json"), of_record))
    assert f"{field} is " in str(raised.value)


def test_a_null_input_is_no_input():
    record = {"instruction": "Sing", "output": "La"}
    assert documents.instruction({**record, "input": None}) == documents.instruction({**record, "input": ""})


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.txt", "a"), ("x.json", '[{"text": "a"}]'), ("x.jsonl", '{"text": "a"}\n\ufeff{"text": "b"}')],
)
def test_a_byte_order_mark_is_not_read(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    plain = list(documents.stream(str(tmp_path / name), documents.plain))
    assert plain[0][0].text == "a"
    (tmp_path / name).write_text("\ufeff" + content)
    assert list(documents.stream(str(tmp_path / name), documents.plain)) == plain


def test_reading_stops_at_the_last_document(tmp_path):
    """What follows is not even parsed."""
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n{"text": ""}\n{"text": "b"}\n{"text"\n')
    assert answers(documents.stream(str(file), documents.plain, 2)) == [["a"], ["b"]]
    with pytest.raises(InputError, match="1 lines that are not JSON, the first is line 4"):
        list(documents.stream(str(file), documents.plain, 3))


def test_documents_of_one_record_are_cut_at_the_limit(tmp_path):
    instances = [{"input": "", "output": letter} for letter in "abc"]
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "Say", "instances": instances}] * 2))
    limited = [answers(documents.stream(str(tmp_path / "x.json"), documents.instruction, most)) for most in (2, 4)]
    assert limited == [[["a"], ["b"]], [["a"], ["b"], ["c"], ["a"]]]


def test_a_large_list_is_not_read_as_a_check(tmp_path, monkeypatch):
    file = tmp_path / "list.json"
    file.write_text('[{"question": "Q"}]')
    with pytest.raises(InputError, match="Record 1 of .* is no record of this --config.data.format"):
        documents.check(str(file), documents.FORMATS["instructions"], most=100)
    monkeypatch.setattr(documents, "records", lambda file: pytest.fail("read"))
    documents.check(str(file), documents.FORMATS["instructions"], most=10)
