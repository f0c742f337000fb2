"""The workers that have dialled in: what each has been worth, and which one a session gets.

A session gets the worker with which its tokens are expected to cost least for want of drafts: the share of tokens that the worker has not
proposed in time, and what each of these costs, until its drafts are of use again. The share is measured (`committed`, `useful`) and cannot
be claimed; while little is known, the round trip and the step time say what to expect. Every session that a worker has makes it dearer,
so that equal workers share the work.

A newcomer is tried: while it has no session, it counts for as good as the best and comes first among equals, until its worth is known. So
does one that has had no session for long.

Sessions stay where they are while their worker lives and is of use. To move one costs a prefill at the new worker and a round trip without
drafts, for a gain that lasts until its end, which nobody knows; new requests, which find the better worker anyway, come soon enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial

from wanspec.core.policy.arrivals import REJOIN_STEPS
from wanspec.core.protocol.heartbeat import Heartbeat
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS
from wanspec.core.protocol.placement import Placement
from wanspec.core.protocol.reuse import ReuseNumbers
from wanspec.core.protocol.rtt import RttEstimate
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.types import SessionId, WorkerId

CONTEXT_ROOM = 32
"""Tokens that a worker's context must hold beyond a text for it to be opened there: fewer would not repay its prefill."""
LOADED_SESSIONS = 16
"""So many sessions, or all that it offers to hold, make a worker twice as dear; it may offer what it likes."""
USELESS_SHARE = 0.02
"""A worker that has proposed less than this share of what its sessions commit is rested: its drafts are late, wrong or lost."""
SLOWER_SHARE, CHANCE = 1.05, 2.5
"""So is one with which tokens take longer than so many times what they would without a worker, as the policy thinks (it is right to 3 %);
and CHANCE / sqrt(one session's tokens) more, since some rounds are luckier than others: about two standard deviations. Sessions that share
a pass share its luck, so their tokens of one round count as one session's."""
MAX_ROUND_SHARE = 2.0
"""A round that took longer than so many times that counts as that: it is hardly the worker's doing, but somebody's long prompt."""
HEAD_START_DELAYS, MAX_HEAD_START_S = 4.0, 2.0
"""A session's tokens count for its worker from so many of its delays after the opening, or so long: many users commit much in that time."""
MEMORY_TOKENS = 200.0
"""Older ones fade at this pace,"""
MEMORY_TIMED_TOKENS = 1000.0
"""and the time that they took at this one: it takes more of them to tell."""
TRIAL_TOKENS = 100.0
"""Committed, faded, before a worker is known well enough to be compared with others, to do harm, or to have proposed nothing at all,"""
JUDGED_TOKENS = 180.0
"""and before it is held to be of too little use: what has faded never comes to all of MEMORY_TOKENS."""
PRIOR_TOKENS = 20.0
HALF_SHARE_S = 0.1
"""The delay of a worker that is expected, before anything is known, to propose half of the tokens in time; a token that it has not
proposed costs about as much beside that delay."""
BUSY_S = 5.0
"""How long a worker's word that it is in a long pass counts: while it is, it says so about once a second."""
REVIEW_S = 300.0
"""After so long without a session what was measured may have changed."""
FIRST_REST_S, MAX_REST_S = 10.0, 300.0
"""How long a worker is rested; doubled each time until it proves useful."""
INITIAL_WORKER_STEP_S = 0.01
PACE_MEMORY_TOKENS = 1000.0
"""Of what tokens cost; older ones fade: a stretch of easy text is not the pace."""


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerRecord:
    """A worker's merits so far, which it keeps when it connects again."""

    reliability: Reliability = field(default_factory=Reliability)
    pace: Ratio = field(default_factory=partial(Ratio, PACE_MEMORY_TOKENS))
    """Seconds per token of its sessions."""
    pace_alone: Ratio = field(default_factory=partial(Ratio, PACE_MEMORY_TOKENS))
    """Seconds that these tokens would have cost without a worker."""
    tried: int = 0
    """Tokens that its sessions committed since it first joined or last rested."""
    committed: float = 0.0
    """Tokens of `tried` beyond a session's head start; older ones are faded."""
    useful: float = 0.0
    """Tokens of `committed` that it had proposed."""
    timed: float = 0.0
    """Tokens of rounds that were timed, faded more slowly than `committed`."""
    took_s: float = 0.0
    """Time that the `timed` tokens took."""
    alone_s: float = 0.0
    """Time that the `timed` tokens would have taken without a worker."""
    draws: float = 0.0
    """The `timed` tokens, those of sessions in one common pass counted as one session's: luck averages over these."""
    judged_at: float = 0.0
    """When any of these figures last changed; 0: never."""
    rests_until: float | None = None
    """None: it does not rest."""
    rest_s: float = FIRST_REST_S

    def inherit(self, former: WorkerRecord) -> None:
        """Go on with this record instead."""
        for each in fields(WorkerRecord):
            setattr(self, each.name, getattr(former, each.name))


