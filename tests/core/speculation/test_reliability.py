"""What a worker's estimates are taken for: an honest one's for what they say, a liar's soon for what they are worth."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.speculation.reliability import Reliability


def test_a_claim_of_somebody_unknown_is_taken_at_its_word() -> None:
    assert Reliability().log_prob(-1.5) == -1.5


@pytest.mark.parametrize("prob", [0.05, 0.35, 0.75, 0.99])
def test_honest_claims_stay_what_they_are(prob: float) -> None:
    rng, record = random.Random(7), Reliability()
    for _ in range(3000):
        record.observe(math.log(prob), came_true=rng.random() < prob)
    assert math.exp(record.log_prob(math.log(prob))) == pytest.approx(prob, abs=0.05)


def test_lies_are_found_out_within_thirty_observations() -> None:
    record = Reliability()
    for _ in range(30):
        record.observe(0.0, came_true=False)
    assert math.exp(record.log_prob(0.0)) < 0.3
    for _ in range(300):
        record.observe(0.0, came_true=False)
    assert math.exp(record.log_prob(0.0)) < 0.05


def test_a_lie_about_sure_things_does_not_taint_modest_claims() -> None:
    record = Reliability()
    for _ in range(100):
        record.observe(0.0, came_true=False)
    assert record.log_prob(math.log(0.4)) == math.log(0.4)


def test_modesty_that_always_comes_true_is_believed_more() -> None:
    record = Reliability()
    for _ in range(100):
        record.observe(-15.9, came_true=True)
    assert math.exp(record.log_prob(-15.9)) > 0.8


def test_who_was_wrong_once_may_mend_his_ways() -> None:
    record = Reliability()
    for _ in range(500):
        record.observe(-0.01, came_true=False)
    for _ in range(3000):
        record.observe(-0.01, came_true=True)
    assert math.exp(record.log_prob(-0.01)) > 0.9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-15.9375, 0.0), st.booleans()), max_size=60), st.floats(-15.9375, 0.0))
def test_whatever_was_claimed_an_estimate_is_a_logarithm_of_a_probability(history: list[tuple[float, bool]], claim: float) -> None:
    record = Reliability()
    for said, came_true in history:
        record.observe(said, came_true=came_true)
    assert -40.0 < record.log_prob(claim) <= 0.0
