"""Simulated runs that are made once each, over many cores. A run depends on step times, texts, settings and round trip, not on sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from wanspec.core.protocol.messages import frame_bytes
from wanspec.errors import WanspecError
from wanspec.lab.planning.site_tables import PriceRow
from wanspec.lab.records.throughput import all_at_work
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.run import simulate_traced
from wanspec.lab.simulation.scenario import LinkSection, Policy, Scenario
from wanspec.telemetry.records import MessageSent, PassFinished

BYTES_PER_GB = 1e9
T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterator[T]]
"""Shows how far a row of runs is: the runs, how many, and what they are for."""


class RunFigures(Struct, frozen=True, kw_only=True):
    """What a run means for a placement: pace, throughput, and what both sites and the link pay for a token."""

    itl_ms: float
    ttft_ms: float
    token_s: float
    """Time for each token of all users together, while all of them have requests in progress."""
    controller_busy_s: float
    """Time of the controller's device for each token."""
    worker_busy_s: float
    """Time of the worker's device for each token."""
    controller_draft_passes: float
    """For each token."""
    down_bytes: float
    """From the controller to the worker for each token, padded as the wire pads frames."""
    up_bytes: float
    """From the worker to the controller for each token."""

    def money(self, controller: PriceRow, worker: PriceRow | None) -> float:
        """What a token costs at these prices, devices being paid for whether they are busy or wait; `worker` None: there is none."""
        hours = self.token_s / 3600.0
        if worker is None:
            return hours * controller.target_hour
        sent = self.down_bytes * controller.gb + self.up_bytes * worker.gb
        return hours * (controller.target_hour + worker.draft_hour) + sent / BYTES_PER_GB


class Run(Struct, frozen=True, kw_only=True):
    """What tells a run from others."""

    policy: Policy
    rtt_ms: float | None
    """None: without a worker."""
    requests: int
    """Requests that each user sends."""
    tokens: int
    users: int = 1


class Runs:
    """Those made so far."""

    def __init__(self, base: Scenario, *, jobs: int, track: Track[RunFigures]) -> None:
        """`base`: what all have in common. `jobs`: at a time; -1: as many as there are cores."""
        self._base, self._jobs, self._track = base, jobs, track
        self._figures: dict[Run, RunFigures] = {}

    def make(self, runs: Iterable[Run], what: str) -> None:
        """Make those that have not been made."""
        missing = [run for run in dict.fromkeys(runs) if run not in self._figures]
        if missing:
            done = map_parallel(play_out, [self._scenario(run) for run in missing], jobs=self._jobs)
            self._figures |= zip(missing, self._track(done, len(missing), what), strict=True)

    def __getitem__(self, run: Run) -> RunFigures:
        return self._figures[run]

    def __len__(self) -> int:
        return len(self._figures)

    def _scenario(self, run: Run) -> Scenario:
        base = self._base
        load = msgspec.structs.replace(base.load, requests=run.requests * run.users, tokens=run.tokens, users=run.users)
        link = LinkSection() if run.rtt_ms is None else msgspec.structs.replace(base.link, rtt_ms=run.rtt_ms)
        return msgspec.structs.replace(base, load=load, link=link, policy=run.policy, workers=int(run.rtt_ms is not None))


def play_out(scenario: Scenario) -> RunFigures:
    """Simulate a scenario of sequential requests with two tokens or more. Raises WanspecError where a text is not the target's."""
    run, records = simulate_traced(scenario)
    metrics = run.metrics
    if not run.is_exact:
        raise WanspecError(f"{scenario.policy.name}, seed {scenario.seed}: other tokens than plain target decoding; this is a bug")
    assert metrics.itl_ms is not None
    assert metrics.ttft_ms is not None
    at_work = all_at_work(records, users=scenario.load.users)
    tokens = at_work.tokens
    passes = [record for record in records if isinstance(record, PassFinished) and record.t <= at_work.until_s]
    sent = [record for record in records if isinstance(record, MessageSent)]
    return RunFigures(
        itl_ms=metrics.itl_ms,
        ttft_ms=metrics.ttft_ms,
        token_s=at_work.duration_s / tokens,
        controller_busy_s=sum(record.duration_s for record in passes if record.site == "controller") / tokens,
        worker_busy_s=sum(record.duration_s for record in passes if record.site == "worker") / tokens,
        controller_draft_passes=metrics.controller_draft_passes / metrics.tokens,
        down_bytes=_bytes(sent, "controller") / metrics.tokens,
        up_bytes=_bytes(sent, "worker") / metrics.tokens,
    )


def _bytes(sent: Sequence[MessageSent], site: str) -> int:
    return sum(frame_bytes(record.size_bytes) for record in sent if record.site == site)
