"""When a worker is pinged, and when it is given up."""

from __future__ import annotations

import pytest

from wanspec.core.protocol.heartbeat import ASLEEP_S, LOST_MIN_S, LOST_RTTS, PING_PERIOD_S, Heartbeat


def test_a_quiet_worker_is_pinged_once_a_period_and_a_busy_one_is_not() -> None:
    heartbeat = Heartbeat(now=5.0)
    assert heartbeat.ping_due == 5.0 + PING_PERIOD_S
    heartbeat.told(now=5.5)
    heartbeat.heard()
    assert heartbeat.ping_due == 5.5 + PING_PERIOD_S


def test_what_has_had_no_answer_for_a_period_is_followed_by_a_ping_however_much_is_told_meanwhile() -> None:
    heartbeat = Heartbeat(now=0.0)
    for step in range(1, 60):
        heartbeat.told(now=step / 10)
    assert heartbeat.ping_due == 0.1 + PING_PERIOD_S
    heartbeat.ping(now=2.0)
    assert heartbeat.ping_due == 2.0 + PING_PERIOD_S


def test_a_worker_is_lost_that_gives_no_sign_of_life_for_a_few_round_trips_and_at_least_some_seconds() -> None:
    heartbeat = Heartbeat(now=0.0)
    assert (heartbeat.lost_at, heartbeat.is_lost(now=100.0)) == (None, False)
    heartbeat.ponged(heartbeat.ping(now=1.0), now=1.02)
    assert heartbeat.rtt.smoothed_s == pytest.approx(0.02)
    heartbeat.told(now=2.0)
    assert heartbeat.lost_at == 2.0 + LOST_MIN_S
    assert not heartbeat.is_lost(now=2.0 + LOST_MIN_S - 0.01)
    assert heartbeat.is_lost(now=2.0 + LOST_MIN_S)
    heartbeat.heard()
    assert not heartbeat.is_lost(now=100.0)


def test_a_far_worker_has_more_time() -> None:
    heartbeat = Heartbeat(now=0.0)
    heartbeat.ponged(heartbeat.ping(now=1.0), now=1.8)
    heartbeat.told(now=2.0)
    assert heartbeat.lost_at == pytest.approx(2.0 + 0.8 * LOST_RTTS)


def test_only_the_first_answer_to_the_newest_ping_shows_a_round_trip() -> None:
    heartbeat = Heartbeat(now=0.0)
    first, second = heartbeat.ping(now=0.0), heartbeat.ping(now=1.0)
    assert heartbeat.ponged(first, now=1.5)
    assert heartbeat.ponged(second, now=1.6)
    assert heartbeat.ponged(second, now=5.0)
    assert heartbeat.rtt.smoothed_s == pytest.approx(0.6)
    assert not heartbeat.ponged(second + 1, now=5.0)


def test_a_deadline_that_we_slept_over_is_held_against_nobody() -> None:
    heartbeat = Heartbeat(now=0.0)
    heartbeat.told(now=0.0)
    assert not heartbeat.is_lost(now=LOST_MIN_S + ASLEEP_S + 1.0)
    assert heartbeat.lost_at == 2 * LOST_MIN_S + ASLEEP_S + 1.0
