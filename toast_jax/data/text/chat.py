"""Chat templates: the text of a conversation, its special tokens, and the answers to learn.

A template is a Jinja text, the tokenizer's own or one of `NAMED`, rendered as by Hugging Face's transformers
(https://huggingface.co/docs/transformers/chat_templating). The answers are found in the rendered text: an answer
begins where the prompt for it ends, and ends with the first special token after it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toast_jax.data.text.documents import SYSTEM, Conversation, Message, Rendered, Span, messages
from toast_jax.data.text.tokenizer import Tokenizer, special_spans
from toast_jax.errors import InputError, of_extra

OWN = "tokenizer"
# Loops over messages that begin with the system's, if there is one.
_SYSTEM_FIRST = (
    "{% set system = messages[0].content if messages and messages[0].role == 'system' else none %}"
    "{% for message in (messages[1:] if system is not none else messages) %}"
)
NAMED = {
    # https://github.com/meta-llama/llama/blob/main/llama/generation.py
    "llama-2": _SYSTEM_FIRST + "{% if message.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is not none %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message.content | trim }}"
    "{% else %}{{ message.content | trim }}{% endif %} [/INST]"
    "{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
    # https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3
    "llama-3": "<|begin_of_text|>{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>{{ '\\n\\n' }}"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}",
    # https://github.com/openai/openai-python/blob/release-v0.28.1/chatml.md
    "chatml": "{% for message in messages %}<|im_start|>{{ message.role + '\\n' + message.content }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}",
    # https://github.com/lm-sys/FastChat, Vicuna 1.1
    "vicuna": _SYSTEM_FIRST + "{% if loop.first %}{{ (default_system if system is none else system) + ' ' }}{% endif %}"
    "{% if message.role == 'user' %}USER: {{ message.content }} ASSISTANT:"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
}
# How special tokens of chats are spelled; the second bar is DeepSeek's.
_SPELLED = re.compile(r"<[|\uff5c][^<>\s]*[|\uff5c]>|</?s>")
_MARKS = range(0xF0000, 0xFFFFE)  # characters for private use


class Template:
    """A chat template for a tokenizer.

    Attributes:
      identity: everything that renderings depend on, as JSON.
      source: the template as a file for transformers, which renders the same text, with the begin token.
      stop: the special token that ends an answer.
    """

    def __init__(self, name: str, file: Path, tokenizer: Tokenizer):
        """Open a template.

        Args:
          name: of `NAMED`, or `OWN` for the template of the tokenizer.
          file: of the tokenizer, which may have `chat_template.jinja` or `tokenizer_config.json` beside it.

        Raises:
          InputError: there is no template, it is damaged, it needs special tokens that the tokenizer lacks, or answers do not
            end with one.
        """
        self._title = f"The chat template of {file.parent}" if name == OWN else f"The chat template {name}"
        self._tokenizer, self._names = tokenizer, {token: name for name, token in tokenizer.special.items()}
        begin = "" if tokenizer.begin is None else self._names.get(tokenizer.begin, "")
        self._variables: dict[str, Any] = {
            "bos_token": begin,
            "eos_token": self._names.get(tokenizer.end, ""),
            "default_system": SYSTEM.strip(),
        }
        self._source = NAMED.get(name) or self._own(file)
        self.identity = [self._source, self._variables]
        self._template = self._compiled()
        text = self._text([Message("user", "a"), Message("assistant", "b")])
        if lacking := sorted({token for token in _SPELLED.findall(text) if token not in tokenizer.special}):
            raise InputError(
                f"{self._title} needs {', '.join(lacking)}, which the tokenizer {file} lacks; give the tokenizer that it was "
                "made for in --config.data.tokenizer, or another --config.data.template."
            )
        used = [(key, value) for key, value in self._variables.items() if key in self._source]
        self.source = "".join(f"{{% set {key} = {json.dumps(value)} %}}" for key, value in used)
        self.source += ("" if text.startswith(begin) else f"{{{{ {json.dumps(begin)} }}}}") + self._source
        special = special_spans(text, tokenizer.special)
        _, end = self._learned(text, [Message("user", "a")], special)
        self.stop = next(tokenizer.special[text[left:right]] for left, right in special if right == end)

    def _own(self, file: Path) -> str:
        """Read the template beside a tokenizer, and the names of the tokens that it may use."""
        jinja, config = file.with_name("chat_template.jinja"), file.with_name("tokenizer_config.json")
        try:
            fields = json.loads(config.read_text(encoding="utf-8-sig")) if config.is_file() else {}
            for name, token in fields.items():
                text = token.get("content") if isinstance(token, dict) else token
                if name.endswith("_token") and isinstance(text, str):
                    self._variables[name] = text
            source = jinja.read_text(encoding="utf-8-sig") if jinja.is_file() else fields.get("chat_template")
            if isinstance(source, list):  # several, by name
                source = {entry["name"]: entry["template"] for entry in source}.get("default")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{config} or {jinja.name} cannot be read ({error!r}); download them again.") from error
        if not isinstance(source, str) or not source.strip():
            raise InputError(
                f"The tokenizer {file} has no chat template, neither chat_template.jinja nor in tokenizer_config.json; name "
                f"one in --config.data.template: {', '.join(NAMED)}."
            )
        return source

    def _compiled(self):
        """Compile the template in Jinja's sandbox, with what transformers offers to templates.

        Its `strftime_now` is left out, so that a conversation has the same tokens on every day.
        """
        sandbox = of_extra("jinja2.sandbox", "language", "A chat template")
        extensions = [_transparent(of_extra("jinja2.ext", "language", "A chat template").Extension), "jinja2.ext.loopcontrols"]
        environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = _raise
        try:
            return environment.from_string(self._source)
        except Exception as error:  # a template can fail in any way
            raise InputError(f"{self._title} is not Jinja ({error}); give another --config.data.template.") from error

    def documents(self, record: Any) -> list[Rendered]:
        """Make documents of a record of `config.data.format=messages`."""
        return [self.render(conversation) for conversation in messages(record)]

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation.

        Raises:
          InputError: the template refuses it, renders its beginning differently from the whole, or does not end an answer.
        """
        said, changes = conversation.messages, conversation.changes
        mark = _mark(said)
        said = self._escaped(said, mark)
        text = self._text(said)
        special = special_spans(text, self._tokenizer.special)
        learned = [self._learned(text, said[:i], special) for i, message in enumerate(said) if message.role == "assistant"]
        if mark in text:
            changes = (*changes, "have special tokens spelled in a turn, which are read as plain text")
        return _unmarked(text, mark, special, learned, changes)

    def prompt(self, question: str, first: bool = True) -> Rendered:
        """Render a question up to where its answer begins; of a later question, from the token that ends the last answer on.

        Without this token, a tokenizer that puts a space before the beginning of a text would put one into the conversation.
        """
        asked = [Message("user", question)]
        mark = _mark(asked)
        before = [] if first else [Message("user", "a"), Message("assistant", "b")]
        text = self._text([*before, *self._escaped(asked, mark)], prompt=True)
        special = special_spans(text, self._tokenizer.special)
        start = 0
        if not first:
            _, end = self._learned(text, before[:1], special)
            start = next(left for left, right in special if right == end)
        special = [(left - start, right - start) for left, right in special if left >= start]
        return _unmarked(text[start:], mark, special, [])

    def _text(self, said: Sequence[Message], prompt: bool = False) -> str:
        try:
            return self._template.render(
                messages=[message._asdict() for message in said],
                add_generation_prompt=prompt,
                tools=None,
                documents=None,
                **self._variables,
            )
        except Exception as error:
            raise InputError(
                f"{self._title} does not render this conversation ({error}); give another --config.data.template."
            ) from error

    def _learned(self, text: str, before: Sequence[Message], special: Sequence[Span]) -> Span:
        """Return where the answer to `before` is in the text, with the special token that ends it."""
        prompt = self._text(before, prompt=True)
        if not text.startswith(prompt):
            raise InputError(
                f"{self._title} renders the beginning of a conversation differently from the whole, so that answers cannot be "
                "separated from prompts; give another --config.data.template."
            )
        if (end := next((right for left, right in special if left >= len(prompt)), None)) is None:
            raise InputError(
                f"{self._title} ends an answer with no special token of the tokenizer, so that generated answers would not "
                "end; give another --config.data.template."
            )
        return len(prompt), end

    def _escaped(self, said: Sequence[Message], mark: str) -> list[Message]:
        """Break names of special tokens in messages, so that those in the rendered text are the template's alone."""

        def escaped(text):
            for left, right in reversed(special_spans(text, self._tokenizer.special)):
                text = text[: left + 1] + mark + text[left + 1 : right] + text[right:]
            return text

        return [Message(message.role, escaped(message.content)) for message in said]


def _mark(said: Sequence[Message]) -> str:
    """Return a character that no message has."""
    used = set().union(*(message.content for message in said))
    return next(character for character in map(chr, _MARKS) if character not in used)


def _unmarked(text: str, mark: str, special, learned, changes=()) -> Rendered:
    """Remove the marks of `Template._escaped` from a text, and move the spans accordingly."""
    shift = lambda spans: [(left - text.count(mark, 0, left), right - text.count(mark, 0, right)) for left, right in spans]  # noqa: E731
    return Rendered(text.replace(mark, ""), shift(special), shift(learned), changes)


def _raise(message: str):
    raise ValueError(message)


def _transparent(extension: type) -> type:
    """Return an extension of Jinja that renders `{% generation %} ... {% endgeneration %}` as what is inside it."""

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return type("Generation", (extension,), {"tags": {"generation"}, "parse": parse})
