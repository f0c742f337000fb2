"""How many tokens a pass computes: as many as are worth their time, from none upwards."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.sharing import best_rate, best_size, counts_of, ranked, sizes_up_to

STEP_S, FREE_TOKENS = 0.02, 200


def measured(*sizes: int) -> PassTimes:
    """Of a device that computes FREE_TOKENS in one step, and no more for nothing."""
    times = PassTimes(STEP_S)
    for size in sizes:
        times.add(size, STEP_S * max(1.0, size / FREE_TOKENS))
    return times


def per_token(token_s: float) -> PassTimes:
    """Of a device on which every token but the first takes so long."""
    times = PassTimes(STEP_S)
    for size in (1, 2, 4, 8, 16, 32, 64):
        times.add(size, STEP_S + token_s * (size - 1))
    return times


def test_what_costs_no_time_is_all_taken() -> None:
    count, worth_s = best_size([0.001] * 31, measured(1, 33, 200), sure_tokens=1)
    assert count == 31
    assert worth_s == pytest.approx(0.031)


def test_one_session_that_pays_more_for_drafts_than_they_are_worth_verifies_none() -> None:
    gains_s = [STEP_S * 0.9**depth for depth in range(1, 33)]
    assert best_size(gains_s, per_token(0.95 * STEP_S), sure_tokens=1) == (0, 0.0)
    few, worth_s = best_size(gains_s, per_token(0.5 * STEP_S), sure_tokens=1)
    assert 5 <= few <= 8  # 0.9 ** 6.6 is 0.5
    assert 0.0 < worth_s < sum(gains_s)
    assert best_size(gains_s, per_token(0.0), sure_tokens=1)[0] == 32


def test_what_makes_everybody_wait_for_little_is_left_out() -> None:
    times = measured(1, 64, 200, 400, 800, 1600)
    gains_s = sorted((STEP_S / 4 * 0.8**depth for _ in range(32) for depth in range(1, 33)), reverse=True)
    count, _ = best_size(gains_s, times, sure_tokens=32, waiting=32)
    assert 0.6 * FREE_TOKENS < 32 + count < 1.5 * FREE_TOKENS


def test_a_session_that_decides_for_all_pays_for_as_many_tokens_as_they_will_want() -> None:
    times = measured(1, 64, 200, 400, 800, 1600)
    gains_s = [STEP_S / 2 * 0.9**depth for depth in range(1, 33)]
    alone, _ = best_size(gains_s, times, sure_tokens=1)
    with_background, _ = best_size(gains_s, times, sure_tokens=64, copies=64)
    assert alone == 32
    assert 1 <= with_background <= 4  # 64 sessions of one token and two or three drafts each


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    assert best_size([], measured(1), sure_tokens=1) == (0, 0.0)
    assert best_rate([], measured(1)) == 0


def test_a_pass_of_candidates_alone_takes_those_that_raise_the_gain_per_second() -> None:
    assert best_rate([0.5], PassTimes(STEP_S)) == 1
    assert best_rate([0.9, 0.5, 0.5, 0.1], measured(1, 2, 4)) == 4
    assert best_rate([0.9, 0.4, 0.01, 0.01], per_token(STEP_S / 2)) == 1
    assert best_rate([0.9, 0.8, 0.01, 0.01], per_token(STEP_S / 2)) == 2


def test_the_best_of_all_sessions_are_counted_for_each() -> None:
    best = ranked([[0.9, 0.1], [], [0.5, 0.4, 0.3]])[:4]
    assert [gain for gain, _ in best] == [0.9, 0.5, 0.4, 0.3]
    assert counts_of(best, 3) == [1, 0, 3]


def test_every_size_of_an_ordinary_tree_is_considered_and_of_a_large_batch_near_ones() -> None:
    for best in range(32):
        gains_s = [STEP_S] * best + [0.0] * (40 - best)
        assert best_size(gains_s, per_token(STEP_S / 2), sure_tokens=1)[0] == best
    assert best_rate([1.0] * 7 + [0.0] * 30, per_token(STEP_S / 100)) == 7
    sizes = sizes_up_to(5000)
    assert sizes[-1] == 5000
    assert len(sizes) < 250
    assert all(after - before <= 1 + before / 32 for before, after in pairwise(sizes))
    assert sizes_up_to(0) == [0]


def test_of_sizes_that_are_equally_good_a_step_has_the_smallest_and_of_chances_that_are_none_still_one() -> None:
    assert best_rate([0.1] * 30, per_token(STEP_S)) == 1
    assert best_rate([0.0] * 3, per_token(STEP_S)) == 1
