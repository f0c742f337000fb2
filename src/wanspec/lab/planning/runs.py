"""Simulated runs that are made once each, over many cores. A run depends on step times, texts, settings and round trip, not on sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import msgspec
from msgspec import Struct

from wanspec.lab.planning.outcome import Outcome, play_out
from wanspec.lab.simulation.parallel import map_parallel
from wanspec.lab.simulation.scenario import LinkSection, Policy, Scenario

T = TypeVar("T")
Track = Callable[[Iterable[T], int, str], Iterator[T]]
"""Shows how far a row of runs is: the runs, how many, and what they are for."""


class Run(Struct, frozen=True, kw_only=True):
    """What tells a run from others."""

    policy: Policy
    rtt_ms: float | None
    """None: without a worker."""
    requests: int
    """Of each user."""
    tokens: int
    users: int = 1


class Runs:
    """Those made so far."""

    def __init__(self, base: Scenario, *, jobs: int, track: Track[Outcome]) -> None:
        """`base`: what all have in common. `jobs`: at a time; -1: as many as there are cores."""
        self._base, self._jobs, self._track = base, jobs, track
        self._outcomes: dict[Run, Outcome] = {}

    def make(self, runs: Iterable[Run], what: str) -> None:
        """Make those that have not been made."""
        missing = [run for run in dict.fromkeys(runs) if run not in self._outcomes]
        if missing:
            done = map_parallel(play_out, [self._scenario(run) for run in missing], jobs=self._jobs)
            self._outcomes |= zip(missing, self._track(done, len(missing), what), strict=True)

    def __getitem__(self, run: Run) -> Outcome:
        return self._outcomes[run]

    def __len__(self) -> int:
        return len(self._outcomes)

    def _scenario(self, run: Run) -> Scenario:
        base = self._base
        load = msgspec.structs.replace(base.load, requests=run.requests * run.users, tokens=run.tokens, users=run.users)
        link = LinkSection() if run.rtt_ms is None else msgspec.structs.replace(base.link, rtt_ms=run.rtt_ms)
        return msgspec.structs.replace(base, load=load, link=link, policy=run.policy, workers=int(run.rtt_ms is not None))
