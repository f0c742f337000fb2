"""The figures of a study, each with its interval and its number of requests; and the tests that its findings rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from wanspec.lab.measurement.resampling import (
    Diurnal,
    Estimate,
    Rounds,
    diurnality,
    draw_rounds,
    figure,
    holm,
    p_of_difference,
    quantile,
    resampled_quantiles,
)  # fmt: skip
from wanspec.lab.measurement.samples import Pair, Samples
from wanspec.lab.records.statistics import Floats, percentile_interval

MEDIAN: Final = 0.5
TAIL: Final = 0.95
"""The tail that places are compared by, as in the paper."""
SHARES: Final = (MEDIAN, 0.9, TAIL, 0.99)
ALPHA: Final = 0.05
"""Findings are called so where the corrected p is below this."""
MIN_TAIL: Final = 3
"""Requests beyond a quantile; of fewer, it is only the largest of what was seen, and is not shown."""
HOURS: Final = range(24)

HOURLY_DRAWS: Final = 500
"""Of the intervals of single hours: two dozen times as many figures, on which no test rests."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFigures:
    """The figures of one pair of probe and target."""

    pair: Pair
    ttft: dict[float, Estimate]
    connect: dict[float, Estimate]
    itl: dict[float, Estimate]
    service: Estimate | None
    """Median of the service's own latency, where it tells."""
    answer: Estimate
    """Median of TTFT without name, connection and TLS."""
    hours: dict[int, dict[float, Estimate]]
    """TTFT by the target's local hour."""
    drawn: Floats
    """TTFT in each draw: [draw, share]."""

    def ttft_at(self, share: float) -> Estimate | None:
        return self.ttft.get(share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """From one probe: home against a target abroad, at one quantile of TTFT. Positive: abroad is faster."""

    probe: str
    home: str
    """The target of its own region; where there is none, the nearest."""
    is_at_home: bool
    """Whether `home` is in its own region."""
    abroad: str
    share: float
    gain_s: float
    low_s: float
    high_s: float
    p: float
    """Corrected, over all comparisons at this quantile."""

    @property
    def is_sure(self) -> bool:
        return self.p < ALPHA


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All figures of a study."""

    samples: Samples
    rounds: Rounds
    cells: dict[Key, PairFigures]
    homes: dict[str, str]
    """The target of each probe's own region, or else the one with the shortest connect time: its nearest."""
    comparisons: tuple[Comparison, ...]
    diurnal: dict[str, Diurnal]
    """How each target goes with the hour; p is corrected."""

    def is_at_home(self, probe: str, target: str) -> bool:
        """Whether the target is of the probe's own region, and not merely its nearest."""
        cell = self.cells.get((probe, target))
        return self.homes.get(probe) == target and cell is not None and cell.pair.is_home


def least_number(share: float) -> int:
    """Requests of a pair that it takes to show this quantile."""
    return 2 if share == MEDIAN else math.ceil(MIN_TAIL / (1 - share) - 1e-9)


def analyse(samples: Samples, *, seed: int = 0) -> Analysis:
    """Compute everything. The same samples and seed give the same figures."""
    rounds = draw_rounds(samples.round_at_s, comparisons=len(samples.pairs), seed=seed)
    hours = {target: samples.local_hours(target).astype(int) for target in samples.targets}
    cells = {key: _cell(pair, rounds, hours[pair.target]) for key, pair in samples.pairs.items()}
    homes = {probe: _home(probe, cells) for probe in samples.probes}
    comparisons = [comparison for share in (MEDIAN, TAIL) for comparison in _compare(cells, homes, rounds, share)]
    return Analysis(
        samples=samples, rounds=rounds, cells=cells, homes={probe: home for probe, home in homes.items() if home is not None},
        comparisons=tuple(comparisons), diurnal=_diurnal(samples, seed),
    )  # fmt: skip


def _cell(pair: Pair, rounds: Rounds, hours: np.ndarray[tuple[int], np.dtype[np.int64]]) -> PairFigures:
    drawn = resampled_quantiles(pair.ttft_s, pair.round_of, rounds, SHARES)
    hour_of = hours[pair.round_of]
    fewer = replace(rounds, counts=rounds.counts[:HOURLY_DRAWS])
    service = _figures(pair, pair.service_s, rounds, (MEDIAN,))
    return PairFigures(
        pair=pair,
        ttft={
            share: figure(pair.ttft_s, share, drawn[:, place], rounds)
            for place, share in enumerate(SHARES)
            if pair.ok >= least_number(share)
        },
        connect=_figures(pair, pair.connect_s, rounds, (MEDIAN, TAIL)),
        itl=_figures(pair, pair.itl_s, rounds, (MEDIAN, TAIL)),
        service=service.get(MEDIAN),
        answer=_figures(pair, pair.answer_s, rounds, (MEDIAN,)).get(MEDIAN, Estimate(math.nan, math.nan, math.nan, 0)),
        hours={hour: _figures(pair, np.where(hour_of == hour, pair.ttft_s, np.nan), fewer, (MEDIAN, 0.9)) for hour in HOURS},
        drawn=drawn,
    )


def _figures(pair: Pair, values: Floats, rounds: Rounds, shares: tuple[float, ...]) -> dict[float, Estimate]:
    """Of the requests that have this value; a quantile that too few lie beyond is left out."""
    known = np.isfinite(values)
    own, shown = values[known], [share for share in shares if int(known.sum()) >= least_number(share)]
    if not shown:
        return {}
    drawn = resampled_quantiles(own, pair.round_of[known], rounds, shown)
    return {share: figure(own, share, drawn[:, place], rounds) for place, share in enumerate(shown)}


def _home(probe: str, cells: dict[Key, PairFigures]) -> str | None:
    own = [cell for (source, _), cell in cells.items() if source == probe and cell.pair.ok]
    at_home = [cell for cell in own if cell.pair.is_home]
    near = sorted(at_home or own, key=lambda cell: cell.connect[MEDIAN].value if MEDIAN in cell.connect else math.inf)
    return near[0].pair.target if near else None


def _compare(cells: dict[Key, PairFigures], homes: dict[str, str | None], rounds: Rounds, share: float) -> list[Comparison]:
    """Home against each target abroad that serves the same model."""
    place, found = SHARES.index(share), []
    for (probe, target), cell in cells.items():
        home = cells.get((probe, homes[probe] or ""))
        if (
            home is None
            or home is cell
            or share not in cell.ttft
            or share not in home.ttft
            or cell.pair.model_family != home.pair.model_family
        ):
            continue
        drawn = home.drawn[:, place] - cell.drawn[:, place]
        low, high = percentile_interval(drawn) if rounds.is_enough else (math.nan, math.nan)
        p = p_of_difference(drawn) if rounds.is_enough else math.nan
        gain_s = quantile(home.pair.ttft_s, share) - quantile(cell.pair.ttft_s, share)
        found.append((probe, home.pair, target, gain_s, low, high, p))
    corrected = holm([p for *_, p in found])
    return [
        Comparison(
            probe=probe, home=home.target, is_at_home=home.is_home, abroad=target, share=share, gain_s=gain_s, low_s=low, high_s=high, p=p
        )
        for (probe, home, target, gain_s, low, high, _), p in zip(found, corrected, strict=True)
    ]


def _diurnal(samples: Samples, seed: int) -> dict[str, Diurnal]:
    """Of each target, over all probes alike: the mean of their log medians, each without its own mean."""
    found = {}
    for target in samples.targets:
        series = [_log_medians(pair, len(samples.round_at_s)) for (_, name), pair in samples.pairs.items() if name == target and pair.ok]
        if series:
            together = np.array([own - np.nanmean(own) for own in series])
            known = np.isfinite(together)
            logs = np.where(known.any(axis=0), np.where(known, together, 0.0).sum(axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)
            found[target] = diurnality(logs, samples.round_at_s, samples.local_hours(target), seed=seed)
    corrected = holm([diurnal.p for diurnal in found.values()])
    return {target: Diurnal(p, diurnal.ratio, diurnal.peak_hour) for (target, diurnal), p in zip(found.items(), corrected, strict=True)}


def _log_medians(pair: Pair, number: int) -> Floats:
    """The logarithm of the median TTFT in each round."""
    out = np.full(number, np.nan)
    order = np.argsort(pair.round_of, kind="stable")
    places, starts = np.unique(pair.round_of[order], return_index=True)
    for place, values in zip(places, np.split(pair.ttft_s[order], starts[1:]), strict=True):
        out[place] = math.log(max(1e-9, float(np.median(values))))
    return out
