"""What passes and rounds take: by size of the pass, and per token."""

from __future__ import annotations

import pytest

from wanspec.policy.pass_times import PACE_MEMORY_ROUNDS, Pace, PassTimes


def test_before_any_measurement_the_initial_time_is_assumed() -> None:
    assert PassTimes(0.03).expected_s(1) == PassTimes(0.03).expected_s(1 << 30) == 0.03


def test_sizes_between_two_powers_of_two_are_one_kind() -> None:
    times = PassTimes(1.0)
    for tokens, duration_s in ((0, 0.01), (2, 0.02), (64, 0.03), (65, 0.05)):
        times.add(tokens, duration_s)
    assert [times.expected_s(tokens) for tokens in (1, 2, 33, 64, 65, 128)] == [0.01, 0.02, 0.03, 0.03, 0.05, 0.05]


def test_a_size_never_measured_is_taken_for_the_nearest_and_the_smaller_of_two() -> None:
    times = PassTimes(1.0)
    times.add(4, 0.02)
    times.add(16, 0.04)
    assert [times.expected_s(tokens) for tokens in (1, 8, 32, 1 << 20)] == [0.02, 0.02, 0.04, 0.04]


def test_measurements_are_smoothed() -> None:
    times = PassTimes(1.0)
    times.add(1, 0.01)
    times.add(1, 0.02)
    assert times.expected_s(1) == pytest.approx(0.012)
    for _ in range(50):
        times.add(1, 0.02)
    assert times.expected_s(1) == pytest.approx(0.02, rel=1e-3)


def test_the_pace_is_time_over_tokens_and_the_last_rounds_count_most() -> None:
    pace = Pace()
    assert pace.token_s is None
    pace.add(0.03, 3)
    pace.add(0.05, 1)
    assert pace.token_s == pytest.approx(0.02, rel=0.02)
    for _ in range(int(6 * PACE_MEMORY_ROUNDS)):
        pace.add(0.1, 2)
    assert pace.token_s == pytest.approx(0.05, rel=0.01)


def test_a_pace_is_blended_by_tokens_with_another() -> None:
    pace = Pace()
    assert pace.blended_with(0.02, 20.0) == 0.02
    pace.add(1.0, 20.0)
    assert pace.blended_with(0.02, 20.0) == pytest.approx((1.0 + 0.4) / 40)
