"""The controller machine: many sessions, one device or two, workers that come and go.

Theory of operation. A session is always in one of three places: in a pass in flight, waiting (its policy wants drafts that are under
way), or ready. Whenever the device is free, every session that is not in a pass is asked for its decision, and `passes` makes common passes
of them (`site`). The first passes of a session are its prefill and carry no drafts.

Workers only ever add to trees; what becomes of them and of what they say is the `workforce`'s. One that has left a commit unanswered for
long is not waited for.

The machine has no IO, no clock, no randomness. Everything enters through `handle`; state changes first, consequences after.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import assert_never

from wanspec.core.policy.interface import Decision, Verify
from wanspec.core.policy.registry import create_policy
from wanspec.core.protocol.effects import Effect, EmitTokens, FinishReason, FinishRequest, ReleaseSession
from wanspec.core.protocol.events import (
    ControllerEvent,
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    PassFailed,
    PassKind,
    PongReceived,
    RequestArrived,
    RequestCancelled,
    VerifyFinished,
    WorkerJoined,
    WorkerLost,
)
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.core.protocol.session import RequestSession, Session
from wanspec.core.protocol.site import Site
from wanspec.core.protocol.snapshot import Snapshot, take_snapshot
from wanspec.core.speculation.calibration import CalibrationBook
from wanspec.core.speculation.types import SessionId
from wanspec.errors import LocalProtocolError


class Controller(Site):
    """See the module's text."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        end_tokens: Collection[int],
        has_draft_device: bool = False,
        draft_context_length: int = MAX_SEQUENCE_TOKENS,
        draft_name: str = "",
        calibrations: CalibrationBook | None = None,
    ) -> None:
        """`has_draft_device`: the local draft model does not share the target's device. `calibrations`: what is known of it.

        `draft_context_length`: of the local draft model, in tokens; a text that is longer is drafted for by others, or not. 0: there is
        no such model. `draft_name`: what it is called; empty: workers are taken to have the same.
        """
        super().__init__(
            vocabulary_size=vocabulary_size,
            has_draft_device=has_draft_device,
            draft_context_length=draft_context_length,
            draft_name=draft_name,
            calibrations=calibrations,
        )
        self._end_tokens = end_tokens

    @property
    def num_sessions(self) -> int:
        """Requests in progress."""
        return len(self._sessions)

    @property
    def num_workers(self) -> int:
        """Workers connected."""
        return len(self._workers)

    def snapshot(self, session_id: SessionId | None, *, now: float) -> Snapshot:
        """What goes on, for an operator to see; of one session also its draft tree."""
        return take_snapshot(self._workers.values(), self._sessions, session_id, now=now)

    def handle(self, event: ControllerEvent, *, now: float) -> list[Effect]:
        """Take in what happened at `now` (seconds, any monotonic clock); what is to be done about it.

        Raises LocalProtocolError on what its driver should not have said.
        """
        learned = self.learn(now)
        applied = self._apply(event, now)
        # The device first, then those who are to be told.
        effects = [*self._start_passes(self._who_is_asked(event, now), now), *learned, *applied]
        self._workforce.told(effects, now)
        return effects

    def next_deadline(self) -> float | None:
        """When to send DeadlineReached, unless something else happens before."""
        if self._learn_at is not None:
            return self._learn_at
        deadlines = self._workforce.deadlines()
        if self._passes.has_room:  # with none, a pass's end is when all are asked again
            deadlines += [session.wait_until for session in self._sessions.values() if session.wait_until is not None]
        return min(deadlines, default=None)

    def _apply(self, event: ControllerEvent, now: float) -> list[Effect]:
        match event:
            case RequestArrived():
                return self._request_arrived(event, now)
            case RequestCancelled(session_id=session_id):
                return [*self._end(session_id, FinishReason.CANCELLED), *self._workforce.place_waiting(now)]
            case DraftsReceived() | PongReceived() | WorkerJoined() | WorkerLost():
                return self._workforce.handle(event, now)
            case VerifyFinished():
                return self._verify_finished(event, now)
            case DraftFinished():
                self.drafted(event, now)
                return []
            case PassFailed(kind=kind, reason=reason):
                rows = self.end_pass(kind, now=now)
                ended = [effect for session, _ in rows for effect in self._end(session.session_id, FinishReason.ERROR, reason)]
                return [*ended, *self._workforce.place_waiting(now)]
            case DeadlineReached():
                return self._workforce.deadline_reached(now)
            case _:
                assert_never(event)

    # Requests.

    def _request_arrived(self, event: RequestArrived, now: float) -> list[Effect]:
        if event.session_id <= self._workforce.newest_session_id:
            raise LocalProtocolError(f"session {event.session_id} is not above {self._workforce.newest_session_id}")
        if not event.prompt_tokens or event.max_tokens < 1:
            raise LocalProtocolError(
                f"a request needs a prompt and max_tokens of 1 or more, not {len(event.prompt_tokens)} and {event.max_tokens}"
            )
        calibration = self._calibrations.at(event.sampling.temperature)
        session = RequestSession(event, create_policy(event.policy), calibration)
        self._sessions[event.session_id] = session
        return self._workforce.begin(session, now)

    def _end(self, session_id: SessionId, reason: FinishReason, message: str = "") -> list[Effect]:
        """Finish a request, and leave its place at a worker free: it is given away when all that end have ended."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return []
        finish = FinishRequest(session_id=session_id, reason=reason, message=message)
        return [*self._workforce.close(session), finish, ReleaseSession(session_id=session_id)]

    # Passes.

    def _who_is_asked(self, event: ControllerEvent, now: float) -> Collection[Session]:
        """Who is asked what it wants: all where a device has become free, else those whose answer may have changed."""
        if not self._passes.has_room:
            return ()
        if not self._passes.is_idle:
            match event:
                case DraftsReceived(drafts=drafts):
                    return [session] if (session := self._sessions.get(drafts.session_id)) is not None else ()
                case DeadlineReached():
                    return [session for session in self._sessions.values() if session.wait_until is not None and now >= session.wait_until]
                case PongReceived():
                    return ()
        return self._sessions.values()

    def _start_passes(self, asked: Collection[Session], now: float) -> list[Effect]:
        """Ask those of these sessions that are in no pass what they want, and start what most need, where a device is free."""
        busy = self._passes.session_ids
        free = [session for session in asked if session.session_id not in busy]
        effects = self._passes.start(self.decide(free, now)) if free else []
        if effects:
            self.has_started([session for session in self._passes.sessions if session.session_id not in busy], now)
        return effects

    def _decide(self, session: Session, now: float) -> Decision:
        return Verify() if session.is_prefilling else super()._decide(session, now)

    def _verify_finished(self, event: VerifyFinished, now: float) -> list[Effect]:
        effects: list[Effect] = []
        finished = self.end_pass(PassKind.VERIFY, event.duration_s, now=now)
        verified_at, has_ended = now - event.duration_s, False
        for (session, rows), choices in zip(finished, event.choices, strict=True):
            if session.session_id not in self._sessions or not rows:  # cancelled, or a piece of its prompt
                continue
            assert isinstance(session, RequestSession), "every session here is a request's"
            end_tokens = () if session.ignores_end else self._end_tokens
            path, reason = session.verified(
                rows, choices, end_tokens, verified_at=verified_at, disturbed_at=self._passes.disturbed_at, now=now
            )
            tokens, log_probs = tuple([node.token for node in path]), choices.log_probs[: len(path)]
            effects.append(EmitTokens(session_id=session.session_id, position=path[0].position, tokens=tokens, log_probs=log_probs))
            if reason:
                ended = self._end(session.session_id, reason)
                effects += [*self.credit([(session, session.learn())], now), *ended]
                has_ended = True
                continue
            self._committed.append(session)
            self._learn_at = now
            if session.link is not None:
                effects.append(self._workforce.tell(session, path, now))
        return [*effects, *self._workforce.place_waiting(now)] if has_ended else effects
