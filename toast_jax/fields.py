"""What a config field is: its default, the values it may hold, its meaning, and whether a run may resume with another value.

Imports only the standard library, so that configs are read, and wrong names refused, before JAX is loaded.
"""

import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

CUSTOM = "custom"  # the size of a backbone whose numbers are all in the config


class Rule(Protocol):
    """The values that a field may hold; `str` of it says which, as in "whole number, 1 or more"."""

    def refusal(self, value: Any) -> str:
        """Return why a value is refused, as in "it has to be text", or "" if it is allowed."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number with `least` <= number <= `most`, `above` < number < `below`, and a magnitude of `largest` or less."""

    whole: bool
    largest: float
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __str__(self) -> str:
        bounds = [f"{end} or {word}" for end, word in ((self.least, "more"), (self.most, "less")) if math.isfinite(end)]
        bounds += [f"{word} than {end}" for end, word in ((self.above, "more"), (self.below, "less")) if math.isfinite(end)]
        return f"{'whole ' * self.whole}number{', ' * bool(bounds)}{' and '.join(bounds)}"

    def refusal(self, value: Any) -> str:
        is_number = isinstance(value, numbers.Integral if self.whole else numbers.Real) and not isinstance(value, bool)
        if is_number and abs(value) > self.largest:
            return f"numbers end at {self.largest:.10g} here"
        if is_number and self.least <= value <= self.most and self.above < value < self.below:
            return ""
        return f"it has to be a {self}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names.

    Attributes:
      options: the names.
      remedies: what to do instead, for names that a user may expect to be among them.
    """

    options: Collection[str]
    remedies: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(option or repr(option) for option in self.options)

    def refusal(self, value: Any) -> str:
        if isinstance(value, str) and value in self.options:
            return ""
        if remedy := self.remedies.get(str(value)):
            return remedy
        near = difflib.get_close_matches(str(value), list(self.options), n=1)
        return f"it must be one of {self}" + (f" (the nearest is {near[0]!r})" if near else "")


@dataclasses.dataclass(frozen=True)
class Flag:
    def __str__(self) -> str:
        return "True or False"

    def refusal(self, value: Any) -> str:
        return "" if isinstance(value, bool) else f"it has to be {self}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text, but not an empty one if the rule has an `example`."""

    example: str = ""

    def __str__(self) -> str:
        return f"text, such as {self.example!r}" if self.example else "text"

    def refusal(self, value: Any) -> str:
        if isinstance(value, str) and "\0" not in value and (value or not self.example):
            return ""
        return f"give {self}" if self.example else f"it has to be {self}"


@dataclasses.dataclass(frozen=True)
class Regex:
    def __str__(self) -> str:
        return "regular expression"

    def refusal(self, value: Any) -> str:
        if not isinstance(value, str):
            return "it has to be text"
        try:
            re.compile(value)
        except re.error as error:
            return f"it has to be a {self} ({error})"
        return ""


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple or list of `least` values or more, each allowed by the rule `of`."""

    of: Rule
    least: int = 0

    def __str__(self) -> str:
        return f"{self.least} or more in brackets, each: {self.of}"

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (tuple, list)):
            return "it has to be several values in brackets, as in (1, 2)"
        if len(value) < self.least:
            return f"give {self.least} or more values"
        return next((f"of these {item!r} is refused: {refusal}" for item in value if (refusal := self.of.refusal(item))), "")


@dataclasses.dataclass(frozen=True)
class PerChannel:
    """Mean and standard deviation of each channel, for pixels in [0, 1]."""

    def __str__(self) -> str:
        return "mean and deviation of red, green, blue, as in ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"

    def refusal(self, value: Any) -> str:
        rules = (Several(real(0.0, 1.0), least=3), Several(real(above=0.0), least=3))
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2
        if is_pair and not any(rule.refusal(row) or len(row) > 3 for rule, row in zip(rules, value, strict=True)):
            return ""
        return f"it has to be {self}"


_LARGEST_FLOAT32 = 3.4028234663852886e38


def whole(least: int, most: float = math.inf) -> Number:
    return Number(True, 2**31 - 1, least, most)


def real(least: float = -math.inf, most: float = math.inf, **bounds: float) -> Number:
    return Number(False, _LARGEST_FLOAT32, least, most, **bounds)


SEED, COUNT, SHARE = whole(0), whole(1), real(0.0, below=1.0)
FLAG, TEXT = Flag(), Text()

# When a field may differ from the value that a run started with.
NEVER, TO_EVALUATE, TO_RESUME, TO_MOVE = "", "to evaluate", "to resume or evaluate", "if its content has moved"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: its value in the base config.
      allowed: the rule for its values.
      meaning: one short phrase for the table of fields.
      may_change: NEVER; TO_EVALUATE if the checkpoint of a run may be evaluated with another value; TO_RESUME if the run may
        also resume with one, because the field does not change the result; TO_MOVE for places of data and
        weights, which the run checks by their content when it resumes (see `workdir.fingerprint`).
    """

    default: Any
    allowed: Rule
    meaning: str
    may_change: str = NEVER


def unknown(name: str, fields: Collection[str]) -> str:
    """Return the sentence for a field that a config does not have, with the fields whose names come nearest."""
    last = name.rpartition(".")[2]
    initials = "".join(word[:1] for word in last.split("_"))
    alike = {last, initials} if len(initials) > 1 else {last}  # lr -> optimizer.lr, learning_rate -> optimizer.lr
    near = [field for field in fields if field.rpartition(".")[2] in alike]
    near = list(dict.fromkeys([*near, *difflib.get_close_matches(name, list(fields), n=3, cutoff=0.4)]))[:3]
    return f"The config has no field {name}; the nearest are {', '.join(near or fields)}."


def joined(text: str) -> tuple[str, ...]:
    """Split text into the values that `+` joins; `++` is a plus within a value."""
    return tuple(value.replace("\0", "+") for value in text.replace("++", "\0").split("+") if value)


def flat_fields(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """`{"data": {"root": x}}` -> `{"data.root": x}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flat_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"data.root": x}` -> `{"data": {"root": x}}`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        section = tree
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return tree
