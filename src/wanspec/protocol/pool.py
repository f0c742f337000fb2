"""The workers that have dialled in: what each has been worth, and which one a session gets.

A session gets the worker with which tokens are expected to cost it least for want of drafts: the share of tokens that the worker had not
proposed, times what such a token costs, a pass of the target and the time until the worker's drafts are of use again. Nearness, speed and
acceptance all show in the share, which is measured here and cannot be claimed; the round trip and the step time say what to expect while
the share is young, and decide between equals. Every session that a worker has makes it dearer, so that equal workers share the work.

A newcomer is tried: with no session at hand, it counts for as useful as the best, until it has been judged.

Sessions stay where they are while their worker lives and is of use. To move one costs a prefill at the new worker and a round trip without
drafts, for a gain that lasts until its end, which nobody knows; new requests, which find the better worker anyway, come soon enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from wanspec.policy.arrivals import REJOIN_STEPS
from wanspec.policy.pass_times import Pace
from wanspec.protocol.heartbeat import Heartbeat
from wanspec.protocol.placement import Placement
from wanspec.protocol.rtt import RttEstimate
from wanspec.speculation.reliability import Reliability
from wanspec.speculation.types import SessionId, WorkerId

LOADED_SESSIONS = 16
"""So many sessions, or all that it offers to hold, make a worker twice as dear; it may offer what it likes."""
USELESS_SHARE = 0.02
"""A worker that has proposed less than this share of what its sessions commit is rested: its drafts are late, wrong or lost."""
JUDGED_TOKENS = 200.0
"""Committed before that is judged; older ones fade at this pace too."""
JUDGED_SHARE = 0.9
"""Of JUDGED_TOKENS: what has faded never comes to all of them."""
PRIOR_TOKENS = 20.0
FIRST_REST_S, MAX_REST_S = 10.0, 300.0
"""How long a worker is rested; doubled each time until it proves useful."""
INITIAL_WORKER_STEP_S = 0.01


@dataclass(slots=True, eq=False)
class PooledWorker:
    """One connection's worker, as the controller knows it."""

    worker_id: WorkerId
    name: str
    max_sessions: int
    labels: tuple[str, ...]
    heartbeat: Heartbeat
    rtt: RttEstimate = field(default_factory=RttEstimate)
    """Of acknowledgements."""
    step_s: float = INITIAL_WORKER_STEP_S
    reliability: Reliability = field(default_factory=Reliability)
    pace: Pace = field(default_factory=Pace)
    committed: float = 0.0
    """Tokens that its sessions committed, older ones faded,"""
    useful: float = 0.0
    """and those of them that it had proposed."""
    rests_until: float | None = None
    """None: it does not rest."""
    rest_s: float = FIRST_REST_S
    sessions: set[SessionId] = field(default_factory=set)

    @property
    def share(self) -> float:
        """Of what its sessions commit, how much it had proposed; half before anything is known."""
        return (self.useful + PRIOR_TOKENS / 2) / (self.committed + PRIOR_TOKENS)

    @property
    def is_judged(self) -> bool:
        """Whether its sessions have committed enough to tell what it is worth."""
        return self.committed > JUDGED_SHARE * JUDGED_TOKENS

    def judge(self, *, committed: int, proposed: int) -> bool:
        """Take note of what it was good for in a round. False when it has been good for nothing, and should rest."""
        fade = max(0.0, 1.0 - committed / JUDGED_TOKENS)
        self.committed = fade * self.committed + committed
        self.useful = fade * self.useful + proposed
        is_useful = self.useful >= USELESS_SHARE * self.committed
        if is_useful and self.is_judged:
            self.rest_s = FIRST_REST_S
        return is_useful or not self.is_judged

    def rest(self, now: float) -> set[SessionId]:
        """Send it to rest, and forget what led to that. Returns the sessions that it had."""
        self.rests_until, self.rest_s = now + self.rest_s, min(2 * self.rest_s, MAX_REST_S)
        self.committed = self.useful = 0.0
        resting, self.sessions = self.sessions, set()
        return resting

    def is_resting(self, now: float) -> bool:
        """Whether it rests; a rest that is over is forgotten."""
        if self.rests_until is not None and now >= self.rests_until:
            self.rests_until = None
        return self.rests_until is not None


def choose_worker(workers: Iterable[PooledWorker], placement: Placement, *, target_step_s: float, now: float) -> PooledWorker | None:
    """The worker for one more session; None where none is allowed, has room and is awake."""
    free = [
        worker
        for worker in workers
        if len(worker.sessions) < worker.max_sessions and not worker.is_resting(now) and placement.allows(worker.labels)
    ]
    best_share = max((worker.share for worker in free), default=0.0)
    return min(free, key=lambda worker: (_cost_s(worker, best_share, target_step_s), worker.worker_id), default=None)


def _cost_s(worker: PooledWorker, best_share: float, target_step_s: float) -> float:
    """What a session's token is expected to cost for want of a draft, in seconds."""
    is_on_trial = not worker.is_judged and not worker.sessions
    share = best_share if is_on_trial else worker.share
    delay_s = worker.heartbeat.rtt.smoothed_s + REJOIN_STEPS * worker.step_s
    load = len(worker.sessions) / min(worker.max_sessions, LOADED_SESSIONS)
    return (1.0 - share) * (target_step_s + delay_s) * (1.0 + load)
