"""From a driver's events, effects and messages to trace records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from wanspec.core.protocol.effects import DraftsMerged, Effect, EmitTokens, FinishRequest, RoundFinished, RttMeasured
from wanspec.core.protocol.events import RequestArrived
from wanspec.core.protocol.messages import Message
from wanspec.core.speculation.types import ScoreItem, SessionId, WorkerId
from wanspec.telemetry import records
from wanspec.telemetry.facts import Machine
from wanspec.telemetry.recording import recorded
from wanspec.telemetry.trace import NoTrace, TraceSink

P = ParamSpec("P")
M = TypeVar("M", bound=Machine)


class Tracer:
    """Records the events of one site."""

    def __init__(self, sink: TraceSink, site: records.Site) -> None:
        self._sink = sink
        self._site: records.Site = site
        self.is_kept = not isinstance(sink, NoTrace)
        """Whether records are kept; if not, work for them alone may be skipped."""

    def recorded(self, made: Callable[P, M]) -> Callable[P, M]:
        """The same class of machines, with settings and events recorded where the sink keeps them."""
        return recorded(made, self._sink, self._site)

    def request_arrived(self, event: RequestArrived, *, now: float) -> None:
        self._sink.record(
            records.RequestArrived(
                t=now, site=self._site, session=event.session_id, prompt_tokens=len(event.prompt_tokens), policy=event.policy.name
            )
        )

    def effect(self, effect: Effect, *, now: float) -> None:
        """Record an effect that has a record of its own; passes and messages have their own methods."""
        if not self.is_kept:  # with many users there are hundreds of these a round
            return
        match effect:
            case DraftsMerged(joined=joined, stale=stale, refused=refused):
                self._sink.record(
                    records.DraftsReceived(
                        t=now,
                        site=self._site,
                        session=effect.session_id,
                        worker=effect.worker_id,
                        nodes=joined + stale + refused,
                        joined=joined,
                        stale=stale,
                        refused=refused,
                    )
                )
            case EmitTokens(session_id=session_id, position=position, tokens=tokens):
                self._sink.record(records.TokensEmitted(t=now, site=self._site, session=session_id, position=position, tokens=tokens))
            case FinishRequest(session_id=session_id, reason=reason):
                self._sink.record(records.RequestFinished(t=now, site=self._site, session=session_id, reason=reason.value))
            case RoundFinished():
                self._sink.record(
                    records.Verified(
                        t=now,
                        site=self._site,
                        session=effect.session_id,
                        drafted=effect.drafted,
                        accepted=effect.accepted,
                        committed=effect.committed,
                        entropy_nats=effect.entropy_nats,
                        accepted_estimates=effect.accepted_estimates,
                        rejected_estimates=effect.rejected_estimates,
                    )
                )
            case RttMeasured(worker_id=worker_id, rtt_s=rtt_s):
                self._sink.record(records.RttSample(t=now, site=self._site, worker=worker_id, rtt_s=rtt_s))

    def pass_started(self, model: records.Model, items: Sequence[ScoreItem], *, now: float) -> None:
        self._sink.record(records.PassStarted(t=now, site=self._site, model=model, sessions=_sessions(items), tokens=_tokens(items)))

    def pass_finished(self, model: records.Model, items: Sequence[ScoreItem], duration_s: float, *, now: float) -> None:
        self._sink.record(
            records.PassFinished(
                t=now, site=self._site, model=model, sessions=_sessions(items), tokens=_tokens(items), duration_s=duration_s
            )
        )

    def round_overhead(self, sessions: tuple[SessionId, ...], cpu_s: float, *, now: float) -> None:
        self._sink.record(records.RoundOverhead(t=now, site=self._site, sessions=sessions, cpu_s=cpu_s))

    def message_sent(self, worker_id: WorkerId, message: Message, size_bytes: int, *, now: float) -> None:
        self._message(records.MessageSent, worker_id, message, size_bytes, now)

    def message_received(self, worker_id: WorkerId, message: Message, size_bytes: int, *, now: float) -> None:
        self._message(records.MessageReceived, worker_id, message, size_bytes, now)

    def worker_joined(self, worker_id: WorkerId, name: str, *, now: float) -> None:
        self._sink.record(records.WorkerJoined(t=now, site=self._site, worker=worker_id, name=name))

    def worker_lost(self, worker_id: WorkerId, name: str, reason: str, *, now: float) -> None:
        self._sink.record(records.WorkerLost(t=now, site=self._site, worker=worker_id, name=name, reason=reason))

    def _message(
        self, kind: type[records.MessageSent | records.MessageReceived], worker_id: WorkerId, message: Message, size_bytes: int, now: float
    ) -> None:
        if not self.is_kept:
            return
        name, session_id = type(message).__name__, getattr(message, "session_id", None)
        self._sink.record(kind(t=now, site=self._site, worker=worker_id, message=name, session=session_id, size_bytes=size_bytes))


def _sessions(items: Sequence[ScoreItem]) -> tuple[SessionId, ...]:
    return tuple([item.session_id for item in items])


def _tokens(items: Sequence[ScoreItem]) -> int:
    return sum([item.tokens for item in items])
