"""The evaluation of the WANSpec paper (arXiv 2602.18931), run again.

Figure 7 adds the paper's means one after another: drafting far away, branching at the worker (b = 2), only where the draft is unsure
(theta = 0.5), and local drafts where the target was unsure (phi = 0.5); round trips of 0 to 60 ms. Figure 8 sweeps phi. The cloud table
is a chain (b = 1) verified two deep, at 15 and 70 ms. All is relative to standard speculative decoding at the controller, the median of
20 iterations of 100 tokens, positions drawn independently at the paper's match rates.

What the paper leaves open is a `Reading`. Every combination is tried at a few round trips and set against the published figures; the one
that comes closest is the one that is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from wanspec.lab.records.statistics import median
from wanspec.lab.simulation.own_code import NONE
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.run import simulate
from wanspec.lab.simulation.scenario import Compute, LinkSection, Load, Policy, Scenario, Tokens
from wanspec.lab.simulation.sweep import SimulatedRow, rivals_of, row_of

ITERATIONS = 20
TRIAL_ITERATIONS = 6
"""To choose a reading by."""
TOKENS = 100
NEVER = 1e9
"""phi above every entropy: the worker counts as out of date after a correction only."""
FIGURE_7_RTTS_MS = tuple(float(rtt) for rtt in range(0, 61, 5))
FIGURE_8_RTTS_MS = (10.0, 20.0, 30.0, 40.0, 60.0)
FIGURE_8_PHIS = tuple(round(float(phi), 4) for phi in np.linspace(0.0, 3.0, 100))
CLOUD_RTTS_MS = (15.0, 70.0)
CHECKED_RTTS_MS = (10.0, 20.0, 30.0, 40.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to fill the paper's gaps."""

    k: int = 2
    s: int = 2
    unit: str = "nats"
    """Of theta and phi: `nats` or `bits`."""
    staleness: str = "printed"
    first_three: str = "remote"
    """How the controller of the first three curves of figure 7 drafts: `remote`, not at all; `paper`, after corrections."""
    preset: str = "h100-70b"

    @property
    def text(self) -> str:
        """In one line."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())

    def threshold(self, value: float) -> float:
        """A published threshold in nats."""
        return value * math.log(2) if self.unit == "bits" else value


READINGS = tuple(
    Reading(k=k, s=s, unit=unit, staleness=staleness, first_three=first_three, preset=preset)
    for k, s, unit, staleness, first_three, preset in itertools.product(
        (2, 4), (2, 4), ("nats", "bits"), ("printed", "prose"), ("remote", "paper"), ("h100-70b", "l40s-8b")
    )
)

VARIANTS = ("no branching", "b = 2", "+ theta = 0.5", "+ phi = 0.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published figure, and ours. NaN where ours is not defined."""

    where: str
    what: str
    published: float
    ours: float


Curves = Mapping[tuple[str, float], Sequence[SimulatedRow]]
"""(variant, round trip in ms) -> one row per iteration."""


def variant_policy(reading: Reading, variant: str) -> Policy:
    """The policy of one of figure 7's curves."""
    first = Policy(name=reading.first_three, k=reading.k, staleness=reading.staleness, s=reading.s, phi=NEVER, theta=0.0, b=2)
    match variant:
        case "no branching":
            return msgspec.structs.replace(first, b=1, s=1)
        case "b = 2":
            return first
        case "+ theta = 0.5":
            return msgspec.structs.replace(first, theta=reading.threshold(0.5))
        case _:
            return msgspec.structs.replace(first, name="paper", theta=reading.threshold(0.5), phi=reading.threshold(0.5))


def scenario_of(policy: Policy, *, rtt_ms: float, preset: str, seed: int, match_rate: float = 0.8) -> Scenario:
    """One iteration."""
    return Scenario(
        load=Load(requests=1, tokens=TOKENS, prompt_tokens=16),
        link=LinkSection(rtt_ms=rtt_ms),
        compute=Compute(preset=preset, own_code_ms=NONE, worker_own_code_ms=NONE),
        tokens=Tokens(model="iid", match_rate=match_rate),
        policy=policy,
        seed=seed,
    )


def cloud_scenario(reading: Reading, *, rtt_ms: float, seed: int) -> Scenario:
    """One iteration of the cloud deployment: 75 % match, b = 1, k = 2."""
    threshold = reading.threshold(0.5)
    policy = Policy(name="paper", k=2, b=1, s=1, theta=threshold, phi=threshold, staleness=reading.staleness)
    return scenario_of(policy, rtt_ms=rtt_ms, preset="l40s-8b", seed=seed, match_rate=0.75)


def rows_with_rivals(scenarios: Sequence[Scenario], point: Mapping[str, Any]) -> list[SimulatedRow]:
    """Run scenarios, each beside its rivals."""
    return [row_of(point, scenario, simulate(scenario), [_rival(each) for each in rivals_of(scenario)]) for scenario in scenarios]


