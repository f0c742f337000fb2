from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wanspec.lab.measurement.resampling import (
    DAY_S,
    diurnality,
    draw_rounds,
    figure,
    holm,
    p_of_difference,
    quantile,
    resampled_quantiles,
)  # fmt: skip
from wanspec.lab.records.statistics import Floats, percentile_interval

INTERVAL_S = 900.0


def rounds_at(number: int) -> Floats:
    return np.asarray(1.76e9 + INTERVAL_S * np.arange(number), dtype=np.float64)


def autocorrelated(rng: np.random.Generator, number: int, memory: float) -> Floats:
    values = np.empty(number)
    value = rng.standard_normal() / math.sqrt(1 - memory**2)
    for index in range(number):
        value = memory * value + rng.standard_normal()
        values[index] = value
    return values


def test_every_draw_has_as_many_rounds_as_there_are_and_whole_blocks_of_them() -> None:
    rounds = draw_rounds(rounds_at(96), comparisons=1)
    assert rounds.counts.shape == (2000, 96)
    assert (rounds.counts.sum(axis=1) == 96).all()
    assert rounds.block == 5
    assert abs(rounds.counts.mean(axis=0) - 1).max() < 0.15


def test_quantiles_of_draws_are_those_of_the_drawn_requests() -> None:
    rng = np.random.default_rng(3)
    rounds = draw_rounds(rounds_at(20), comparisons=1)
    values, places = rng.exponential(size=200), np.repeat(np.arange(20), 10)
    drawn = resampled_quantiles(values, places, rounds, (0.5, 0.95))
    for draw in (0, 7, 1999):
        bag = np.repeat(values, rounds.counts[draw][places])
        assert drawn[draw].tolist() == [quantile(bag, 0.5), quantile(bag, 0.95)]
    assert quantile(np.arange(1.0, 101.0), 0.95) == 95.0


def test_intervals_cover_the_median_of_dependent_rounds_as_often_as_they_say() -> None:
    """Taken one by one, rounds with this memory would be covered about 60 times in a hundred."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        level = np.repeat(autocorrelated(rng, 288, 0.7), 4)
        values, places = level + rng.standard_normal(len(level)), np.repeat(np.arange(288), 4)
        rounds = draw_rounds(rounds_at(288), comparisons=1, seed=seed)
        fewer = replace(rounds, counts=rounds.counts[:500])
        found = figure(values, 0.5, resampled_quantiles(values, places, fewer, (0.5,))[:, 0], rounds)
        covered += found.low <= 0.0 <= found.high
    assert covered >= 80


def test_too_few_rounds_have_no_interval() -> None:
    rounds = draw_rounds(rounds_at(3), comparisons=1)
    found = figure(np.arange(30.0), 0.5, np.arange(30.0), rounds)
    assert math.isnan(found.low)
    assert found.n == 30


def test_holm_corrects_for_the_number_of_tests_and_leaves_out_what_was_not_tested() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert holm([0.01, 0.04, math.nan, 0.03])[3] == pytest.approx(0.06)
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_p_of_a_difference_is_never_0_and_is_1_where_it_is_none() -> None:
    assert p_of_difference(np.ones(1999)) == pytest.approx(0.001)
    assert p_of_difference(np.zeros(1999)) == 1.0
    assert percentile_interval(np.full(5, np.nan))[0] != percentile_interval(np.full(5, np.nan))[0]


def days(number: float) -> tuple[Floats, Floats]:
    at_s = rounds_at(round(number * DAY_S / INTERVAL_S))
    return at_s, (at_s % DAY_S) / 3600


def test_an_hour_of_the_day_is_found_with_its_height_and_its_time() -> None:
    at_s, hours = days(3)
    logs = 0.3 * np.cos(2 * np.pi * (hours - 15) / 24) + 0.1 * np.random.default_rng(0).standard_normal(len(at_s))
    found = diurnality(logs, at_s, hours)
    assert found.p < 0.01
    assert found.ratio == pytest.approx(math.exp(0.6), rel=0.1)
    assert found.peak_hour == pytest.approx(15, abs=1)


def test_a_queue_with_a_memory_is_not_taken_for_an_hour_of_the_day() -> None:
    at_s, hours = days(3)
    positives = sum(
        diurnality(autocorrelated(np.random.default_rng(seed), len(at_s), 0.9), at_s, hours, seed=seed).p < 0.05 for seed in range(40)
    )
    assert positives <= 8


def test_a_day_and_a_half_says_nothing_of_days() -> None:
    at_s, hours = days(1.5)
    assert math.isnan(diurnality(np.cos(hours), at_s, hours).p)
