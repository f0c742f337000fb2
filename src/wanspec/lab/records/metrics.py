"""The figures of a run, computed from its trace.

A *run* is a set of sessions, as a rule all those under one policy: the same prompts under another policy are another run. The functions
are pure and do not depend on the order of the records, so that the traces of controller, worker and relay need only be put together.

Which bytes belong to a run: true wire bytes carry no session, so a relay's counts are taken from the run's first arrival until the first
later arrival of anybody else. Without a relay's counts, or when another run overlaps, the encoded sizes of the run's own messages are
taken, as the controller sees them; framing and encryption are then missing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from wanspec.core.speculation.types import Position, SessionId
from wanspec.errors import ConfigError
from wanspec.lab.records.run_names import ALONE, CHAIN
from wanspec.lab.records.statistics import ratio
from wanspec.telemetry.records import (
    LinkBytes,
    MessageReceived,
    MessageSent,
    Model,
    PassFinished,
    PassStarted,
    Record,
    RequestArrived,
    RequestFinished,
    RoundOverhead,
    Site,
    TokensEmitted,
    Verified,
)
from wanspec.telemetry.reliability import ReliabilityBins, calibration_error, reliability_bins

_R = TypeVar("_R", bound=Record)
Outputs = tuple[tuple[int, ...], ...]
"""The generated token ids of each session of a run, in the order of the session ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """The figures of one run. None: not defined, for want of tokens or rounds."""

    policy: str
    outputs: Outputs
    tokens: int
    """Generated tokens, over all sessions."""
    itl_ms: float | None
    """Inter-token latency: mean over the requests of (last emission - first emission) / (tokens - 1), of those with two tokens or more."""
    ttft_ms: float | None
    """Time to first token: mean over the requests of first emission - arrival."""
    controller_target_passes: int
    controller_draft_passes: int
    worker_draft_passes: int
    """Forward passes that were started; a batch over several sessions counts once."""
    controller_busy_s: float
    """Sum of the durations of the controller's passes, target and draft, that came back."""
    wire_bytes: int
    """Both directions; see the head of this file."""
    rounds: int
    acceptance_rate: float | None
    """Accepted / draft tokens verified."""
    mean_acceptance_length: float | None
    """1 + accepted / rounds."""
    overhead_ms_per_round_p95: float | None
    """CPU time of the controller's event loop thread for each round; nearest rank. See `ControllerEngine`."""
    reliability: ReliabilityBins
    """What verified drafts had been estimated at, and what came of them."""

    @property
    def calibration_error(self) -> float | None:
        """Mean difference of estimated and observed acceptance, over the bins, weighted by their drafts."""
        return calibration_error(self.reliability)

    @property
    def controller_busy_s_per_token(self) -> float | None:
        """Time of the controller's device for each generated token."""
        return ratio(self.controller_busy_s, self.tokens)

    @property
    def local_draft_passes_per_token(self) -> float | None:
        """Draft passes at the controller for each generated token."""
        return ratio(self.controller_draft_passes, self.tokens)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes on the wire for each generated token."""
        return ratio(self.wire_bytes, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One line of the table in which runs are compared; the field names are the keys of its JSON. None: not defined."""

    policy: str
    rtt_ms: float | None
    """Round trip that the link was set to."""
    itl_ms: float | None
    itl_ratio: float | None
    """Inter-token latency / that of the baseline; below 1 is faster."""
    itl_ratio_alone: float | None
    """Inter-token latency / that of `alone`; below 1 is faster."""
    controller_draft_passes: int
    local_draft_passes_per_token: float | None
    """Those, for each token."""
    offload_fraction: float | None
    """1 - controller draft passes / those of the baseline, where both wrote the same tokens."""
    worker_draft_passes: int
    bytes_per_token: float | None
    identical: bool | None
    """Whether every token equals plain target decoding."""
    tokens: int


