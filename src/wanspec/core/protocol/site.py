"""What a machine with the target does, whoever runs its verify: ask each session what it wants, start passes, learn from rounds.

The device idles between the end of a pass and the start of the next. So the end of a pass is handled by committing, deciding and starting;
what the round teaches (calibration, claims, what a worker is worth) is learned with the next event, for which a deadline comes at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import islice

from msgspec.structs import replace

from wanspec.core.policy.alone import Alone
from wanspec.core.policy.arrivals import Arrivals
from wanspec.core.policy.coverage import Coverage, look_of
from wanspec.core.policy.drafting import estimates_of
from wanspec.core.policy.interface import Decision, DraftLocally, Situation, Verify, Wait
from wanspec.core.protocol.effects import Effect
from wanspec.core.protocol.events import DraftFinished, PassKind
from wanspec.core.protocol.passes import Passes
from wanspec.core.protocol.pool import PACE_MEMORY_TOKENS, PooledWorker
from wanspec.core.protocol.session import Round, Session
from wanspec.core.protocol.workforce import Workforce
from wanspec.core.speculation.calibration import MAX_TEMPERATURE, CalibrationBook
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import SessionId, WorkerId

WORKER_LATE_RTTS = 4.0
WORKER_LATE_MIN_S = 0.25
"""A commit unanswered for this long, and this many round trips, means that the worker is not to be waited for."""
MAX_PATIENT_RTT_S = 1.0
"""The longest round trip that is waited for, above any on this planet: a worker could make its own seem as long as it likes."""
MAX_VAIN_WAIT_S = 5.0
"""Waited without one draft accepted, after which a session waits for no worker until one is: many rounds over any honest link."""


class Site:
    """The sessions, workers and passes of one site."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        has_draft_device: bool,
        draft_context_length: int,
        draft_name: str,
        calibrations: CalibrationBook | None,
    ) -> None:
        """`draft_context_length`: of the local draft model, in tokens; 0: there is none. `draft_name`: its; empty: not known."""
        self._draft_context_length, self._draft_name = draft_context_length, draft_name
        self._sessions: dict[SessionId, Session] = {}
        self._workforce = Workforce(self._sessions, vocabulary_size=vocabulary_size)
        self._workers: dict[WorkerId, PooledWorker] = self._workforce.workers
        self._passes = Passes(has_draft_device=has_draft_device, has_draft_model=draft_context_length > 0)
        self._calibrations = calibrations or CalibrationBook()
        self._coverages: defaultdict[float, Coverage] = defaultdict(Coverage)
        """By temperature."""
        self._alone: dict[tuple[float, int, int], Alone] = {}
        """What this site could do without a worker, by temperature, width and number of sessions; since a pass was last timed."""
        self._pace = Ratio(PACE_MEMORY_TOKENS)
        """Seconds per token of sessions without a worker."""
        self._decided: list[Session] = []
        """Sessions whose policies have yet to learn from the decision on which a pass was started."""
        self._committed: list[Session] = []
        """Sessions that have yet to learn from their newest round."""
        self._learn_at: float | None = None
        """When there came to be something to learn; None: there is nothing."""

    @property
    def num_sharing(self) -> int:
        """Sessions that share the passes."""
        return len(self._sessions)

    def decide(self, sessions: Collection[Session], now: float) -> list[tuple[Session, Decision]]:
        """What each of these sessions, which are in no pass, wants to be done next."""
        return [(session, self._decide(session, now)) for session in sessions]

    def has_started(self, sessions: Iterable[Session], now: float) -> None:
        """What these sessions have decided is being done: what that and their last rounds teach is learned next."""
        self._decided = list(sessions)
        self._learn_at = now

    def learn(self, now: float) -> list[Effect]:
        """Learn from what was done at the newest event, while a device computes."""
        self._learn_at = None
        decided, self._decided = self._decided, []
        for session in decided:
            session.policy.learn()
        committed, self._committed = self._committed, []
        effects = self.credit([(session, session.learn()) for session in committed], now)
        return [*effects, *self._workforce.place_waiting(now)] if effects else []

    def credit(self, rounds: Sequence[tuple[Session, Round]], now: float) -> list[Effect]:
        """Credit these rounds of one pass to the workers that drafted for them, or to doing without."""
        effects: list[Effect] = [done.finished for _, done in rounds]
        by_worker: defaultdict[WorkerId, list[tuple[Session, Round]]] = defaultdict(list)
        for session, done in rounds:
            if done.took_s is not None and done.link is None:
                self._pace.add(done.took_s, len(done.path))
            if done.link is not None and session.link is done.link:  # else it has moved, and been told everything
                by_worker[done.link.worker_id].append((session, done))
        for worker_id, own in by_worker.items():
            effects += self._workforce.judge(worker_id, own, now)
        return effects

    def end_pass(self, kind: PassKind, duration_s: float | None = None, *, now: float) -> list[tuple[Session, tuple[Node, ...]]]:
        """A pass is over: see `Passes.end`. How long passes take is known better, so what this site could do alone is estimated anew."""
        self._alone.clear()
        return self._passes.end(kind, duration_s, now=now)

    def drafted(self, event: DraftFinished, now: float) -> None:
        """The draft pass in flight is done."""
        finished = self.end_pass(PassKind.DRAFT, event.duration_s, now=now)
        scored = [
            (session, rows, choices)
            for (session, rows), choices in zip(finished, event.choices, strict=True)
            if session.session_id in self._sessions
        ]
        # One question for the whole pass: NumPy's calls cost more than what they compute.
        estimates = iter(estimates_of([(ranking, session.rankings.calibration) for session, _, choices in scored for ranking in choices]))
        for session, rows, choices in scored:
            own = list(islice(estimates, len(rows)))
            session.merge_local(rows, choices, own)
            if not self._worker_is_alike(session) and session.policy.local_drafting.is_calibrated:
                self._coverages[_key_of(session)].learn(look_of(rows, own, session.tree.head))

    def _decide(self, session: Session, now: float) -> Decision:
        session.end_wait(now=now)
        session.look_up()
        decision = session.policy.decide(self._situation(session, now), now=now)
        match decision:
            case Wait(until=until):
                session.wait(min(until, now + MAX_VAIN_WAIT_S), now=now)
            case DraftLocally(nodes=nodes):
                fitting = tuple([node for node in nodes if node.position < self._draft_context_length])
                if all(map(session.draft_view.has_scored, fitting)):  # the tree is full, or the context, or there is no draft model
                    return decision.otherwise if decision.gain_s < math.inf else Verify(tuple(session.tree.path_to(nodes[0])))
                return decision if len(fitting) == len(nodes) else replace(decision, nodes=fitting)
        return decision

    def _situation(self, session: Session, now: float) -> Situation:
        worker, arrivals = self._workers[session.link.worker_id] if session.link else None, self._arrivals(session, now)
        key = _key_of(session)
        return Situation(
            tree=session.tree,
            num_sessions=self.num_sharing,
            arrivals=arrivals,
            worker_is_alike=self._worker_is_alike(session),
            coverage=self._coverages[key],
            alone=partial(self._alone_at, key),
            pace=worker.pace if worker else self._pace,
            pace_alone=worker.pace_alone if worker else self._pace,
            worker_share=worker.share if worker else 0.0,
            target_times=self._passes.target_times,
            draft_times=self._passes.draft_times,
            has_draft_model=self._passes.has_draft_model,
            has_drafted=session.draft_view.has_scored,
            draft_tokens=session.draft_tokens,
            num_undrafted=session.num_undrafted,
            is_draft_due=arrivals is None and self._passes.is_draft_due(session, now, num_sessions=self.num_sharing),
        )

    def _worker_is_alike(self, session: Session) -> bool:
        """Whether the session's worker drafts with the model that is here, as far as names tell; so if it has none."""
        return session.link is None or self._workers[session.link.worker_id].model_name in {"", self._draft_name} or not self._draft_name

    def _alone_at(self, key: float, width: int) -> Alone:
        """What this site could do without a worker at this temperature; the same for all sessions until a target pass ends."""
        sessions = self.num_sharing
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


def _key_of(session: Session) -> float:
    """Of what is known at the session's temperature."""
    return min(round(session.sampling.temperature, 1), MAX_TEMPERATURE)
