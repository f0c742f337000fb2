"""How long a worker waits before it dials again."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wanspec.core.protocol.redial import AWAITED_FOR_S, AWAITED_REDIAL_S, FIRST_REDIAL_S, MAX_REDIAL_S, STEADY_S, Redial, shortened


def dials(redial: Redial, *, until: float, now: float = 0.0) -> list[float]:
    """When a worker dials a controller that is out of reach."""
    times = [now]
    while now < until:
        now += redial.delay_s(began=now, was_let_in=False, least_s=FIRST_REDIAL_S, now=now)
        times.append(now)
    return times


def test_a_controller_that_loads_its_models_is_found_within_two_seconds() -> None:
    times = dials(Redial(now=0.0), until=90.0)
    assert times[1] == FIRST_REDIAL_S
    assert max(after - before for before, after in pairwise(times)) == AWAITED_REDIAL_S


def test_one_that_stays_away_is_dialled_less_and_less_often() -> None:
    times = dials(Redial(now=0.0), until=AWAITED_FOR_S + 600.0)
    assert times[-1] - times[-2] == MAX_REDIAL_S
    assert len(times) < 90


def test_one_that_lets_the_worker_in_and_ends_the_connection_at_once_is_not_awaited() -> None:
    redial, now, delays = Redial(now=0.0), 0.0, list[float]()
    for _ in range(9):
        delays.append(redial.delay_s(began=now, was_let_in=True, least_s=FIRST_REDIAL_S, now=now + 0.1))
        now += 0.1 + delays[-1]
    assert delays[:4] == [0.25, 0.5, 1.0, 2.0]
    assert delays[-1] == MAX_REDIAL_S


def test_a_connection_that_lasted_begins_anew_and_one_that_was_sent_home_waits_a_while() -> None:
    redial = Redial(now=0.0)
    dials(redial, until=1000.0)
    end = 1000.0 + STEADY_S + 1.0
    assert redial.delay_s(began=1000.0, was_let_in=True, least_s=5.0, now=end) == 5.0
    assert redial.delay_s(began=1000.0, was_let_in=True, least_s=FIRST_REDIAL_S, now=end) == FIRST_REDIAL_S
    times = dials(redial, now=end, until=end + 60.0)
    assert max(after - before for before, after in pairwise(times)) == AWAITED_REDIAL_S


def test_a_wait_is_shortened_by_at_most_a_half() -> None:
    assert [shortened(2.0, chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 1.5, 2.0])