def measure_runs(runs: Mapping[str, Sequence[Record]], records: Sequence[Record]) -> list[RunMetrics]:
    """The figures of each run. `runs`: by name, what the controller recorded meanwhile; `records`: of all runs and sites."""
    sessions = {name: frozenset(record.session for record in own if isinstance(record, RequestArrived)) for name, own in runs.items()}
    return [replace(measure_run(records, own), policy=name) for name, own in sessions.items()]


def measure_run(records: Sequence[Record], sessions: frozenset[SessionId]) -> RunMetrics:
    """Measure the run made of these sessions.

    Raises ConfigError when the trace has no arrival of one of them, arrivals under several policies, or tokens with a gap.
    """
    by_kind = _ByKind(records)
    arrivals = {record.session: record for record in by_kind.of(RequestArrived) if record.session in sessions}
    policy = _policy(sessions, arrivals)
    emissions = _emissions(by_kind, sessions)
    rounds = [record for record in by_kind.of(Verified) if record.session in sessions]
    accepted = sum(verified.accepted for verified in rounds)
    outputs = tuple(_output(session, emissions[session]) for session in sorted(sessions))
    return RunMetrics(
        policy=policy,
        outputs=outputs,
        tokens=sum(map(len, outputs)),
        itl_ms=_mean_ms(_itl_s(own) for own in emissions.values()),
        ttft_ms=_mean_ms(_ttft_s(arrivals[session], own) for session, own in emissions.items()),
        controller_target_passes=_count_passes(by_kind, sessions, site="controller", model="target"),
        controller_draft_passes=_count_passes(by_kind, sessions, site="controller", model="draft"),
        worker_draft_passes=_count_passes(by_kind, sessions, site="worker", model="draft"),
        controller_busy_s=_busy_s(by_kind, sessions),
        wire_bytes=_wire_bytes(by_kind, sessions),
        rounds=len(rounds),
        acceptance_rate=ratio(accepted, sum(verified.drafted for verified in rounds)),
        mean_acceptance_length=1 + accepted / len(rounds) if rounds else None,
        overhead_ms_per_round_p95=_overhead_ms_p95(by_kind, sessions),
        reliability=reliability_bins(rounds),
    )


def compare(
    runs: Sequence[RunMetrics],
    *,
    baseline: str = CHAIN,
    oracle: Outputs | None = None,
    rtt_ms: float | None = None,
) -> list[RunRow]:
    """Set runs of the same prompts side by side: one row each, in order.

    The baseline is the first run under that name; without one, nothing is set in relation to it, and likewise without `alone`. The oracle
    is the output of plain target decoding; without it, `identical` is None.
    """
    base, alone = (next((run for run in runs if run.policy == name), None) for name in (baseline, ALONE))
    return [
        RunRow(
            policy=run.policy,
            rtt_ms=rtt_ms,
            itl_ms=run.itl_ms,
            itl_ratio=ratio(run.itl_ms, base.itl_ms) if base else None,
            itl_ratio_alone=ratio(run.itl_ms, alone.itl_ms) if alone else None,
            controller_draft_passes=run.controller_draft_passes,
            local_draft_passes_per_token=run.local_draft_passes_per_token,
            offload_fraction=_offload_fraction(run, base) if base else None,
            worker_draft_passes=run.worker_draft_passes,
            bytes_per_token=run.bytes_per_token,
            identical=run.outputs == oracle if oracle is not None else None,
            tokens=run.tokens,
        )
        for run in runs
    ]


class _ByKind:
    """A trace, sorted once by what its records are."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: defaultdict[type, list[Record]] = defaultdict(list)
        for record in records:
            self._records[type(record)].append(record)

    def of(self, kind: type[_R]) -> list[_R]:
        """The records of one kind."""
        return cast("list[_R]", self._records[kind])


def _policy(sessions: frozenset[SessionId], arrivals: dict[SessionId, RequestArrived]) -> str:
    missing = sorted(set(sessions) - set(arrivals))
    if missing:
        raise ConfigError(f"the trace has no request_arrived for session {missing[0]}; put the controller's trace beside the worker's")
    policies = sorted({arrival.policy for arrival in arrivals.values()})
    if len(policies) != 1:
        raise ConfigError(f"a run is of one policy, these sessions have {policies}; measure them one by one")
    return policies[0]


def _emissions(records: _ByKind, sessions: frozenset[SessionId]) -> dict[SessionId, list[TokensEmitted]]:
    """Each session's emissions that carry a token, by position."""
    emissions: dict[SessionId, list[TokensEmitted]] = {session: [] for session in sessions}
    for record in records.of(TokensEmitted):
        if record.session in sessions and record.tokens:
            emissions[record.session].append(record)
    for own in emissions.values():
        own.sort(key=lambda emitted: emitted.position)
    return emissions


