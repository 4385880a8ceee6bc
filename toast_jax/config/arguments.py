"""Parse the config arguments: the text after the colon of `--config=FILE.py:key=value,key=value`."""

from collections.abc import Iterable

from toast_jax.errors import InputError, choose
from toast_jax.fields import joined


def arguments(text: str | None, **defaults: str) -> dict[str, str]:
    """Parse `key=value,key=value`; the keys are those of `defaults`."""
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        choose("The config argument", key, defaults)
        if not equals or not value:
            raise InputError(f"The config argument {part!r} has no value; write {key}=VALUE.")
        values[key] = value
    return values


def yes_no(key: str, text: str) -> bool:
    """Parse an argument that is yes or no."""
    return choose(f"The config argument {key}", text, {"yes": True, "no": False})


def whole(key: str, text: str) -> int:
    """Parse an argument that is a whole number."""
    if not text.isdecimal():
        raise InputError(f"The config argument {key} is {text!r}; write a whole number.")
    return int(text)


def several(key: str, text: str, options: Iterable[str]) -> tuple[str, ...]:
    """Parse `NAME+NAME` or `all`, returned in the order of `options`."""
    choices = dict.fromkeys(options)
    names = tuple(choices) if text == "all" else joined(text) or ("",)
    for name in names:
        choose(f"The config argument {key}", name, choices)
    return tuple(name for name in choices if name in names)
