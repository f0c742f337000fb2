"""When a worker dials again."""

from __future__ import annotations

import pytest

from wanspec.protocol.redial import FIRST_REDIAL_S, MAX_REDIAL_S, STEADY_S, RedialDelay, shortened


def test_waits_double_up_to_half_a_minute() -> None:
    delay = RedialDelay()
    waits = [delay.after(0.1) for _ in range(10)]
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
    assert waits[-1] == MAX_REDIAL_S


def test_after_a_connection_that_lasted_they_begin_anew() -> None:
    delay = RedialDelay()
    for _ in range(6):
        delay.after(0.1)
    assert delay.after(STEADY_S + 1.0) == FIRST_REDIAL_S
    assert delay.after(0.1) == 2 * FIRST_REDIAL_S


def test_a_worker_that_was_sent_home_waits_longer_and_doubles_from_there() -> None:
    delay = RedialDelay()
    assert [delay.after(STEADY_S + 1.0, least_s=5.0), delay.after(0.1)] == [5.0, 10.0]


def test_a_wait_is_shortened_by_at_most_a_half() -> None:
    assert [shortened(2.0, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 1.5, 2.0])
