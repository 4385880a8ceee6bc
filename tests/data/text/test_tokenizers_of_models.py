"""Tokenizers and chat templates as they come with Qwen, SmolLM2 and Mistral: byte-level, without a begin token, with [INST]."""

import json

import pytest

from tests.data.text.test_tokenizer import json_model
from toast_jax.data.text import chat, sequences, tokenizer
from toast_jax.data.text.documents import Conversation, Message
from toast_jax.errors import InputError

pytest.importorskip("jinja2")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
# With a system prompt by default, and a look at the last message, as Qwen's.
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{%- endif %}"
    "{%- set last = namespace(index=messages|length - 1) %}{%- for message in messages[::-1] %}"
    "{%- if message.role == 'user' and message.content is string %}{%- set last.index = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Which refuses a system prompt, as Mistral's first.
INST = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SAID = [Message("user", "née 🙂?"), Message("assistant", "an owl\n  was"), Message("user", "b"), Message("assistant", "日本")]


def opened(path, special, config):
    file = json_model(path / "tokenizer.json", special=special)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    words = tokenizer.load(str(path))
    return words, chat.Template(chat.OWN, file, words) if "chat_template" in config else None


def learned(words, template, said):
    """The whole text and the learned part of it, by their tokens."""
    ids, flags = sequences.encode(template.render(Conversation(said)), words)
    return tokenizer.spelled(words, ids), tokenizer.spelled(words, [i for i, flag in zip(ids, flags, strict=True) if flag])


def test_qwen(tmp_path):
    config = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": CHATML}
    words, template = opened(tmp_path, QWEN, config)
    assert words.begin is None and words.end == template.stop == words.special["<|im_end|>"]
    text, answers = learned(words, template, SAID)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    turns = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in SAID)
    assert (text, answers) == (system + turns, "an owl\n  was<|im_end|>日本<|im_end|>")


def test_mistral(tmp_path):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": INST}
    words, template = opened(tmp_path, MISTRAL, config)
    assert (words.begin, words.end) == (1, 2) and template.stop == 2
    text, answers = learned(words, template, SAID)
    assert text == "<s>[INST] née 🙂? [/INST]an owl\n  was</s>[INST] b [/INST]日本</s>"
    assert answers == "an owl\n  was</s>日本</s>"
    with pytest.raises(InputError, match=r"does not render this conversation \(roles must alternate\); give another"):
        template.render(Conversation([Message("system", "x"), *SAID]))


def test_a_document_ends_with_the_end_of_text_where_no_file_names_another(tmp_path):
    words, _ = opened(tmp_path, QWEN, {"bos_token": None})
    assert words.begin is None and words.end == words.special["<|endoftext|>"]
