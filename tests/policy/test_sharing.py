"""How many tokens a common pass computes: as many as are worth their time."""

from __future__ import annotations

from wanspec.policy.pass_times import PassTimes
from wanspec.policy.sharing import affordable

STEP_S, FREE_TOKENS = 0.02, 200


def measured(*sizes: int) -> PassTimes:
    """Of a device that computes FREE_TOKENS in one step, and no more for nothing."""
    times = PassTimes(STEP_S)
    for size in sizes:
        times.add(size, STEP_S * max(1.0, size / FREE_TOKENS))
    return times


def test_what_costs_no_time_is_all_taken() -> None:
    assert affordable([0.001] * 31, measured(1, 33, 200), sure_gain=1.0, sure_tokens=1) == 31


def test_what_makes_everybody_wait_for_little_is_left_out() -> None:
    times = measured(1, 64, 200, 400, 800, 1600)
    gains = sorted((0.8**depth for _ in range(32) for depth in range(1, 33)), reverse=True)
    count = affordable(gains, times, sure_gain=32.0, sure_tokens=32)
    assert 0.6 * FREE_TOKENS < 32 + count < 1.5 * FREE_TOKENS


def test_drafts_that_are_as_sure_as_the_first_token_fill_what_is_free() -> None:
    assert affordable([1.0] * 400, measured(1, 200, 400, 800), sure_gain=1.0, sure_tokens=1) >= FREE_TOKENS - 1


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    assert affordable([], measured(1), sure_gain=1.0, sure_tokens=1) == 0


def test_without_anything_sure_what_there_is_is_taken() -> None:
    assert affordable([0.5], PassTimes(STEP_S), sure_gain=0.0, sure_tokens=0) == 1
