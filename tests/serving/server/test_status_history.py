"""The figures of the last minutes."""

from __future__ import annotations

import msgspec
import pytest

from wanspec.serving.generation import Tally
from wanspec.serving.server.status_history import HISTORY_S, History, Second


def history() -> tuple[History, Tally]:
    tally = Tally(committed_tokens=1000, local_draft_passes=50)
    made = History(tally)
    made.since(-1, now=100.0)
    return made, tally


def test_a_second_holds_what_was_counted_in_it_and_means_over_it() -> None:
    figures, tally = history()
    tally.committed_tokens += 3
    tally.local_draft_passes += 2
    figures.first_tokens(0.2, now=100.1)
    figures.first_tokens(0.4, now=100.2)
    tally.committed_tokens += 4
    figures.more_tokens(0.12, 4, now=100.9)
    assert figures.since(-1, now=100.99) == (0, [])  # it is not over
    number, (second,) = figures.since(-1, now=101.0)
    assert (number, msgspec.structs.astuple(second)) == (1, (0, 7, 2, 0.03, pytest.approx(0.3)))


def test_idle_seconds_leave_nothing() -> None:
    figures, tally = history()
    tally.committed_tokens += 1
    figures.more_tokens(0.1, 1, now=105.5)
    number, seconds = figures.since(-1, now=160.0)
    assert (number, seconds) == (60, [Second(5, 1, 0, 0.1, None)])


def test_only_what_is_news_is_told() -> None:
    figures, _ = history()
    for second in range(5):
        figures.more_tokens(0.1, 1, now=100.0 + second)
    assert [second.number for second in figures.since(2, now=105.0)[1]] == [3, 4]


def test_old_seconds_are_forgotten_however_long_it_runs() -> None:
    figures, _ = history()
    for second in range(3 * HISTORY_S):
        figures.more_tokens(0.1, 1, now=100.0 + second)
    assert len(figures._seconds) == HISTORY_S
    assert [second.number for second in figures.since(-1, now=100.0 + 3 * HISTORY_S)[1]] == list(range(2 * HISTORY_S, 3 * HISTORY_S))
    assert len(figures.since(-1, now=100.0 + 3.5 * HISTORY_S)[1]) == HISTORY_S // 2


def test_a_clock_that_stands_still_changes_nothing() -> None:
    figures, tally = history()
    tally.committed_tokens += 2
    assert figures.since(-1, now=100.0) == figures.since(-1, now=100.0) == (0, [])
    assert figures.since(-1, now=101.5)[1] == [Second(0, 2, 0, None, None)]