@dataclass(slots=True, eq=False)
class PooledWorker(WorkerRecord):
    """One connection's worker, as the controller knows it."""

    worker_id: WorkerId
    name: str
    max_sessions: int
    labels: tuple[str, ...]
    heartbeat: Heartbeat
    identity: str = ""
    """The same each time that it connects, so that its record is kept; empty: it is new each time."""
    context_length: int = MAX_SEQUENCE_TOKENS
    """Tokens of the longest text that it can hold, and that can be told it."""
    rtt: RttEstimate = field(default_factory=RttEstimate)
    """Of acknowledgements."""
    step_s: float = INITIAL_WORKER_STEP_S
    busy_until: float = -math.inf
    """Until when it is taken to be in a long pass, as it has said: others are preferred."""
    sessions: set[SessionId] = field(default_factory=set)
    reuse_numbers: ReuseNumbers = field(default_factory=ReuseNumbers)

    @property
    def share(self) -> float:
        """Of what its sessions commit, how much it had proposed; half before anything is known."""
        return (self.useful + PRIOR_TOKENS / 2) / (self.committed + PRIOR_TOKENS)

    @property
    def delay_s(self) -> float:
        """Between a token that it had not foreseen and the arrival of its first drafts after it."""
        return self.heartbeat.rtt.smoothed_s + REJOIN_STEPS * self.step_s

    @property
    def head_start_s(self) -> float:
        """How long after a session's opening it cannot be expected to have proposed much."""
        return min(HEAD_START_DELAYS * self.delay_s, MAX_HEAD_START_S)

    @property
    def expected_share(self) -> float:
        """Of a further session's tokens, how much it will propose in time: as measured, and by its delay while there is little of that."""
        prior = HALF_SHARE_S / (HALF_SHARE_S + self.delay_s)
        return (self.useful + PRIOR_TOKENS * prior) / (self.committed + PRIOR_TOKENS)

    @property
    def expected_cost(self) -> float:
        """What a token is expected to cost for want of a draft, in seconds, while the worker has nothing else to do."""
        return (1.0 - self.expected_share) * (HALF_SHARE_S + self.delay_s)

    def is_on_trial(self, now: float) -> bool:
        """Whether it is to be tried: idle, and of unknown worth."""
        return not self.sessions and (self.tried < TRIAL_TOKENS or now >= self.judged_at + REVIEW_S)

    @property
    def is_judged(self) -> bool:
        """Whether its sessions have committed enough to tell whether it is of use."""
        return self.committed > JUDGED_TOKENS

    def judge(
        self, *, committed: int, proposed: int | None, took_s: float | None, alone_s: float | None, together: int = 1, now: float
    ) -> bool:
        """Take note of what it was good for in a round. False when it has done more harm than good, and should rest.

        `proposed`: None while the session is so new to it that this does not count. `took_s`: the round; `alone_s`: what its tokens would
        have cost without a worker; None where that is not known. `together`: the worker's sessions that were in the same common pass.
        """
        self.judged_at = now
        self.tried += committed
        if proposed is not None:
            fade = max(0.0, 1.0 - committed / MEMORY_TOKENS)
            self.committed = fade * self.committed + committed
            self.useful = fade * self.useful + proposed
        if took_s is not None and alone_s is not None:
            fade = max(0.0, 1.0 - committed / MEMORY_TIMED_TOKENS)
            self.timed = fade * self.timed + committed
            self.took_s = fade * self.took_s + min(took_s, MAX_ROUND_SHARE * alone_s)
            self.alone_s = fade * self.alone_s + alone_s
            self.draws = fade * self.draws + committed / together
        tolerated = SLOWER_SHARE + CHANCE / math.sqrt(max(1.0, self.draws))
        does_harm = self.timed > TRIAL_TOKENS and self.took_s > tolerated * self.alone_s
        is_useful = self.useful >= USELESS_SHARE * self.committed
        gave_nothing = self.committed > TRIAL_TOKENS and not self.useful
        if self.is_judged and is_useful and not does_harm:
            self.rest_s = FIRST_REST_S
        return not (does_harm or gave_nothing) and (is_useful or not self.is_judged)

    def passed_over(self) -> None:
        """A session has left it for another worker, since it had not drafted for so long: it comes after the others until it is of use."""
        self.committed += TRIAL_TOKENS

    def rest(self, now: float) -> set[SessionId]:
        """Send it to rest, and forget what led to that. Returns the sessions that it had."""
        self.rests_until, self.rest_s = now + self.rest_s, min(2 * self.rest_s, MAX_REST_S)
        self.tried = 0
        self.committed = self.useful = self.timed = self.took_s = self.alone_s = self.draws = 0.0
        resting, self.sessions = self.sessions, set()
        return resting

    def is_resting(self, now: float) -> bool:
        """Whether it rests."""
        return self.rests_until is not None and now < self.rests_until

    def wake(self, now: float) -> None:
        """Forget a rest that is over."""
        if not self.is_resting(now):
            self.rests_until = None


def choose_worker(workers: Iterable[PooledWorker], placement: Placement, *, length: int = 0, now: float) -> PooledWorker | None:
    """The worker for one more session, whose text is so long; None where none is allowed, has room and is awake."""
    free = [
        worker
        for worker in workers
        if len(worker.sessions) < worker.max_sessions
        and length + CONTEXT_ROOM <= worker.context_length
        and not worker.is_resting(now)
        and placement.allows(worker.labels)
    ]
    least_cost = min((worker.expected_cost for worker in free), default=0.0)

    def cost(worker: PooledWorker) -> tuple[bool, float, bool, float, WorkerId]:
        is_on_trial = worker.is_on_trial(now)
        load = len(worker.sessions) / min(worker.max_sessions, LOADED_SESSIONS)
        expected = least_cost if is_on_trial else worker.expected_cost * (1.0 + load)
        return now < worker.busy_until, expected, not is_on_trial, worker.delay_s, worker.worker_id

    return min(free, key=cost, default=None)
