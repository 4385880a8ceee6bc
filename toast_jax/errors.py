"""Errors that are messages to the user. Imports nothing of JAX, which reads its settings when it is imported."""

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class InputError(Exception):
    """Something the user gave cannot be used.

    The text is one sentence that names the thing, the place and the remedy. `main.py` prints it without a traceback and exits
    with status 2, so raise it only where the user, not the programmer, can act on it.
    """


class Diverged(InputError):
    """The loss of a run is not finite any more. With the same config it would be again."""


class Interrupted(Exception):
    """A run was asked to end and has saved where it is; giving the same command again goes on from there."""


def choose(what: str, name: str, options: Mapping[str, T]) -> T:
    """Returns `options[name]`, or raises InputError with the nearest valid names and all of them."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(str(name), list(options), n=1)
    hint = f" (the nearest is {near[0]!r})" if near else ""
    raise InputError(f"{what} is {name!r}; it must be one of {', '.join(options)}{hint}.")


def listed(names: Sequence[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
