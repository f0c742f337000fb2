"""The controller machine: many sessions, one device or two, workers that come and go.

Theory of operation. A session is always in one of three places: in a pass in flight, waiting (its policy wants drafts that are under
way), or ready. Whenever the device is free, every session that is not in a pass is asked for its decision, and `passes` makes common passes
of them. The first pass of a session is its prefill and carries no drafts.

The device idles between the end of a pass and the start of the next. So the end of a pass is handled by committing, deciding and starting;
what the round teaches (calibration, claims, what a worker is worth) is learned with the next event, for which a deadline comes at once.

Workers only ever add to trees; what becomes of them and of what they say is the `workforce`'s. One that has left a commit unanswered for
long is not waited for.

The machine has no IO, no clock, no randomness. Everything enters through `handle`; state changes first, consequences after.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from functools import partial
from typing import assert_never

from msgspec.structs import replace

from wanspec.core.policy.alone import Alone
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import Coverage
from wanspec.core.policy.interface import Decision, DraftLocally, Situation, Verify, Wait
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
from wanspec.core.protocol.passes import Passes
from wanspec.core.protocol.pool import PACE_MEMORY_TOKENS
from wanspec.core.protocol.session import Session
from wanspec.core.protocol.snapshot import Snapshot, take_snapshot
from wanspec.core.protocol.workforce import Workforce
from wanspec.core.speculation.calibration import MAX_TEMPERATURE, CalibrationBook
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.types import SessionId
from wanspec.errors import LocalProtocolError

WORKER_LATE_RTTS = 4.0
WORKER_LATE_MIN_S = 0.25
"""A commit unanswered for this long, and this many round trips, means that the worker is not to be waited for."""
MAX_PATIENT_RTT_S = 1.0
"""The longest round trip that is waited for, above any on this planet: a worker could make its own seem as long as it likes."""
MAX_VAIN_WAIT_S = 5.0
"""Waited without one draft accepted, after which a session waits for no worker until one is: many rounds over any honest link."""


class Controller:
    """See the module's text."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        end_tokens: Collection[int],
        has_draft_device: bool = False,
        draft_context_length: int = MAX_SEQUENCE_TOKENS,
        calibrations: CalibrationBook | None = None,
    ) -> None:
        """`has_draft_device`: the local draft model does not share the target's device. `calibrations`: what is known of it.

        `draft_context_length`: of the local draft model, in tokens; a text that is longer is drafted for by others, or not.
        """
        self._end_tokens, self._draft_context_length = end_tokens, draft_context_length
        self._sessions: dict[SessionId, Session] = {}
        self._workforce = Workforce(self._sessions, vocabulary_size=vocabulary_size)
        self._workers = self._workforce.workers
        self._passes = Passes(has_draft_device=has_draft_device)
        self._calibrations = calibrations or CalibrationBook()
        self._coverages: defaultdict[float, Coverage] = defaultdict(Coverage)
        """By temperature."""
        self._alone: dict[tuple[float, int, int], Alone] = {}
        """What this site could do without a worker, by temperature, width and number of sessions; since the newest pass."""
        self._pace = Ratio(PACE_MEMORY_TOKENS)
        """Seconds per token of sessions without a worker."""
        self._started: list[Session] = []
        """Sessions whose policies have yet to learn from the decision on which a pass was started."""
        self._committed: list[Session] = []
        """Sessions that have yet to learn from their newest round, of one pass."""
        self._learn_at: float | None = None
        """When these came to be; None: there are none."""

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
        """Take in what happened at `now` (seconds, any monotonic clock); what is to be done about it."""
        learned = self._learn(now)
        applied = self._apply(event, now)
        effects = [*self._start_passes(self._asked(event, now), now), *learned, *applied]
        self._workforce.told(effects, now)
        self._learn_at = now if self._started or self._committed else None
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
                return self._draft_finished(event, now)
            case PassFailed(kind=kind, reason=reason):
                rows = self._passes.end(kind, now=now)
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
        policy = create_policy(event.policy)
        calibration = self._calibrations.at(event.sampling.temperature)
        session = Session(event, policy, calibration)
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

    def _asked(self, event: ControllerEvent, now: float) -> Collection[Session]:
        """Who is asked what it wants: all where a device has become free, else those whose answer may have changed."""
        if not self._passes.has_room:
            return ()
        if not self._passes.are_none:
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
        decisions = [(session, self._decide(session, now)) for session in asked if session.session_id not in busy]
        effects = self._passes.start(decisions)
        if effects:
            self._started = [session for session, _ in decisions if session.policy.local_drafting.is_calibrated]
        return effects

    def _decide(self, session: Session, now: float) -> Decision:
        session.end_wait(now=now)
        if session.target_view.is_empty:
            return Verify()
        session.look_up()
        decision = session.policy.decide(self._situation(session, now), now=now)
        match decision:
            case Wait(until=until):
                session.wait(until, now=now)
            case DraftLocally(nodes=nodes):
                fitting = tuple([node for node in nodes if node.position < self._draft_context_length])
                if all(map(session.draft_view.has_scored, fitting)):  # the tree is full, or the context: there is nothing more to be had
                    return Verify(tuple(session.tree.path_to(nodes[0])))
                return decision if len(fitting) == len(nodes) else replace(decision, nodes=fitting)
        return decision

    def _situation(self, session: Session, now: float) -> Situation:
        arrivals = self._arrivals(session, now)
        worker = self._workers[session.link.worker_id] if session.link else None
        key = min(round(session.sampling.temperature, 1), MAX_TEMPERATURE)
        return Situation(
            tree=session.tree,
            num_sessions=len(self._sessions),
            arrivals=arrivals,
            coverage=self._coverages[key],
            alone=partial(self._alone_at, key),
            pace=worker.pace if worker else self._pace,
            pace_alone=worker.pace_alone if worker else self._pace,
            worker_share=worker.share if worker else 0.0,
            target_times=self._passes.target_times,
            draft_times=self._passes.draft_times,
            has_drafted=session.draft_view.has_scored,
            draft_tokens=session.draft_tokens,
            num_undrafted=min(session.draft_view.num_unseen, session.end - session.num_prompt_tokens),
            is_draft_due=self._passes.is_draft_due(session, now),
        )

    def _alone_at(self, key: float, width: int) -> Alone:
        """What this site could do without a worker at this temperature; the same for all sessions until a pass ends."""
        sessions = len(self._sessions)
        alone = self._alone.get((key, width, sessions))
        if alone is None:
            times = self._passes
            alone = self._alone[key, width, sessions] = Alone(
                self._coverages[key], target_times=times.target_times, draft_times=times.draft_times, num_sessions=sessions, width=width
            )
        return alone

    def _arrivals(self, session: Session, now: float) -> Arrivals | None:
        """What may be expected of the session's worker; None where there is none, or not to be waited for."""
        link = session.link
        if link is None or session.waited_in_vain_s >= MAX_VAIN_WAIT_S:
            return None
        worker = self._workers[link.worker_id]
        rtt_s = min(worker.rtt.smoothed_s, MAX_PATIENT_RTT_S)
        late_s = max(WORKER_LATE_MIN_S, WORKER_LATE_RTTS * rtt_s)
        if any(since is not None and now - since > late_s for since in (link.unacknowledged_since, link.computes_since)):
            return None
        rejoin_position, rejoin_told_at = link.rejoins
        return Arrivals(
            rtt_s=rtt_s,
            deviation_s=worker.rtt.deviation_s,
            step_s=worker.step_s,
            told_at=link.told_at,
            rejoin_position=rejoin_position,
            rejoin_told_at=rejoin_told_at,
        )

    def _verify_finished(self, event: VerifyFinished, now: float) -> list[Effect]:
        effects: list[Effect] = []
        finished = self._passes.end(PassKind.VERIFY, event.duration_s, now=now)
        self._alone.clear()
        verified_at, ended = now - event.duration_s, False
        for (session, rows), choices in zip(finished, event.choices, strict=True):
            if session.session_id not in self._sessions:
                continue
            end_tokens = () if session.ignores_end else self._end_tokens
            path, reason = session.commit(rows, choices, end_tokens, verified_at=verified_at, now=now)
            tokens, log_probs = tuple([node.token for node in path]), choices.log_probs[: len(path)]
            effects.append(EmitTokens(session_id=session.session_id, position=path[0].position, tokens=tokens, log_probs=log_probs))
            if reason:
                effects += [session.learn().finished, *self._end(session.session_id, reason)]
                ended = True
                continue
            self._committed.append(session)
            if session.link is not None:
                effects.append(self._workforce.tell(session, path, now))
        return [*effects, *self._workforce.place_waiting(now)] if ended else effects

    def _draft_finished(self, event: DraftFinished, now: float) -> list[Effect]:
        finished = self._passes.end(PassKind.DRAFT, event.duration_s, now=now)
        for (session, rows), choices in zip(finished, event.choices, strict=True):
            if session.session_id in self._sessions:
                session.merge_local(rows, choices)
        return []

    # Afterwards.

    def _learn(self, now: float) -> list[Effect]:
        """Learn from what was done at the newest event, while a device computes."""
        started, self._started = self._started, []
        for session in started:
            session.policy.learn()
        committed, self._committed = self._committed, []
        rounds = [(session, session.learn()) for session in committed]
        together = Counter([done.link.worker_id for _, done in rounds if done.link is not None])
        effects: list[Effect] = [done.finished for _, done in rounds]
        for session, done in rounds:
            if done.took_s is not None and done.link is None:
                self._pace.add(done.took_s, len(done.path))
            if done.link is not None and session.link is done.link:  # else it has moved, and been told everything
                effects += self._workforce.judge(
                    session,
                    done.path,
                    took_s=done.took_s,
                    alone_s=done.alone_s,
                    tolerates_harm=session.policy.tolerates_harm,
                    together=together[done.link.worker_id],
                    now=now,
                )
        return [*effects, *self._workforce.place_waiting(now)] if rounds else effects
