"""What passes take, by their size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.policy.pass_times import FORGOTTEN_PASSES, MAX_ANSWERS, PassTimes


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
    times.add(8, 0.05)
    assert [times.expected_s(tokens) for tokens in (1, 4, 6, 8)] == pytest.approx([0.02, 0.02, 0.035, 0.05])


def test_far_between_two_sizes_each_token_takes_its_time_from_a_bend_on() -> None:
    times = PassTimes(1.0)
    times.add(32, 0.032)
    times.add(512, 0.08)
    assert [times.expected_s(tokens) for tokens in (109, 204, 256, 512)] == pytest.approx([0.032, 0.032, 0.04, 0.08], rel=1e-2)
    times.add(64, 0.05)  # they do not: now that is known
    assert times.expected_s(48) == pytest.approx(0.041)


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


def test_a_pass_that_seems_to_have_taken_no_time_can_be_divided_by() -> None:
    times = PassTimes(0.01)
    times.add(1, 0.0)
    assert times.expected_s(1) > 0.0


def test_a_model_that_makes_no_passes_does_not_grow() -> None:
    times = PassTimes(0.01)
    for tokens in range(2 * MAX_ANSWERS):
        assert times.expected_s(tokens) == 0.01
    assert len(times._expected_s) <= MAX_ANSWERS


def test_a_pass_of_half_the_time_shows_that_those_before_were_hiccups() -> None:
    times = PassTimes(1.0)
    for duration_s in (2.0, 2.0, 0.02):
        times.add(4, duration_s)
    assert times.expected_s(4) == 0.02
    times.add(4, 0.011)  # more than half of it
    assert times.expected_s(4) == pytest.approx(0.02 - 0.2 * 0.009)


@settings(deadline=None)
@given(
    measured=st.lists(st.tuples(st.integers(1, 3000), st.floats(0.001, 1.0)), max_size=8),
    sizes=st.lists(st.integers(1, 8000), min_size=1, max_size=20),
    tries_less=st.booleans(),
)
def test_of_many_sizes_it_says_what_it_says_of_each(measured: list[tuple[int, float]], sizes: list[int], *, tries_less: bool) -> None:
    times = PassTimes(0.03, tries_less=tries_less)
    for tokens, duration_s in measured:
        times.add(tokens, duration_s)
    asked = np.array([sizes, sizes], np.float64)
    assert times.of_sizes(asked) == pytest.approx(np.array([[times.expected_s(size) for size in sizes]] * 2))


def test_fewer_tokens_take_no_longer_than_more_though_they_did_when_they_were_last_computed() -> None:
    times = PassTimes(1.0)
    for tokens, duration_s in ((1, 0.5), (4, 0.02), (64, 0.03)):
        times.add(tokens, duration_s)
    assert [times.expected_s(tokens) for tokens in (1, 2, 4, 64)] == pytest.approx([0.02, 0.02, 0.02, 0.03])
    times.add(64, 0.01)
    assert times.expected_s(1) == times.expected_s(64) == 0.01
    times.add(1, 0.5)  # now the machine is slow again
    assert times.expected_s(1) > 0.1


def test_a_size_that_was_slow_long_ago_is_tried_again_and_one_that_is_slow_by_its_size_is_not() -> None:
    times = PassTimes(0.01)
    for tokens, duration_s in ((1, 0.02), (8, 0.2), (1000, 0.5)):
        times.add(tokens, duration_s)
    for _ in range(FORGOTTEN_PASSES - 1):
        times.add(1, 0.02)
    assert times.expected_s(8) == pytest.approx(0.2)
    times.add(1, 0.02)
    assert times.expected_s(8) < 0.03
    assert times.expected_s(1000) == pytest.approx(0.5)
