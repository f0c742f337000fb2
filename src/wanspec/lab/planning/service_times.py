"""How fast a request goes on a device shared with others: taken from the token-level simulator at some numbers of users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from wanspec.errors import ConfigError
from wanspec.lab.planning.fleet_file import Fleet
from wanspec.lab.planning.runs import Run, RunFigures, Runs
from wanspec.lab.planning.search_space import Effort, cells_of, settings_alone
from wanspec.lab.planning.site_tables import RttMatrix
from wanspec.lab.simulation.scenario import Policy

REQUESTS, TOKENS = 3, 48
"""Of each user in a run: most of it with all users at work."""
CELL_RATIO = 1.3
"""Round trips this close are one: runs with many users take long, and a day of queues tells no finer."""
USEFUL = 0.98
"""Of the pace alone, that a worker must leave, on average over the numbers of users, for a request to be sent there."""


class Pace(Struct, frozen=True, kw_only=True):
    """Of one way to serve, for 1, 2, 3, ... requests in progress."""

    itl_s: tuple[float, ...]
    ttft_s: tuple[float, ...]

    def relative_to(self, other: Pace) -> float:
        """ITL as a share of the other's, on average."""
        return float(np.mean(np.array(self.itl_s) / np.array(other.itl_s)))


class ServiceTimes(Struct, frozen=True, kw_only=True):
    """Without a worker, and with one so far away."""

    alone: Pace
    with_worker: Mapping[float, Pace]
    """The pace by round trip, in ms."""


def cells_between(fleet: Fleet, rtts: RttMatrix) -> dict[tuple[int, int], float]:
    """The round trip to simulate between a site with target devices and another one with draft devices, by their numbers.

    Raises ConfigError where the matrix lacks a site or a round trip.
    """
    numbers = {site.name: number for number, site in enumerate(fleet.sites)}
    controllers = [site.name for site in fleet.sites if site.target_devices]
    workers = [site.name for site in fleet.sites if site.draft_devices]
    if not workers:
        raise ConfigError("no site of the fleet has draft_devices; give one at least one")
    pairs = rtts.pairs(controllers, workers)
    rounded = cells_of([rtts.rtt_ms[pair] for pair in pairs], Effort(cell_ratio=CELL_RATIO))
    return {(numbers[controller], numbers[worker]): rtt_ms for (controller, worker), rtt_ms in zip(pairs, rounded, strict=True)}


def user_counts(slots: int) -> list[int]:
    """Where the simulator is asked: powers of four, and the most there can be."""
    return [*[count for count in (1, 4, 16) if count < slots], slots]


def simulate_service(runs: Runs, rtts_ms: Iterable[float], *, slots: int, policy: Policy) -> ServiceTimes:
    """Run what is missing. Alone, each number of users has what is best for it; with a worker all have `policy`."""
    counts, rtts = user_counts(slots), sorted(set(rtts_ms))
    rivals = {count: [_run(rival, None, count) for rival in settings_alone(users=count)] for count in counts}
    split = {rtt_ms: [_run(policy, rtt_ms, count) for count in counts] for rtt_ms in rtts}
    runs.make([run for own in (*rivals.values(), *split.values()) for run in own], "service times")
    best = [min((runs[run] for run in rivals[count]), key=lambda figures: figures.itl_ms) for count in counts]
    return ServiceTimes(
        alone=_pace(best, counts, slots),
        with_worker={rtt_ms: _pace([runs[run] for run in own], counts, slots) for rtt_ms, own in split.items()},
    )


def _run(policy: Policy, rtt_ms: float | None, users: int) -> Run:
    return Run(policy=policy, rtt_ms=rtt_ms, requests=REQUESTS * (2 if users == 1 else 1), tokens=TOKENS, users=users)


def _pace(figures: Sequence[RunFigures], counts: Sequence[int], slots: int) -> Pace:
    """Straight lines between the numbers of users that were simulated."""
    every = range(1, slots + 1)

    def line(values: list[float]) -> tuple[float, ...]:
        return tuple(float(value) / 1e3 for value in np.interp(every, counts, values))

    return Pace(itl_s=line([each.itl_ms for each in figures]), ttft_s=line([each.ttft_ms for each in figures]))
