"""The workers that have joined a machine, and the sessions that are tied to them: what every machine does about workers, whoever verifies.

Workers only ever add to trees. What they say is checked by `SessionLink`; a worker that breaks the protocol is dropped, its sessions go
to another worker or go on without one, and the text is the same. A worker that has left a commit unanswered for too long is dropped; one
that gives no sign of life at all is dropped sooner (`heartbeat`). Which worker a session gets, and when one is rested, `pool` says.

The machine adds and removes sessions; the workforce only ties them to workers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from wanspec.core.protocol.effects import DraftsMerged, DropWorker, Effect, LossCause, RttMeasured, SendMessage
from wanspec.core.protocol.events import DraftsReceived, LinkEvent, PongReceived, WorkerJoined, WorkerLost
from wanspec.core.protocol.heartbeat import ASLEEP_S, Heartbeat
from wanspec.core.protocol.link import SessionLink
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, CloseSession, Commit, Drafts, Ping
from wanspec.core.protocol.pool import (
    BUSY_S,
    MAX_HEAD_START_S,
    MAX_ROUND_RATIO,
    PACE_MEMORY_TOKENS,
    REVIEW_S,
    PooledWorker,
    WorkerRecord,
    choose_worker,
)
from wanspec.core.protocol.session import Round, Session
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import SessionId, WorkerId
from wanspec.errors import RemoteProtocolError

WORKER_UNANSWERED_S = 10.0
"""A commit unanswered for this long loses the worker its place, and a pass of this length the session, where another worker is free: far
above any round trip, soon enough for a person."""
PROMPT_TOKEN_S = 0.002
"""What a worker may take for each token of a prompt, up to MAX_HEAD_START_S, before it has said that it computes."""
MAX_COMPUTING_S = 300.0
"""A pass of a worker for this long is believed: the longest prompt, at 400 tokens a second. What it has not proposed counts after that."""
NEWCOMER_TOKENS = 100.0
"""What the pace of the workers before counts for a new one: it is soon judged by its own."""
MAX_FORMER = 1024
"""Workers that have left whose records are kept: 1.5 kB each."""
MAX_DRAFT_NODES = 1 << 19
"""Nodes that workers have proposed, over all sessions, above which those that hold more than their equal part of it get no more: 250 MB, a
third more than 1,024 sessions need with trees of 300 nodes, which is wide. The others go on to their parts: twice as many at most."""
COUNT_PERIOD_S = 0.05
"""Between two counts of all nodes, while there may be too many: a count looks at every session."""


class Workforce:
    """See the module's text."""

    def __init__(self, sessions: Mapping[SessionId, Session], *, vocabulary_size: int) -> None:
        """`sessions` are those in progress; their machine adds and removes them."""
        self._sessions = sessions
        self._vocabulary_size = vocabulary_size
        self.workers: dict[WorkerId, PooledWorker] = {}
        self.newest_session_id = SessionId(0)
        """The highest id so far: what a worker says of a higher one breaks the protocol."""
        self._pace, self._pace_alone = Ratio(PACE_MEMORY_TOKENS), Ratio(PACE_MEMORY_TOKENS)
        """Of all workers: what a newcomer begins with, so that nobody is in doubt again by coming again."""
        self._former: dict[str, WorkerRecord] = {}
        """Of workers that have left, by identity, in the order in which they left."""
        self._num_nodes = 0
        """Nodes when they were last counted, and those that joined since: no fewer than there are."""
        self._counted_at = -math.inf
        self._greedy: set[WorkerId] = set()
        """Workers that held too many of them then."""

    # Sessions.

    def begin(self, session: Session, now: float) -> list[Effect]:
        """A session has begun, with an id above every earlier one."""
        self.newest_session_id = session.session_id
        return self.place(session, now)

    def close(self, session: Session) -> list[Effect]:
        """Close a session at its worker; `place_waiting` may give its place away."""
        if session.link is None:
            return []
        worker_id = session.link.worker_id
        self.workers[worker_id].sessions.discard(session.session_id)
        return [SendMessage(worker_id=worker_id, message=CloseSession(session_id=session.session_id))]

    def end(self, session: Session, now: float) -> list[Effect]:
        """Close a session that is over, and give its place away."""
        return [*self.close(session), *self.place_waiting(now)]

    def place(self, session: Session, now: float) -> list[Effect]:
        """Open a session that lacks a worker at the best one that it allows, if there is any."""
        if not session.lacks_worker:
            return []
        worker = choose_worker(self.workers.values(), session.placement, length=session.end, now=now)
        return [] if worker is None else [self._open(session, worker, now)]

    def _open(self, session: Session, worker: PooledWorker, now: float) -> SendMessage:
        worker.wake(now)
        worker.sessions.add(session.session_id)
        reuse_number = worker.reuse_numbers.of(session.reuse_key)
        opening = session.attach(worker.worker_id, worker.reliability, reuse_number=reuse_number, now=now)
        return SendMessage(worker_id=worker.worker_id, message=opening)

    def place_waiting(self, now: float) -> list[Effect]:
        """A place at a worker may have become free: look for one for every session that has none, the oldest first."""
        if not any(worker.has_room(now) for worker in self.workers.values()):
            return []
        return [effect for session in self._sessions.values() for effect in self.place(session, now)]

    def tell(self, session: Session, path: Sequence[Node], now: float) -> SendMessage:
        """Tell a session's worker, which it has, of newly committed tokens, `path` being their nodes; or that it can hold no more of it."""
        link = session.link
        assert link is not None, "a session without a worker has nobody to tell"
        if session.end >= self.workers[link.worker_id].context_length:
            session.link = None  # another worker perhaps can
            self.workers[link.worker_id].sessions.discard(session.session_id)
            return SendMessage(worker_id=link.worker_id, message=CloseSession(session_id=session.session_id))
        link.told(path, now=now)
        tokens = tuple([node.token for node in path])
        commit = Commit(session_id=session.session_id, position=path[0].position, tokens=tokens, newest_node_id=link.newest_node_id)
        return SendMessage(worker_id=link.worker_id, message=commit)

    def judge(self, worker_id: WorkerId, rounds: Sequence[tuple[Session, Round]], now: float) -> list[Effect]:
        """Take note of what a worker was good for in its sessions' rounds of one pass; rest it when it has been good for nothing.

        Places that become free are given away by `place_waiting`, when all workers have been judged.
        """
        worker = self.workers[worker_id]
        effects: list[Effect] = []
        took_s = alone_s = 0.0
        for session, done in rounds:
            link = session.link
            assert link is not None, "the session is this worker's"
            settled_at = self._settled_at(worker, link)
            is_open = session.session_id in worker.sessions  # and not just over
            if is_open and link.computes_since is not None and now >= link.computes_since + WORKER_UNANSWERED_S:
                effects += self._move(session, worker, now)
            worker.committed(len(done.path), proposed=done.finished.proposed if now >= settled_at else None, now=now)
            if done.took_s is not None:
                worker.pace.add(done.took_s, len(done.path))
                self._pace.add(done.took_s, len(done.path))
            if done.took_s is not None and done.alone_s is not None:
                worker.pace_alone.add(done.alone_s, len(done.path))
                self._pace_alone.add(done.alone_s, len(done.path))
                if now - done.took_s >= settled_at and not session.policy.tolerates_harm:  # else it began without the worker's drafts
                    took_s += min(done.took_s, MAX_ROUND_RATIO * done.alone_s)
                    alone_s += done.alone_s
        if alone_s:
            worker.paired.add(took_s, alone_s)
        return effects if worker.judge() else [*effects, *self._rest(worker, now)]

    def _settled_at(self, worker: PooledWorker, link: SessionLink) -> float:
        """From when on what a session commits says something about its worker."""
        settled_at = link.opened_at + worker.head_start_s
        if not link.has_answered:
            settled_at += min(link.num_opening_tokens * PROMPT_TOKEN_S, MAX_HEAD_START_S)
        if link.computes_since is not None:  # worth nothing so far, which is no reason to throw away what it has computed
            settled_at = max(settled_at, link.computes_since + MAX_COMPUTING_S)
        return settled_at

    def _move(self, session: Session, worker: PooledWorker, now: float) -> list[Effect]:
        """Give a session whose worker has not drafted for so long to another one, if one is free."""
        others = [other for other in self.workers.values() if other is not worker and now >= other.busy_until]
        other = choose_worker(others, session.placement, length=session.end, now=now)
        if other is None:
            return []
        worker.passed_over()
        return [*self.close(session), self._open(session, other, now)]

    def _rest(self, worker: PooledWorker, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for session_id in sorted(worker.rest(now)):
            self._sessions[session_id].link = None
            effects.append(SendMessage(worker_id=worker.worker_id, message=CloseSession(session_id=session_id)))
        return effects

    # Workers.

    def handle(self, event: LinkEvent, now: float) -> list[Effect]:
        """What a worker did, and what is to be done about it."""
        match event:
            case DraftsReceived(worker_id=worker_id, drafts=drafts):  # the most frequent one first
                return self._drafts_received(worker_id, drafts, now)
            case PongReceived(worker_id=worker_id, number=number):
                return self._pong_received(worker_id, number, now)
            case WorkerJoined():
                return self._joined(event, now)
            case WorkerLost(worker_id=worker_id):
                self._forget(worker_id)
                return self.place_waiting(now)
            case _:
                assert_never(event)

    def _joined(self, event: WorkerJoined, now: float) -> list[Effect]:
        worker = self.workers[event.worker_id] = PooledWorker(
            event.worker_id,
            event.name,
            event.max_sessions,
            event.labels,
            Heartbeat(now=now),
            identity=event.identity,
            model_name=event.model_name,
            context_length=min(event.context_length, MAX_SEQUENCE_TOKENS),
            pace=self._pace.faded(NEWCOMER_TOKENS),
            pace_alone=self._pace_alone.faded(NEWCOMER_TOKENS),
        )
        former = self._former.pop(event.identity, None)
        if former is not None and now < former.judged_at + REVIEW_S:
            worker.inherit(former)
        return [self._ping(event.worker_id, now), *self.place_waiting(now)]

    def _forget(self, worker_id: WorkerId) -> None:
        """It is gone, perhaps long since; its record stays for a while, should it come again."""
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        for session_id in worker.sessions:
            self._sessions[session_id].link = None
        if worker.identity and worker.judged_at:
            self._former.pop(worker.identity, None)
            record = self._former[worker.identity] = WorkerRecord()
            record.inherit(worker)
            if len(self._former) > MAX_FORMER:
                del self._former[next(iter(self._former))]

    def _pong_received(self, worker_id: WorkerId, number: int, now: float) -> list[Effect]:
        worker = self.workers.get(worker_id)
        if worker is None or worker.heartbeat.ponged(number, now=now):
            return []
        return [self._drop(worker_id, f"it answers ping {number}, which never was"), *self.place_waiting(now)]

    def _drafts_received(self, worker_id: WorkerId, drafts: Drafts, now: float) -> list[Effect]:
        """Join drafts to their session's tree."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return []
        worker.heartbeat.heard()
        session = self._sessions.get(drafts.session_id)
        if session is None or session.link is None or session.link.worker_id != worker_id:
            if drafts.session_id <= self.newest_session_id:
                return []  # late: the session has ended or moved
            return [self._drop(worker_id, f"it drafts for session {drafts.session_id}, which never was"), *self.place_waiting(now)]
        try:
            has_room = self._has_room(worker_id, now)
            result = session.link.merge(drafts, vocabulary_size=self._vocabulary_size, now=now, has_room=has_room)
        except RemoteProtocolError as error:
            return [self._drop(worker_id, error.reason), *self.place_waiting(now)]
        self._num_nodes += result.joined
        worker.step_s = drafts.step_s or worker.step_s
        if session.link.computes_since is not None:
            worker.busy_until = now + BUSY_S
        elif drafts.tokens:
            worker.busy_until = -math.inf
        merged = DraftsMerged(
            session_id=session.session_id,
            worker_id=worker_id,
            joined=result.joined,
            late=result.late,
            duplicates=result.duplicates,
            stale=result.stale,
            refused=result.refused,
        )
        effects: list[Effect] = [merged]
        if result.rtt_s is not None:
            worker.rtt.add(result.rtt_s)
            effects.append(RttMeasured(worker_id=worker_id, rtt_s=result.rtt_s))
        return effects

    def _has_room(self, worker_id: WorkerId, now: float) -> bool:
        """Whether a worker may have more nodes, over all sessions."""
        if self._num_nodes <= MAX_DRAFT_NODES:
            return True
        if now >= self._counted_at + COUNT_PERIOD_S:
            links = [session.link for session in self._sessions.values() if session.link is not None]
            held = Counter[WorkerId]()
            for link in links:
                held[link.worker_id] += link.num_nodes
            self._counted_at, self._num_nodes = now, held.total()
            self._greedy = {one for one, nodes in held.items() if nodes > MAX_DRAFT_NODES / len(held)}
        return self._num_nodes <= MAX_DRAFT_NODES or worker_id not in self._greedy

    # Time.

    def deadline_reached(self, now: float) -> list[Effect]:
        """One of `deadlines` has come: drop who lags or is silent, ask after who is quiet, wake who has rested."""
        return [*self._drop_lagging(now), *self._check_pulses(now), *self.place_waiting(now)]

    def deadlines(self) -> list[float]:
        """When something is to be done if nothing else happens."""
        links = [session.link for session in self._sessions.values() if session.link is not None]
        deadlines = [since + WORKER_UNANSWERED_S for link in links if (since := link.unacknowledged_since) is not None]
        for worker in self.workers.values():
            heartbeat = worker.heartbeat
            deadlines += [when for when in (heartbeat.ping_due, heartbeat.lost_at, worker.rests_until) if when is not None]
        return deadlines

    def told(self, effects: Iterable[Effect], now: float) -> None:
        """Take note of who is about to be sent something, for the heartbeats."""
        for effect in effects:
            if isinstance(effect, SendMessage) and (worker := self.workers.get(effect.worker_id or WorkerId(0))) is not None:
                worker.heartbeat.told(now=now)

    def _ping(self, worker_id: WorkerId, now: float) -> Effect:
        return SendMessage(worker_id=worker_id, message=Ping(number=self.workers[worker_id].heartbeat.ping(now=now)))

    def _check_pulses(self, now: float) -> list[Effect]:
        """Ask after every worker that is quiet; give up those that have been for too long; wake those that have rested."""
        effects: list[Effect] = []
        for worker_id, worker in list(self.workers.items()):
            worker.wake(now)
            if worker.heartbeat.is_lost(now=now):
                effects.append(self._drop(worker_id, "it gives no sign of life", cause=LossCause.SILENT, is_at_fault=False))
            elif now >= worker.heartbeat.ping_due:
                effects.append(self._ping(worker_id, now))
        return effects

    def _drop_lagging(self, now: float) -> list[DropWorker]:
        lagging: dict[WorkerId, bool] = {}
        """Whether it is to blame: not where we slept over the deadline ourselves, with its answer perhaps unread."""
        for session in self._sessions.values():
            since = session.link.unacknowledged_since if session.link is not None else None
            if session.link is not None and since is not None and now >= since + WORKER_UNANSWERED_S:
                lagging[session.link.worker_id] = now <= since + WORKER_UNANSWERED_S + ASLEEP_S
        reason = f"it left a commit unanswered for {WORKER_UNANSWERED_S:g} s"
        return [
            self._drop(worker_id, reason, cause=LossCause.UNANSWERED, is_at_fault=is_at_fault) for worker_id, is_at_fault in lagging.items()
        ]

    def _drop(self, worker_id: WorkerId, reason: str, *, cause: LossCause = LossCause.PROTOCOL, is_at_fault: bool = True) -> DropWorker:
        """Its sessions have no worker then: they are placed once all who are to go have gone."""
        self._forget(worker_id)
        return DropWorker(worker_id=worker_id, reason=reason, cause=cause, is_at_fault=is_at_fault)
