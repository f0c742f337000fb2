"""What a site could do without a worker: rounds of every depth, and the best of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.policy.measured import DRAFT_S, SURE, TARGET_S, USUAL, rising

from wanspec.core.policy.alone import Alone
from wanspec.core.policy.coverage import LIMITS, MAX_LEVELS, Coverage, Look
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.sharing import best_size


def alone(
    coverage: Coverage,
    *,
    target_times: PassTimes | None = None,
    draft_times: PassTimes | None = None,
    num_sessions: int = 1,
    width: int = 8,
) -> Alone:
    return Alone(
        coverage,
        target_times=target_times or PassTimes(TARGET_S),
        draft_times=draft_times or PassTimes(DRAFT_S),
        num_sessions=num_sessions,
        width=width,
    )


def useless() -> Coverage:
    """Of a draft model none of whose guesses ever comes true."""
    coverage = Coverage()
    for _ in range(400):
        coverage.learn(Look(1.0, (0.0,) * 8, (0.0,) * 64))
    return coverage


def test_a_chain_of_sure_drafts_costs_its_passes_shared_by_its_tokens() -> None:
    deepest = alone(SURE)
    costs_s = [(TARGET_S + depth * DRAFT_S) / (1 + depth) for depth in range(1, 9)]  # no more than its width is verified
    assert deepest.bare_s == pytest.approx(min(costs_s), rel=1e-4)
    assert alone(SURE, width=1).bare_s == pytest.approx(costs_s[0])


def test_the_token_that_a_round_ends_with_is_computed_in_the_next() -> None:
    assert alone(SURE, draft_times=rising(DRAFT_S, 0.0), width=1).bare_s == pytest.approx((TARGET_S + DRAFT_S) / 2)
    assert alone(SURE, draft_times=rising(DRAFT_S, DRAFT_S), width=1).bare_s == pytest.approx((TARGET_S + 2 * DRAFT_S) / 2)


def test_where_drafts_are_of_no_use_or_too_dear_it_is_plain_decoding() -> None:
    for site in (alone(useless()), alone(USUAL, draft_times=PassTimes(1.0)), alone(USUAL, target_times=rising(TARGET_S, TARGET_S))):
        assert site.bare_s == site.plain_s == TARGET_S
    assert not alone(useless()).may_gain(TARGET_S, 0.0)


def test_sessions_that_share_the_passes_pay_for_what_all_of_them_compute() -> None:
    target_times, draft_times = rising(TARGET_S, TARGET_S / 20), rising(DRAFT_S, DRAFT_S / 20)
    one, four, many = (alone(USUAL, target_times=target_times, draft_times=draft_times, num_sessions=sessions) for sessions in (1, 4, 32))
    assert one.bare_s < four.bare_s < many.bare_s
    assert [site.plain_s for site in (one, four, many)] == [target_times.expected_s(sessions) for sessions in (1, 4, 32)]


def test_tokens_that_free_drafts_foresaw_cost_less() -> None:
    site = alone(USUAL)
    costs_s = [site.token_s(num_free) for num_free in (0, 1, 4)]
    assert costs_s[0] == site.bare_s
    assert costs_s == sorted(costs_s, reverse=True)
    assert costs_s[2] == pytest.approx(TARGET_S / 5, rel=0.3)  # they are verified in one pass, with hardly a draft pass


def test_levels_below_a_leaf_are_worth_the_tokens_that_they_add_less_the_time() -> None:
    site, depth = alone(SURE), MAX_LEVELS // 2
    gain_s = site.gain_of_levels_s(1.0, 0, TARGET_S)
    assert gain_s == pytest.approx(depth * (TARGET_S - DRAFT_S), rel=1e-4)  # as deep as the width lets it
    assert site.gain_of_levels_s(1.0, 6, TARGET_S) == pytest.approx(
        2 * (TARGET_S - DRAFT_S), rel=1e-4
    )  # beside six nodes there is room for two
    assert site.gain_of_levels_s(0.5, 0, TARGET_S) == pytest.approx(depth * (0.5 * TARGET_S - DRAFT_S), rel=1e-4)
    assert site.gain_of_levels_s(0.01, 0, TARGET_S) < 0.0
    assert site.gain_of_levels_s(1.0, 8, TARGET_S) == -math.inf  # there is room for none


def test_levels_pay_for_what_they_add_to_the_targets_pass() -> None:
    free, dear = alone(SURE), alone(SURE, target_times=rising(TARGET_S, DRAFT_S))
    assert free.gain_of_levels_s(1.0, 0, TARGET_S) - dear.gain_of_levels_s(1.0, 0, TARGET_S) == pytest.approx(8 * DRAFT_S, rel=1e-4)


def test_more_levels_may_gain_where_one_does_not() -> None:
    dear_second_token = PassTimes(TARGET_S)
    for size, pass_s in ((1, TARGET_S), (2, 1.9 * TARGET_S), (32, 2.2 * TARGET_S)):
        dear_second_token.add(size, pass_s)
    assert alone(SURE, target_times=dear_second_token, width=32).gain_of_levels_s(1.0, 0, TARGET_S) > 0.0
    assert alone(SURE, target_times=dear_second_token, width=1).gain_of_levels_s(1.0, 0, TARGET_S) < 0.0


def test_an_answer_is_the_same_when_it_is_asked_for_again() -> None:
    site = alone(USUAL)
    for num_verified in (0, 3, 0):
        assert site.gain_of_levels_s(0.7, num_verified, TARGET_S) == alone(USUAL).gain_of_levels_s(0.7, num_verified, TARGET_S)
    assert site._added[0].shape == (len(LIMITS), MAX_LEVELS)


@settings(deadline=None)
@given(
    probs=st.lists(st.floats(0.001, 1.0), max_size=8),
    num_sessions=st.integers(1, 4),
    dear=st.floats(0.0, 1.0),
)
def test_nodes_and_leaves_are_worth_what_a_pass_shared_by_all_sessions_makes_them(
    probs: list[float], num_sessions: int, dear: float
) -> None:
    gains_s = sorted([TARGET_S * prob for prob in probs], reverse=True)
    target_times, draft_times = rising(TARGET_S, dear * TARGET_S), rising(DRAFT_S, dear * DRAFT_S)
    site = alone(USUAL, target_times=target_times, draft_times=draft_times, num_sessions=num_sessions)
    count, worth_s = best_size(gains_s, target_times, sure_tokens=num_sessions, copies=num_sessions)
    assert site.nodes_worth(gains_s)[1] == pytest.approx(worth_s, abs=1e-12)
    if worth_s > 1e-9:
        assert site.nodes_worth(gains_s)[0] == count
    leaves = site.num_leaves_worth(gains_s)
    added_s = [draft_times.expected_s(num_sessions * (1 + number)) - draft_times.expected_s(num_sessions) for number in range(9)]
    best_s = max(sum(gains_s[:number]) - added_s[number] for number in range(len(gains_s) + 1))
    assert sum(gains_s[:leaves]) - added_s[leaves] == pytest.approx(best_s, abs=1e-12)
