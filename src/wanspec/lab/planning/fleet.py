"""A day of requests at many sites: queues, devices that are shared, and draft devices that quiet sites lend.

Requests, not tokens, are simulated here: a request waits for a place on one of its site's target devices, in the order of arrival, then
proceeds at the pace that the token-level simulator found for that many requests on one device (`service_times`). The pace changes whenever
another request begins or ends there, so each device counts, for each way of serving, the tokens that a request would have had since the
beginning of the day; a request ends when that count has gone up by its length.

Offloading: at its beginning a request takes a place on a draft device of the nearest other site that has one free and is near enough to
help, and gives it back at its end; where none is free, it is drafted for at home. A site lends as many places as its own load leaves.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wanspec.errors import ConfigError
from wanspec.lab.planning.fleet_file import Fleet, FleetSite
from wanspec.lab.planning.service_times import USEFUL, Pace, ServiceTimes

DAY_S = 86_400.0
WARM_UP_S = 3_600.0
"""Before the day that counts: what is found in progress at midnight."""
MAX_REQUESTS = 5_000_000
"""In a day: some minutes of time, and a gigabyte."""
LENGTH_SHAPE = 2.0
"""Of the gamma distribution of request lengths: most are shorter than the mean, some are several times as long."""
NOBODY = -1


@dataclass(slots=True, kw_only=True)
class Served:
    """A request."""

    site: int
    arrived_s: float
    """Since midnight (UTC); negative during the warm-up."""
    tokens: float
    begun_s: float = math.nan
    ttft_s: float = math.nan
    """Waiting included."""
    ended_s: float = math.nan
    lender: int = NOBODY
    """The site that drafted for it; NOBODY: its own."""


@dataclass(slots=True)
class _Lane:
    """The requests of one way to serve on one device."""

    pace: Pace
    progress: float = 0.0
    """Tokens that each of them has had since the beginning."""
    ends: list[tuple[float, int]] = field(default_factory=list)
    """A heap: the progress at which each request ends, and its number."""


class _Device:
    """A target device, shared by the requests on it."""

    def __init__(self, slots: int) -> None:
        self.slots, self.count, self.version = slots, 0, 0
        self._lanes: dict[int, _Lane] = {}
        self._since_s = -WARM_UP_S

    def begin(self, number: int, tokens: float, way: int, pace: Pace, *, now_s: float) -> None:
        """A request begins; `way`: NOBODY, or the lender."""
        self._advance(now_s)
        lane = self._lanes.setdefault(way, _Lane(pace))
        heapq.heappush(lane.ends, (lane.progress + tokens, number))
        self.count += 1

    def end(self, *, now_s: float) -> int:
        """The request that is due ends; its number."""
        self._advance(now_s)
        lane = min((lane for lane in self._lanes.values() if lane.ends), key=self._left_s)
        self.count -= 1
        return heapq.heappop(lane.ends)[1]

    def next_end_s(self) -> float:
        """When the next request ends if nothing changes."""
        return self._since_s + min((self._left_s(lane) for lane in self._lanes.values() if lane.ends), default=math.inf)

    def _left_s(self, lane: _Lane) -> float:
        return max(0.0, lane.ends[0][0] - lane.progress) * lane.pace.itl_s[self.count - 1]

    def _advance(self, now_s: float) -> None:
        if self.count:
            for lane in self._lanes.values():
                lane.progress += (now_s - self._since_s) / lane.pace.itl_s[self.count - 1]
        self._since_s = now_s


class FleetDay:
    """One day, with or without offloading."""

    def __init__(self, fleet: Fleet, times: ServiceTimes, rtt_ms: Callable[[int, int], float], *, offloads: bool, seed: int) -> None:
        """`rtt_ms`: between two sites, by their numbers, as `times` has it."""
        self.fleet, self.times, self.offloads = fleet, times, offloads
        self.requests = arrivals(fleet, times, seed=seed)
        self.lent: list[int] = [0] * len(fleet.sites)
        """Places in use on each site's draft devices."""
        self._devices = [[_Device(fleet.slots) for _ in range(site.target_devices)] for site in fleet.sites]
        self._queues: list[deque[int]] = [deque() for _ in fleet.sites]
        self._lenders = [self._lenders_of(site, rtt_ms) if offloads else [] for site in range(len(fleet.sites))]
        self._events: list[tuple[float, int, int, int]] = []
        """A heap: when, site, device, the device's version: an end that others have moved is passed over."""

    def run(self) -> list[Served]:
        """Every request of the day, those of the warm-up left out; the last ones may end on the next."""
        for number, request in enumerate(self.requests):
            self._end_what_is_due(request.arrived_s)
            self._queues[request.site].append(number)
            self._begin_waiting(request.site, request.arrived_s)
        self._end_what_is_due(math.inf)
        return [request for request in self.requests if request.arrived_s >= 0.0]

    def _lenders_of(self, site: int, rtt_ms: Callable[[int, int], float]) -> list[tuple[int, Pace]]:
        """Who may draft for a site, the nearest first."""
        sites = self.fleet.sites
        if not sites[site].target_devices:
            return []
        others = [other for other, its in enumerate(sites) if other != site and its.draft_devices]
        paces = [(other, self.times.with_worker[rtt_ms(site, other)]) for other in sorted(others, key=lambda other: rtt_ms(site, other))]
        return [(other, pace) for other, pace in paces if pace.relative_to(self.times.alone) <= USEFUL]

    def _end_what_is_due(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            now_s, site, index, version = heapq.heappop(self._events)
            device = self._devices[site][index]
            if device.version != version:
                continue
            request = self.requests[device.end(now_s=now_s)]
            request.ended_s = now_s
            if request.lender != NOBODY:
                self.lent[request.lender] -= 1
            self._watch(site, index)
            self._begin_waiting(site, now_s)

    def _begin_waiting(self, site: int, now_s: float) -> None:
        queue, devices = self._queues[site], self._devices[site]
        while queue:
            index = min(range(len(devices)), key=lambda index: devices[index].count)
            device = devices[index]
            if device.count == device.slots:
                return
            number = queue.popleft()
            request = self.requests[number]
            request.lender, pace = self._lender(site, now_s)
            device.begin(number, request.tokens, request.lender, pace, now_s=now_s)
            request.begun_s = now_s
            request.ttft_s = now_s - request.arrived_s + pace.ttft_s[device.count - 1]
            self._watch(site, index)

    def _lender(self, site: int, now_s: float) -> tuple[int, Pace]:
        for lender, pace in self._lenders[site]:
            if self.lent[lender] < places(self.fleet.sites[lender], self.fleet.slots, now_s):
                self.lent[lender] += 1
                return lender, pace
        return NOBODY, self.times.alone

    def _watch(self, site: int, index: int) -> None:
        device = self._devices[site][index]
        device.version += 1
        end_s = device.next_end_s()
        if end_s < math.inf:
            heapq.heappush(self._events, (end_s, site, index, device.version))


def places(site: FleetSite, slots: int, at_s: float) -> int:
    """Sessions that a site's draft devices have left for others."""
    own = min(1.0, site.load(at_s) * site.peak_load)
    return math.floor(site.draft_devices * slots * (1.0 - own))


def peak_rate(site: FleetSite, fleet: Fleet, times: ServiceTimes) -> float:
    """Requests a second at a site's busiest hour."""
    tokens_per_s = site.target_devices * fleet.slots / times.alone.itl_s[-1]
    return site.peak_load * tokens_per_s / fleet.request_tokens


def arrivals(fleet: Fleet, times: ServiceTimes, *, seed: int) -> list[Served]:
    """The requests of the warm-up and the day, in order: Poisson at a rate that goes with the hour. Raises ConfigError for too many."""
    peaks = [peak_rate(site, fleet, times) for site in fleet.sites]
    expected = sum(peaks) * (DAY_S + WARM_UP_S)
    if expected > MAX_REQUESTS:
        raise ConfigError(
            f"up to {expected:.0f} requests in a day are more than {MAX_REQUESTS} (MAX_REQUESTS); scale all devices down alike"
        )
    requests: list[Served] = []
    for index, (site, peak) in enumerate(zip(fleet.sites, peaks, strict=True)):
        rng = np.random.default_rng((seed, index))
        kept = _thinned(site, peak, rng)
        lengths = np.maximum(2.0, rng.gamma(LENGTH_SHAPE, fleet.request_tokens / LENGTH_SHAPE, len(kept)))
        requests += [Served(site=index, arrived_s=at, tokens=tokens) for at, tokens in zip(kept.tolist(), lengths.tolist(), strict=True)]
    return sorted(requests, key=lambda request: request.arrived_s)


def _thinned(site: FleetSite, peak: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrivals at the peak's rate, of which as many stay as the hour has load."""
    times = rng.uniform(-WARM_UP_S, DAY_S, rng.poisson(peak * (DAY_S + WARM_UP_S)))
    load = np.array([site.load(at) for at in times.tolist()])
    kept: NDArray[np.float64] = times[rng.random(len(times)) < load]
    return kept
