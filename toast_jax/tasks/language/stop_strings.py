"""Texts that end an answer, wherever their tokens begin and end."""

from collections.abc import Sequence


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return a text before the stop string that is complete first, and whether it has one."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text, bool(found)


def settled(text: str, stops: Sequence[str]) -> int:
    """Return how many characters of a text without a stop string belong to the answer whatever its next tokens are.

    An end that may begin a stop string, or a character, is left out.
    """
    whole = len(text.rstrip("\ufffd"))
    ends = ((stop, place) for stop in stops for place in range(max(0, whole - len(stop) + 1), whole))
    return min((place for stop, place in ends if stop.startswith(text[place:whole])), default=whole)
