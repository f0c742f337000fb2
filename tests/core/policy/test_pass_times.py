"""What passes and rounds take: by size of the pass, and per token."""

from __future__ import annotations

import pytest

from wanspec.core.policy.pass_times import GUESSED_TOKENS, INHERITED_TOKENS, MAX_ANSWERS, NO_PACE, PACE_MEMORY_ROUNDS, Pace, PassTimes


def test_before_any_measurement_the_initial_time_is_assumed() -> None:
    assert PassTimes(0.03).expected_s(1) == PassTimes(0.03).expected_s(1 << 30) == 0.03


def test_passes_of_about_one_size_are_one_kind() -> None:
    times = PassTimes(1.0)
    for tokens, duration_s in ((40, 0.02), (60, 0.03)):
        times.add(tokens, duration_s)
    assert times.expected_s(44) == pytest.approx(0.022)


def test_a_size_between_two_that_were_measured_takes_a_time_between_theirs() -> None:
    times = PassTimes(1.0)
    times.add(4, 0.02)
    times.add(16, 0.05)
    assert [times.expected_s(tokens) for tokens in (1, 4, 8, 16)] == pytest.approx([0.02, 0.02, 0.03, 0.05])


def test_larger_passes_than_any_measured_are_tried_up_to_twice_its_size_and_then_taken_for_slower() -> None:
    times = PassTimes(1.0)
    times.add(0, 0.01)
    assert times.expected_s(1000) == 0.01
    times.add(64, 0.02)
    assert [times.expected_s(tokens) for tokens in (65, 128, 256)] == pytest.approx([0.02, 0.02, 0.04])


def test_where_passes_are_large_small_ones_may_be_worth_a_try() -> None:
    times = PassTimes(0.001, tries_less=True)
    times.add(1500, 0.15)
    assert times.expected_s(30) == pytest.approx(0.003)
    times.add(30, 0.02)
    assert [times.expected_s(tokens) for tokens in (15, 30)] == pytest.approx([0.01, 0.02])
    times.add(15, 0.02)  # it was none
    assert times.expected_s(15) == pytest.approx(0.02)


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
    assert pace.after(NO_PACE, 0.02) == pytest.approx(0.02)
    pace.add(1.0, 20.0)
    assert pace.after(NO_PACE, 0.02) == pytest.approx((1.0 + 0.02 * GUESSED_TOKENS) / (20 + GUESSED_TOKENS))
    before = Pace()
    before.add(3.0, 30.0)
    assert pace.after(before, 0.02) == pytest.approx((1.0 + 3.0 + 0.02 * GUESSED_TOKENS) / (20 + 30 + GUESSED_TOKENS))
    before.add(1000.0, 10_000.0)
    share = INHERITED_TOKENS / 10_030
    assert pace.after(before, 0.02) == pytest.approx(
        (1.0 + share * 1003.0 + 0.02 * GUESSED_TOKENS) / (20 + INHERITED_TOKENS + GUESSED_TOKENS), rel=0.01
    )


def test_a_pass_that_seems_to_have_taken_no_time_can_be_divided_by() -> None:
    times = PassTimes(0.01)
    times.add(1, 0.0)
    assert times.expected_s(1) > 0.0


def test_a_model_that_makes_no_passes_does_not_grow() -> None:
    times = PassTimes(0.01)
    for tokens in range(2 * MAX_ANSWERS):
        assert times.expected_s(tokens) == 0.01
    assert len(times._expected_s) <= MAX_ANSWERS
