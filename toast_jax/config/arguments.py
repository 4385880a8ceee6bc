"""Parse the config arguments: the text after the colon of `--config=FILE.py:key=value,key=value`."""

from collections.abc import Iterable

from toast_jax.errors import InputError, choose


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


def joined(text: str) -> tuple[str, ...]:
    """Parse an argument whose values are joined by +."""
    return tuple(filter(None, text.split("+")))


def several(key: str, text: str, options: Iterable[str]) -> tuple[str, ...]:
    """Parse `NAME+NAME` or `all`, returned in the order of `options`."""
    options = dict.fromkeys(options)
    names = tuple(options) if text == "all" else text.split("+")
    for name in names:
        choose(f"The config argument {key}", name, options)
    return tuple(name for name in options if name in names)
