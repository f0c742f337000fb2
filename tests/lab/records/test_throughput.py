"""Throughput while all users are at work, and the time between tokens."""

from __future__ import annotations

from typing import Any

import pytest

from wanspec.core.speculation.types import Position, SessionId
from wanspec.lab.records.throughput import all_at_work, emissions_of, token_gaps_s
from wanspec.telemetry.records import Record, RequestArrived, RequestFinished, TokensEmitted


def request(session: int, arrived: float, *emissions: tuple[float, int]) -> list[Record]:
    of: Any = {"site": "controller", "session": SessionId(session)}
    emitted = [TokensEmitted(t=t, position=Position(place), tokens=(7,) * number, **of) for place, (t, number) in enumerate(emissions)]
    return [
        RequestArrived(t=arrived, prompt_tokens=3, policy="adaptive", **of),
        *emitted,
        RequestFinished(t=emissions[-1][0], reason="length", **of),
    ]


def test_throughput_is_counted_until_the_first_user_has_nothing_left_to_ask() -> None:
    records = [*request(1, 10.0, (11.0, 1), (12.0, 3)), *request(2, 10.0, (11.0, 1), (14.0, 1)), *request(3, 12.0, (13.0, 2), (20.0, 50))]
    two_users = all_at_work(records, users=2)
    assert (two_users.began_s, two_users.until_s, two_users.tokens) == (10.0, 14.0, 8)
    assert two_users.tokens_per_s == pytest.approx(2.0)
    assert all_at_work(records, users=1).until_s == 20.0
    assert all_at_work(records, users=9).until_s == 12.0  # more users than requests: the first is left over at once


def test_tokens_that_come_together_share_the_gap_before_them_and_the_first_have_none() -> None:
    assert token_gaps_s([(1.0, 2), (4.0, 3), (5.0, 1)]) == pytest.approx([1.0, 1.0, 1.0, 1.0])
    assert token_gaps_s([(1.0, 5)]) == []


def test_each_text_has_gaps_of_its_own() -> None:
    records = [*request(1, 0.0, (1.0, 1), (2.0, 1)), *request(2, 0.0, (1.5, 1), (3.5, 2))]
    assert emissions_of(reversed(records)) == {1: [(1.0, 1), (2.0, 1)], 2: [(1.5, 1), (3.5, 2)]}
