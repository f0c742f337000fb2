"""Intervals and tests for figures that depend on each other over time.

Requests of one round share their weather, and so do neighbouring rounds: taken one by one they would look like far more evidence than they
are. So whole blocks of consecutive rounds are drawn (the circular block bootstrap of Politis and Romano, 1992), the same blocks for every
pair of places, which makes differences between pairs paired. Sources for the rest: Holm (1979) for many tests at once; for diurnality,
blocks shuffled in time, and the share of variance that two harmonics of the day explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wanspec.lab.records.statistics import Floats, percentile_interval

MIN_RESAMPLES: Final = 2000
MAX_RESAMPLES: Final = 10_000
"""So many that Holm's correction of the smallest possible p, 2 / resamples, still leaves room below 0.05."""
PERMUTATIONS: Final = 1999
MIN_BLOCKS: Final = 4
"""Fewer tell nothing of how far figures may be off."""
CHUNK: Final = 1 << 20
"""Numbers that are worked on at a time: what fits the processor's caches."""
HOUR_S, DAY_S = 3600.0, 86_400.0
MIN_DIURNAL_DAYS: Final = 2.0
"""Within one day a trend looks like an hour of the day."""
SHUFFLED_S: Final = 6 * HOUR_S
"""The blocks that are shuffled for diurnality: long against the memory of a queue, short against a day. Of series without any hours, 288
rounds with a correlation of 0.7, 0.9 and 0.95 from one to the next, 5, 12 and 10 in a hundred were taken for diurnal at 0.05; with blocks
of two hours it was 12, 33 and 33."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its interval, and of how many requests it is."""

    value: float
    low: float
    high: float
    """Interval not a number: there were too few rounds to say."""
    n: int


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds of a study, and how they are drawn again: `counts[draw, round]`."""

    at_s: Floats
    block: int
    """Rounds."""
    counts: NDArray[np.int16]

    @property
    def is_enough(self) -> bool:
        return len(self.at_s) >= MIN_BLOCKS * self.block


def draw_rounds(at_s: Floats, *, comparisons: int, seed: int = 0) -> Rounds:
    """Blocks of an hour, or of the cube root of the number of rounds where that is more."""
    number = len(at_s)
    step_s = float(np.median(np.diff(at_s))) if number > 1 else HOUR_S
    block = max(1, min(number, max(math.ceil(HOUR_S / step_s), math.ceil(number ** (1 / 3))), max(1, number // MIN_BLOCKS)))
    draws = int(min(MAX_RESAMPLES, max(MIN_RESAMPLES, 50 * comparisons)))
    starts = np.random.default_rng(seed).integers(0, number, (draws, math.ceil(number / block)))
    drawn = ((starts[:, :, None] + np.arange(block)) % number).reshape(draws, -1)[:, :number]
    flat = np.bincount((drawn + number * np.arange(draws)[:, None]).ravel(), minlength=draws * number)
    return Rounds(at_s, block, flat.reshape(draws, number).astype(np.int16))


def resampled_quantiles(values: Floats, rounds_of: NDArray[np.intp], rounds: Rounds, shares: Sequence[float]) -> Floats:
    """[draw, share]: the quantiles of the values in each draw; not a number where a draw has none of them."""
    order = np.argsort(values, kind="stable")
    ordered, places = values[order], rounds_of[order]
    out = np.full((len(rounds.counts), len(shares)), np.nan)
    step = max(1, CHUNK // max(1, len(ordered)))
    for start in range(0, len(out) if len(ordered) else 0, step):
        below = np.cumsum(rounds.counts[start : start + step, places], axis=1, dtype=np.int32)
        drawn = below[:, -1] > 0
        for column, share in enumerate(shares):
            ranks = np.maximum(1, np.ceil(share * below[:, -1:]))
            found = ordered[np.minimum((below < ranks).sum(axis=1), len(ordered) - 1)]
            out[start : start + step, column] = np.where(drawn, found, np.nan)
    return out


def quantile(values: Floats, share: float) -> float:
    """The smallest value that a share of them does not exceed."""
    if not len(values):
        return math.nan
    rank = max(0, math.ceil(share * len(values)) - 1)
    return float(np.partition(values, rank)[rank])


def figure(values: Floats, share: float, drawn: Floats, rounds: Rounds) -> Estimate:
    """A quantile with its interval; `drawn`: the same quantile in each draw."""
    low, high = percentile_interval(drawn) if rounds.is_enough else (math.nan, math.nan)
    return Estimate(quantile(values, share), low, high, len(values))


def p_of_difference(drawn: Floats) -> float:
    """Two-sided: how readily the draws of a difference lie on the other side of 0."""
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return math.nan
    rarer = min(int(np.count_nonzero(known <= 0)), int(np.count_nonzero(known >= 0)))
    return min(1.0, 2 * (rarer + 1) / (len(known) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for being many; what is not a number stays so, and does not count."""
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    corrected, highest = list(p_values), 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, slots=True)
class Diurnal:
    """How a series goes with the hour of the day."""

    p: float
    """Not a number: the study is too short to say."""
    ratio: float
    """Of the busiest hour to the quietest, by two harmonics of the day."""
    peak_hour: float
    """Local."""


def diurnality(logs: Floats, at_s: Floats, hours: Floats, *, seed: int = 0) -> Diurnal:
    """Of logarithms of latencies, one for each round, at these local hours; rounds that have none are not a number."""
    known = np.isfinite(logs)
    logs, at_s, hours = logs[known], at_s[known], hours[known]
    if len(logs) < 12 or at_s[-1] - at_s[0] < MIN_DIURNAL_DAYS * DAY_S * (1 - 1 / len(logs)) - HOUR_S:  # noqa: PLR2004  # half of a day's hours
        return Diurnal(math.nan, math.nan, math.nan)
    detrended = logs - np.polyval(np.polyfit(at_s - at_s[0], logs, 1), at_s - at_s[0])
    basis, _ = np.linalg.qr(_harmonics(hours) - _harmonics(hours).mean(axis=0))
    observed = _explained(detrended, basis)
    blocks = _blocks(at_s)
    rng, rarer = np.random.default_rng(seed), 0
    for _ in range(PERMUTATIONS):
        shuffled = np.concatenate([blocks[index] for index in rng.permutation(len(blocks))])
        rarer += _explained(detrended[shuffled], basis) >= observed
    fit, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(hours)), _harmonics(hours)]), detrended, rcond=None)
    day = np.arange(0, 24, 0.25)
    curve = np.column_stack([np.ones(len(day)), _harmonics(day)]) @ fit
    return Diurnal((1 + rarer) / (1 + PERMUTATIONS), float(np.exp(curve.max() - curve.min())), float(day[curve.argmax()]))


def _harmonics(hours: Floats) -> Floats:
    """Two of the day."""
    angle = 2 * np.pi * hours / 24
    return np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])


def _explained(values: Floats, basis: Floats) -> float:
    """The share of the variance."""
    centred = values - values.mean()
    total = float(centred @ centred)
    return float(np.sum((centred @ basis) ** 2)) / total if total else 0.0


def _blocks(at_s: Floats) -> list[NDArray[np.intp]]:
    """Runs of rounds within SHUFFLED_S of each other."""
    places = ((at_s - at_s[0]) // SHUFFLED_S).astype(np.intp)
    return np.split(np.arange(len(at_s)), np.flatnonzero(np.diff(places)) + 1)