def _output(session: SessionId, emissions: Sequence[TokensEmitted]) -> tuple[int, ...]:
    """The session's generated tokens, in order."""
    tokens: list[int] = []
    for emitted in emissions:
        expected = Position(emissions[0].position + len(tokens))
        if emitted.position != expected:
            raise ConfigError(f"session {session}: tokens_emitted at position {emitted.position}, expected {expected}; the trace has a gap")
        tokens.extend(emitted.tokens)
    return tuple(tokens)


def _itl_s(emissions: Sequence[TokensEmitted]) -> float | None:
    tokens = sum(len(emitted.tokens) for emitted in emissions)
    return (emissions[-1].t - emissions[0].t) / (tokens - 1) if tokens > 1 else None


def _ttft_s(arrival: RequestArrived, emissions: Sequence[TokensEmitted]) -> float | None:
    return emissions[0].t - arrival.t if emissions else None


def _count_passes(records: _ByKind, sessions: frozenset[SessionId], *, site: Site, model: Model) -> int:
    return sum(
        record.site == site and record.model == model and not sessions.isdisjoint(record.sessions) for record in records.of(PassStarted)
    )


def _busy_s(records: _ByKind, sessions: frozenset[SessionId]) -> float:
    return math.fsum(
        record.duration_s for record in records.of(PassFinished) if record.site == "controller" and not sessions.isdisjoint(record.sessions)
    )


def _overhead_ms_p95(records: _ByKind, sessions: frozenset[SessionId]) -> float | None:
    costs_s = sorted(record.cpu_s for record in records.of(RoundOverhead) if not sessions.isdisjoint(record.sessions))
    return 1000 * costs_s[math.ceil(0.95 * len(costs_s)) - 1] if costs_s else None


def _wire_bytes(records: _ByKind, sessions: frozenset[SessionId]) -> int:
    window = _lone_window(records, sessions)
    counts = [record for record in records.of(LinkBytes) if window and window[0] <= record.t < window[1]]
    if counts:
        return sum(count.to_worker_bytes + count.to_controller_bytes for count in counts)
    return sum(
        record.size_bytes
        for record in (*records.of(MessageSent), *records.of(MessageReceived))
        if record.site == "controller" and record.session in sessions
    )


def _lone_window(records: _ByKind, sessions: frozenset[SessionId]) -> tuple[float, float] | None:
    """From the run's first arrival until the first later one of another session; None when another session ran meanwhile."""
    times: defaultdict[SessionId, list[float]] = defaultdict(list)
    for record in (*records.of(RequestArrived), *records.of(TokensEmitted), *records.of(RequestFinished)):
        times[record.session].append(record.t)
    begin = min(min(times[session]) for session in sessions)
    last = max(max(times[session]) for session in sessions)
    others = [(min(own), max(own)) for session, own in times.items() if session not in sessions]
    if any(other_begin <= last and begin <= other_last for other_begin, other_last in others):
        return None
    return begin, min((other_begin for other_begin, _ in others if other_begin > last), default=math.inf)


def _offload_fraction(run: RunMetrics, base: RunMetrics) -> float | None:
    used = ratio(run.controller_draft_passes, base.controller_draft_passes)
    return 1 - used if used is not None and run.outputs == base.outputs else None


def _mean_ms(values_s: Iterable[float | None]) -> float | None:
    defined = [value for value in values_s if value is not None]
    return 1000 * math.fsum(defined) / len(defined) if defined else None
