"""Stop strings, against every continuation of short texts."""

import itertools

import pytest

from toast_jax.tasks.language import stop_strings

TEXTS = ["".join(letters) for length in range(5) for letters in itertools.product("ab", repeat=length)]


@pytest.mark.parametrize("stops", [(), ("ab",), ("aab", "bb"), ("abab", "b")], ids=str)
def test_what_is_settled_is_in_every_answer_and_all_of_it(stops):
    is_nested = any(one != other and one in other for one in stops for other in stops)
    for text in TEXTS:
        if stop_strings.cut(text, stops)[1]:
            continue
        least = min(len(stop_strings.cut(text + more, stops)[0]) for more in TEXTS)
        settled = stop_strings.settled(text, stops)
        assert settled == least or (is_nested and settled < least), (text, settled, least)
        assert stop_strings.settled(text + "\ufffd", stops) == settled


def test_a_text_is_cut_at_the_stop_string_that_is_complete_first():
    """So that it does not matter how many tokens are looked at together."""
    stops = ("bb", "aba", "ab")
    for text in TEXTS:
        parts = (stop_strings.cut(text[:end], stops) for end in range(len(text) + 1))
        assert stop_strings.cut(text, stops) == next((part for part in parts if part[1]), (text, False))
    assert stop_strings.cut("abc", ("abc", "b")) == ("a", True) and stop_strings.cut("abc", ("c", "bc")) == ("a", True)
