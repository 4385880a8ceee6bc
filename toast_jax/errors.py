"""Errors that are messages to the user. Nothing here imports JAX, which reads its settings when it is imported."""

import contextlib
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import NoReturn, TypeVar

T = TypeVar("T")


class InputError(Exception):
    """Input of the user that cannot be used.

    The text is one sentence that names the thing, the place and the remedy. `cli.py` prints it without a traceback and exits
    with status 2, so raise it only where the user, not the programmer, can act on it.
    """


class Diverged(InputError):
    """The loss of a run became non-finite, and would again with the same config."""


@contextlib.contextmanager
def renaming(names: Mapping[str, str], section: str = "") -> Iterator[None]:
    """Rename config fields in the sentence of an InputError, for a task that holds them under other names.

    Args:
      names: by name of a field, or of a section of fields, the name that the task has for it.
      section: of the task's config that holds all other fields; "" if they keep their names.
    """

    def renamed(match: re.Match) -> str:
        inner = match[2]
        for outer, name in names.items():
            if f"{inner}.".startswith(f"{outer}."):
                return match[1] + name + inner[len(outer) :]
        return match[1] + (f"{section}.{inner}" if section else inner)

    try:
        yield
    except InputError as error:
        error.args = (re.sub(r"((?<![\w./-])(?:--)?config\.)(\w+(?:\.\w+)*)", renamed, str(error)),)
        raise


def fault_of(error: InputError) -> str:
    """Return the sentence of an error without its remedy, for a task that has another one."""
    return str(error).rpartition(": ")[0]


@contextlib.contextmanager
def with_remedy(remedy: str) -> Iterator[None]:
    """Put another remedy in place of that of an InputError, for a task that has one of its own."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{fault_of(error)}: {remedy}.") from error


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; the same command resumes it."""


def command(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run `main` with the arguments of the process, and exit with its status; 2 with the sentence of an InputError."""
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def choose(what: str, name: object, options: Mapping[str, T]) -> T:
    """Return `options[name]`, or raise InputError with the nearest valid names and all of them."""
    if isinstance(name, str) and name in options:
        return options[name]
    near = difflib.get_close_matches(str(name), list(options), n=1)
    hint = f" (the nearest is {near[0]!r})" if near else ""
    raise InputError(f"{what} is {name!r}; it must be one of {', '.join(options)}{hint}.")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def of_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module that only an extra of the package brings, where it is used.

    Args:
      module: such as "sklearn.datasets".
      extra: whose installation brings it, such as "demo".
      purpose: what needs it, the subject of the sentence.

    Raises:
      InputError: it is not installed; the sentence has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = module.partition(".")[0]
        raise InputError(f'{purpose} needs {name}; `pip install "toast_jax[{extra}]"`.') from error