_rival = lru_cache(maxsize=1024)(simulate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything under one reading, at some round trips."""

    reading: Reading
    figure_7: Curves
    cloud: Mapping[float, Sequence[SimulatedRow]]

    @property
    def claims(self) -> list[Claim]:
        """The published figures beside ours."""
        return claims_of(self.figure_7, self.cloud)

    @property
    def error(self) -> float:
        """Mean absolute difference from what was published."""
        return float(np.mean([abs(claim.ours - claim.published) for claim in self.claims]))


def evaluate(job: tuple[Reading, tuple[float, ...], int]) -> Evaluation:
    """Run figure 7 and the cloud table under a reading, at these round trips, with so many iterations."""
    reading, rtts_ms, iterations = job
    figure_7 = {
        (variant, rtt_ms): rows_with_rivals(
            [scenario_of(variant_policy(reading, variant), rtt_ms=rtt_ms, preset=reading.preset, seed=seed) for seed in range(iterations)],
            {"variant": variant},
        )
        for variant in VARIANTS
        for rtt_ms in rtts_ms
    }
    cloud = {
        rtt_ms: rows_with_rivals([cloud_scenario(reading, rtt_ms=rtt_ms, seed=seed) for seed in range(iterations)], {})
        for rtt_ms in CLOUD_RTTS_MS
    }
    return Evaluation(reading=reading, figure_7=figure_7, cloud=cloud)


def claims_of(figure_7: Curves, cloud: Mapping[float, Sequence[SimulatedRow]]) -> list[Claim]:
    """What the paper says about its figures, and the same of ours."""

    def ratio(variant: int, rtt_ms: float) -> float:
        return _median(row.itl_ratio for row in figure_7[VARIANTS[variant], rtt_ms])

    def offload(variant: int, rtt_ms: float) -> float:
        return _median(row.offload_fraction for row in figure_7[VARIANTS[variant], rtt_ms])

    return [
        Claim(where="figure 7", what="no branching: latency ratio at 10 ms", published=1.0, ours=ratio(0, 10.0)),
        Claim(where="figure 7", what="b = 2: latency ratio at 20 ms", published=0.95, ours=ratio(1, 20.0)),
        Claim(where="figure 7", what="+ theta: latency ratio at 20 ms", published=0.90, ours=ratio(2, 20.0)),
        Claim(where="figure 7", what="+ phi: offload fraction at 20 ms", published=0.50, ours=offload(3, 20.0)),
        Claim(where="figure 7", what="+ phi: offload fraction at 30 ms", published=0.30, ours=offload(3, 30.0)),
        Claim(where="figure 7", what="+ phi: latency ratio at 60 ms, at most", published=1.05, ours=ratio(3, 60.0)),
        Claim(where="figure 8", what="phi swept: offload fraction at 40 ms", published=0.20, ours=offload(3, 40.0)),
        Claim(where="cloud", what="15 ms: offload fraction", published=0.50, ours=_median(row.offload_fraction for row in cloud[15.0])),
        Claim(
            where="cloud", what="15 ms: latency ratio, slightly below 1", published=0.97, ours=_median(row.itl_ratio for row in cloud[15.0])
        ),
        Claim(
            where="cloud", what="70 ms: latency ratio, slightly above 1", published=1.03, ours=_median(row.itl_ratio for row in cloud[70.0])
        ),
    ]


def _median(values: Iterator[float | None]) -> float:
    """Not a number of nothing."""
    found = median(values)
    return math.nan if found is None else found


def try_readings(*, jobs: int, backend: str) -> Iterator[Evaluation]:
    """Every reading at the round trips that the paper says something about."""
    return map_parallel(evaluate, [(reading, CHECKED_RTTS_MS, TRIAL_ITERATIONS) for reading in READINGS], jobs=jobs, backend=backend)


def run_figure_7(reading: Reading, *, jobs: int, backend: str) -> Iterator[Evaluation]:
    """Figure 7 and the cloud table under one reading; the parts are put together by `joined`."""
    return map_parallel(evaluate, [(reading, (rtt_ms,), ITERATIONS) for rtt_ms in FIGURE_7_RTTS_MS], jobs=jobs, backend=backend)


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """The parts of one evaluation, each at other round trips, as one."""
    return replace(parts[0], figure_7={point: rows for part in parts for point, rows in part.figure_7.items()})


def run_figure_8(reading: Reading, *, jobs: int, backend: str) -> Iterator[list[SimulatedRow]]:
    """phi swept, at each round trip."""
    points = [(reading, phi, rtt_ms, ITERATIONS) for phi in FIGURE_8_PHIS for rtt_ms in FIGURE_8_RTTS_MS]
    return map_parallel(_figure_8_point, points, jobs=jobs, backend=backend)


def _figure_8_point(job: tuple[Reading, float, float, int]) -> list[SimulatedRow]:
    reading, phi, rtt_ms, iterations = job
    policy = msgspec.structs.replace(variant_policy(reading, VARIANTS[-1]), phi=reading.threshold(phi))
    scenarios = [scenario_of(policy, rtt_ms=rtt_ms, preset=reading.preset, seed=seed) for seed in range(iterations)]
    return rows_with_rivals(scenarios, {"policy.phi": phi, "link.rtt_ms": rtt_ms})


def named(rows: Sequence[SimulatedRow], variant: str) -> list[SimulatedRow]:
    """Rows under the name of their curve."""
    return [replace(row, policy=variant, point={}) for row in rows]
