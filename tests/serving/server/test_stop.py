"""Stop strings: the same end, however the text was cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanspec.serving.server.stop import StopStrings


def cut(text: str, stops: list[str], sizes: list[int], *, includes_stop: bool = False) -> tuple[str, bool]:
    """All that is given out of a text that comes in pieces of these sizes, then a character at a time."""
    watch, given_out = StopStrings(stops, includes_stop=includes_stop), ""
    while text:
        size = sizes.pop(0) if sizes else 1
        piece, text = text[:size], text[size:]
        out, has_stopped = watch.push(piece)
        given_out += out
        if has_stopped:
            return given_out, True
    return given_out + watch.finish(), False


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo", ["\n\n"], "one\ntwo"),
        ("one\n", ["\n\n"], "one\n"),
        ("abcd", ["abcd", "bc"], "a"),
        ("xabc", ["bc", "abc"], "x"),
        ("aab", ["ab"], "a"),
        ("", ["x"], ""),
        ("text", [], "text"),
    ],
)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: list[str], expected: str) -> None:
    assert cut(text, stops, [])[0] == expected
    assert cut(text, stops, [len(text)])[0] == expected


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("one\n\ntwo", ["\n\n"], "one\n\n"), ("abcd", ["abcd", "bc"], "abc"), ("one\n", ["\n\n"], "one\n"), ("xabc", ["bc", "abc"], "xabc")],
)
def test_the_text_ends_behind_the_stop_string_where_that_is_asked_for(text: str, stops: list[str], expected: str) -> None:
    for sizes in ([], [2, 2, 2, 2], [len(text)]):
        assert cut(text, stops, sizes, includes_stop=True)[0] == expected


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    sizes=st.lists(st.integers(1, 8), max_size=10),
)
def test_how_the_text_was_cut_makes_no_difference(text: str, stops: list[str], sizes: list[int]) -> None:
    assert cut(text, stops, sizes) == cut(text, stops, [])


def test_text_is_held_back_no_longer_than_it_may_become_a_stop_string() -> None:
    watch = StopStrings(["</s>"])
    assert watch.push("done <") == ("done ", False)
    assert watch.push("/") == ("", False)
    assert watch.push("b") == ("</b", False)
