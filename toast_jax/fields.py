"""What a field of a config is: its default, what it may hold, what it means, and whether a run may resume with another value.

Imports nothing but the standard library, so that a wrong name is answered before JAX is loaded.
"""

import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Collection
from typing import Any, Protocol


class Rule(Protocol):
    """What a field may hold."""

    def refusal(self, value: Any) -> str:
        """Why a value is refused, as in "it has to be text"; "" if it is not."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number with `least` <= number <= `most`, or with `above` < number < `below`, and not beyond `largest`."""

    whole: bool
    largest: float
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def refusal(self, value: Any) -> str:
        is_number = isinstance(value, numbers.Integral if self.whole else numbers.Real) and not isinstance(value, bool)
        if is_number and abs(value) > self.largest:
            return f"numbers end at {self.largest:.10g} here"
        if is_number and self.least <= value <= self.most and self.above < value < self.below:
            return ""
        bounds = [f"{end} or {word}" for end, word in ((self.least, "more"), (self.most, "less")) if math.isfinite(end)]
        bounds += [f"{word} than {end}" for end, word in ((self.above, "more"), (self.below, "less")) if math.isfinite(end)]
        return f"it has to be a {'whole ' * self.whole}number{', ' * bool(bounds)}{' and '.join(bounds)}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names."""

    options: Collection[str]

    def refusal(self, value: Any) -> str:
        if isinstance(value, str) and value in self.options:
            return ""
        near = difflib.get_close_matches(str(value), list(self.options), n=1)
        hint = f" (the nearest is {near[0]!r})" if near else ""
        return f"it must be one of {', '.join(one or repr(one) for one in self.options)}{hint}"


@dataclasses.dataclass(frozen=True)
class Flag:
    def refusal(self, value: Any) -> str:
        return "" if isinstance(value, bool) else "it has to be True or False"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text; `example` is of a field that may not be empty."""

    example: str = ""

    def refusal(self, value: Any) -> str:
        if isinstance(value, str) and "\0" not in value and (value or not self.example):
            return ""
        return f"give text, such as {self.example!r}" if self.example else "it has to be text"


@dataclasses.dataclass(frozen=True)
class Regex:
    def refusal(self, value: Any) -> str:
        if not isinstance(value, str):
            return "it has to be text"
        try:
            re.compile(value)
        except re.error as error:
            return f"it has to be a regular expression ({error})"
        return ""


@dataclasses.dataclass(frozen=True)
class Several:
    """At least so many values of a kind."""

    of: Rule
    least: int = 0

    def refusal(self, value: Any) -> str:
        if not isinstance(value, (tuple, list)):
            return "it has to be several values in brackets, as in (1, 2)"
        if len(value) < self.least:
            return f"give {self.least} or more values"
        return next((f"of these {one!r} is refused: {refusal}" for one in value if (refusal := self.of.refusal(one))), "")


_LARGEST_FLOAT32 = 3.4028234663852886e38


def whole(least: int, most: float = math.inf) -> Number:
    return Number(True, 2**31 - 1, least, most)


def real(least: float = -math.inf, most: float = math.inf, **bounds: float) -> Number:
    return Number(False, _LARGEST_FLOAT32, least, most, **bounds)


SEED, COUNT, SHARE = whole(0), whole(1), real(0.0, below=1.0)
FLAG, TEXT = Flag(), Text()


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: its value in the base config.
      allowed: the rule its value has to keep.
      meaning: one short phrase for the table of fields.
      free: whether a run may resume with another value, because the field changes when and how, not what is computed.
    """

    default: Any
    allowed: Rule
    meaning: str
    free: bool = False


def flat_fields(tree: dict, prefix: str = "") -> dict:
    """`{"data": {"root": x}}` -> `{"data.root": x}`."""
    flat = {}
    for name, value in tree.items():
        flat |= flat_fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
