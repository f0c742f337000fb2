"""Acceptance estimates: the scale is found again, kept, and refused where it is not one."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.speculation.calibration import ENTROPY_EDGES_NATS, MAX_TEMPERATURE, TAUS, Calibration, CalibrationBook, CalibrationState
from wanspec.core.speculation.types import DraftChoices, SamplingParams
from wanspec.engines.choosing import draft_choices
from wanspec.engines.noise import noise_of
from wanspec.errors import ConfigError

VOCABULARY = 50
GRID_STEP = TAUS[1] / TAUS[0]


def ranked(logits: list[float] | np.ndarray, *, count: int = 8, temperature: float = 0.0, position: int = 0) -> DraftChoices:
    row = np.array(logits, np.float32)
    sampling = SamplingParams(temperature=temperature, seed=5)
    return draft_choices(row, sampling, noise_of(sampling, position, len(row)), count=count)


def learned(tau: float, *, tokens: int = 1500, count: int = 8, seed: int = 0) -> Calibration:
    """A calibration that has seen a target which chooses by softmax(score / tau)."""
    rng = np.random.default_rng(seed)
    calibration = Calibration()
    for _ in range(tokens):
        logits = rng.normal(size=VOCABULARY) * rng.choice([0.5, 2.0, 4.0])
        scores = logits - np.log(np.exp(logits).sum())
        probs = np.exp(scores / tau)
        calibration.observe(ranked(logits, count=count), int(rng.choice(VOCABULARY, p=probs / probs.sum())))
    return calibration


@pytest.mark.parametrize("tau", [0.4, 1.0, 2.5])
def test_the_scale_of_the_targets_choices_is_found_within_the_grid(tau: float) -> None:
    taus = learned(tau, count=VOCABULARY).taus
    assert len(taus) == len(ENTROPY_EDGES_NATS) + 1
    seen = taus[1:]  # hardly a draw is surer than the first edge
    assert all(tau / GRID_STEP**2 < found < tau * GRID_STEP**2 for found in seen)


@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_a_ranking_of_eight_is_nearly_enough_to_find_it(tau: float) -> None:
    assert all(tau / GRID_STEP**3 < found < tau * GRID_STEP**3 for found in learned(tau).taus[1:])


def test_estimates_come_true_as_often_as_they_say() -> None:
    tau, rng = 0.5, np.random.default_rng(1)
    calibration = learned(tau)
    expected = hits = 0.0
    for _ in range(2000):
        logits = rng.normal(size=VOCABULARY) * 3.0
        probs = np.exp((logits - logits.max()) / tau)
        choices = ranked(logits)
        expected += math.exp(calibration.log_probs([choices])[0][0])
        hits += int(rng.choice(VOCABULARY, p=probs / probs.sum())) == choices.tokens[0]
    assert expected == pytest.approx(hits, rel=0.06)


def test_before_it_has_seen_anything_the_prior_holds() -> None:
    assert all(0.4 < tau < 0.6 for tau in Calibration().taus)


def test_another_kind_of_text_moves_the_scale_in_its_own_bin_most() -> None:
    calibration = Calibration()
    sure, undecided = ranked([9.0] + [0.0] * 49), ranked([1.0] + [0.0] * 49)
    for _ in range(300):
        calibration.observe(sure, sure.tokens[0])
        calibration.observe(undecided, 49)
    assert calibration.taus[0] < calibration.taus[-1]


LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    logits=LOGITS,
    count=st.integers(1, 8),
    temperature=st.sampled_from([0.0, 0.1, 0.8, 20.0]),
    seen=st.sampled_from([0, 40]),
    chosen=st.integers(0, 40),
)
def test_estimates_of_a_ranking_are_probabilities_and_sum_to_at_most_one(
    logits: list[float], count: int, temperature: float, seen: int, chosen: int
) -> None:
    calibration = Calibration()
    choices = ranked(logits, count=count, temperature=temperature)
    for _ in range(seen):
        calibration.observe(choices, chosen)
    estimates = calibration.log_probs([choices])[0]
    assert len(estimates) == len(choices.tokens)
    assert estimates == sorted(estimates, reverse=True)
    assert sum(math.exp(estimate) for estimate in estimates) <= 1.0 + 1e-9
    assert all(math.isfinite(value) for row in calibration.state.evidence for value in row)


def test_noise_that_makes_an_undecided_draft_sure_breaks_nothing() -> None:
    # The entropy is that before the noise: a tiny mass outside the ranking cannot hold as many tokens as it would say.
    calibration = Calibration()
    wrong = DraftChoices(tokens=tuple(range(8)), log_probs=(-1e-8, *[-20.0] * 7), entropy_nats=3.5)
    for _ in range(60):
        calibration.observe(wrong, 7)
        assert sum(map(math.exp, calibration.log_probs([wrong])[0])) <= 1.0 + 1e-9
    assert calibration.taus[-1] > 1.0


def test_scores_at_the_edge_of_what_floats_hold_teach_nothing() -> None:
    calibration = Calibration()
    calibration.observe(DraftChoices(tokens=(1, 2), log_probs=(0.0, -math.inf), entropy_nats=0.0), 2)
    assert calibration.state == Calibration().state


def test_a_calibration_goes_on_from_what_was_kept() -> None:
    first = learned(1.7, tokens=200)
    second = Calibration(first.state)
    choices = ranked([3.0, 2.0, 1.0, *[0.0] * 47])
    assert second.taus == Calibration(second.state).taus
    assert second.state == first.state
    for _ in range(8):
        first.observe(choices, 1)
        second.observe(choices, 1)
    assert second.log_probs([choices])[0] == Calibration(first.state).log_probs([choices])[0]


BINS = len(ENTROPY_EDGES_NATS) + 1


@pytest.mark.parametrize(
    "state",
    [
        CalibrationState(evidence=((0.0,) * len(TAUS),) * (BINS - 1), tokens=(0.0,) * BINS),
        CalibrationState(evidence=((0.0,) * (len(TAUS) + 1),) * BINS, tokens=(0.0,) * BINS),
        CalibrationState(evidence=((0.0,) * len(TAUS),) * BINS, tokens=(0.0,) * (BINS + 1)),
        CalibrationState(evidence=((math.nan,) * len(TAUS),) * BINS, tokens=(0.0,) * BINS),
        CalibrationState(evidence=((0.0,) * len(TAUS),) * BINS, tokens=(math.inf,) * BINS),
        CalibrationState(evidence=(), tokens=()),
    ],
)
def test_a_state_that_is_none_is_refused(state: CalibrationState) -> None:
    with pytest.raises(ConfigError, match="remove the file"):
        Calibration(state)


def test_a_ragged_state_is_refused_too() -> None:
    ragged = CalibrationState(evidence=((0.0,) * len(TAUS),) * (BINS - 1) + ((0.0,),), tokens=(0.0,) * BINS)
    with pytest.raises(ConfigError, match="remove the file"):
        Calibration(ragged)


@pytest.mark.parametrize("count", [-30.0 / BINS, 2100.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["tokens", "promised", "kept"])
def test_a_state_of_counts_that_cannot_be_is_refused(name: str, count: float) -> None:
    counts = {"tokens": (0.0,) * BINS, name: (count,) * BINS}
    negative = CalibrationState(evidence=((0.0,) * len(TAUS),) * BINS, **counts)
    with pytest.raises(ConfigError, match="remove the file"):
        Calibration(negative)


def test_a_book_has_a_calibration_for_each_temperature_and_few_in_all() -> None:
    book = CalibrationBook()
    assert book.at(0.0) is book.at(0.04)
    assert book.at(0.8) is not book.at(0.0)
    rng = random.Random(0)
    for _ in range(300):
        book.at(rng.uniform(0.0, 100.0))
    assert len(book.states) <= 10 * MAX_TEMPERATURE + 1


def test_a_book_goes_on_from_what_was_kept() -> None:
    book = CalibrationBook()
    choices = ranked([3.0, 2.0, 1.0, *[0.0] * 47])
    for _ in range(100):
        book.at(0.8).observe(choices, 2)
    again = CalibrationBook(book.states)
    assert again.states == book.states
    assert again.at(0.8).taus == Calibration(book.states[0.8]).taus != again.at(0.0).taus


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_model_that_is_sure_and_always_wrong_is_worth_nothing_within_two_hundred_tokens(temperature: float) -> None:
    calibration, rng = Calibration(), np.random.default_rng(2)
    for position in range(200):
        calibration.observe(ranked(rng.normal(size=VOCABULARY) * 4.0, temperature=temperature, position=position), VOCABULARY)
    estimate = math.exp(calibration.log_probs([ranked(rng.normal(size=VOCABULARY) * 4.0)])[0][0])
    assert estimate < 0.1
    assert min(calibration.trust) < 0.15


def test_an_honest_draft_model_is_trusted() -> None:
    assert min(learned(0.5).trust) > 0.95


def test_tokens_that_no_ranking_holds_lower_the_trust_and_leave_the_scale_alone() -> None:
    calibration, rng = Calibration(), np.random.default_rng(3)
    for step in range(1500):
        logits = rng.normal(size=VOCABULARY) * 4.0
        probs = np.exp((logits - logits.max()) / 0.5)
        calibration.observe(ranked(logits), VOCABULARY if step % 2 else int(rng.choice(VOCABULARY, p=probs / probs.sum())))
    busy = int(np.argmax(calibration.state.tokens))
    assert calibration.trust[busy] == pytest.approx(0.5, abs=0.1)
    assert calibration.taus[busy] < 1.0


@pytest.mark.parametrize("promises", [(1.0,) * (BINS - 1), (math.nan,) * BINS, (-1.0,) * BINS])
def test_promises_that_are_none_are_refused_and_a_file_without_any_is_taken(promises: tuple[float, ...]) -> None:
    evidence, tokens = ((0.0,) * len(TAUS),) * BINS, (0.0,) * BINS
    assert Calibration(CalibrationState(evidence=evidence, tokens=tokens)).trust == Calibration().trust
    with pytest.raises(ConfigError, match="remove the file"):
        Calibration(CalibrationState(evidence=evidence, tokens=tokens, promised=promises, kept=promises))


def test_no_rankings_have_no_estimates() -> None:
    assert Calibration().log_probs([]) == []
