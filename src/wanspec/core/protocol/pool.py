"""The workers that have dialled in: what each has been worth, and which one a session gets.

A session gets the worker with which its tokens are expected to cost least for want of drafts: the share of tokens that the worker has not
proposed in time, and what each of these costs, until its drafts are of use again. The share is measured (`proposed`) and cannot be
claimed; while little is known, the round trip and the step time say what to expect. Every session that a worker has makes it dearer, so
that equal workers share the work.

A newcomer is tried: while it has no session, it counts for as good as the best and comes first among equals, until its worth is known. So
does one that has had no session for long.

Sessions stay where they are while their worker lives and is of use. To move one costs a prefill at the new worker and a round trip without
drafts, for a gain that lasts until its end, which nobody knows; new requests, which find the better worker anyway, come soon enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
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
"""This many sessions, or all that it offers to hold, make a worker twice as dear; it may offer what it likes."""
USELESS_SHARE = 0.02
"""A worker that has proposed less than this share of what its sessions commit is rested: its drafts are late, wrong or lost."""
TOLERATED_RATIO = 1.05
"""A worker is also rested if tokens take more than this many times as long as the policy estimates they would without it: the estimate is
right to 3 %."""
SURE_DEVIATIONS = 2.0
"""How many standard errors the time lost must be above that: some rounds are luckier than others."""
MAX_ROUND_RATIO = 2.0
"""Longer rounds are clipped to this multiple of the estimate; the cause is usually someone's long prompt."""
HEAD_START_DELAYS, MAX_HEAD_START_S = 4.0, 2.0
"""A session's tokens count for its worker after this many of its delays from the opening, or this long."""
MEMORY_TOKENS = 200.0
"""Of what a worker has proposed; older tokens fade."""
MEMORY_PASSES = 400.0
"""Of what rounds with a worker took; older ones fade."""
PACE_MEMORY_TOKENS = 1000.0
"""Of what tokens cost; older ones fade: a stretch of easy text is not the pace."""
TRIAL_PASSES = 30.0
"""Faded passes with a worker before it can be rested for harm: fewer may all have been lucky, or unlucky."""
TRIAL_TOKENS = 100.0
"""Faded tokens a worker's sessions must have committed before it can be rested for proposing nothing."""
PROVEN_TOKENS = 180.0
"""Tokens its sessions must have committed since it was last tried, after which a worker that was not rested has proven itself."""
PRIOR_TOKENS = 20.0
"""What is expected of a worker before it has proposed anything counts as much as this many tokens."""
HALF_SHARE_S = 0.1
"""The delay of a worker that is expected, before anything is known, to propose half of the tokens in time; a token that it has not
proposed costs about as much beside that delay."""
BUSY_S = 5.0
"""How long a worker's word that it is in a long pass counts: while it is, it says so about once a second."""
REVIEW_S = 300.0
"""After this long without a session what was measured may have changed."""
FIRST_REST_S, MAX_REST_S = 10.0, 300.0
"""How long a worker is rested; doubled each time until it proves useful."""
INITIAL_WORKER_STEP_S = 0.01


class Standing(StrEnum):
    """What the controller holds of a worker."""

    TRIAL = "trial"
    """It is not known what it is worth."""
    GOOD = "good"
    """It has proven useful."""
    RESTING = "resting"
    """It was of no use, or did harm: it gets no session for a while."""


class Finding(StrEnum):
    """What changes a worker's standing."""

    PROVEN = "proposes enough, and makes tokens no slower, for some hundred tokens"
    """It has passed its trial."""
    FAILED = "proposes next to nothing, or makes tokens slower"
    """It is of no use, or does harm."""
    RESTED = "its rest is over"
    """It may be tried again."""


STANDINGS = {
    (Standing.TRIAL, Finding.PROVEN): Standing.GOOD,
    (Standing.TRIAL, Finding.FAILED): Standing.RESTING,
    (Standing.GOOD, Finding.PROVEN): Standing.GOOD,
    (Standing.GOOD, Finding.FAILED): Standing.RESTING,
    (Standing.RESTING, Finding.RESTED): Standing.TRIAL,
}
"""From a standing, by a finding, to the next."""


class PairedTest:
    """Whether rounds with a worker take longer than they would without it, pass by pass: the sessions of a pass share its luck."""

    def __init__(self) -> None:
        self._passes = self._lost_s = self._squares = 0.0
        """Faded sums: how many passes, seconds lost in them beyond TOLERATED_RATIO, and the squares of these."""

    def add(self, took_s: float, alone_s: float) -> None:
        """All rounds of a pass took this long, and would have taken that long without the worker."""
        lost_s, fade = took_s - TOLERATED_RATIO * alone_s, 1.0 - 1.0 / MEMORY_PASSES
        self._passes = fade * self._passes + 1.0
        self._lost_s = fade * self._lost_s + lost_s
        self._squares = fade * self._squares + lost_s * lost_s

    @property
    def is_loss(self) -> bool:
        """Whether time is lost, and not by chance."""
        variance = self._passes * self._squares - self._lost_s * self._lost_s  # times the passes, squared
        if self._passes < TRIAL_PASSES:
            return False
        return self._lost_s > SURE_DEVIATIONS * math.sqrt(max(0.0, variance) / self._passes)


@dataclass(slots=True, eq=False, kw_only=True)
class WorkerRecord:
    """A worker's merits so far, which it keeps when it connects again."""

    standing: Standing = Standing.TRIAL
    """What the controller holds of it."""
    reliability: Reliability = field(default_factory=Reliability)
    """How far its claims can be trusted."""
    pace: Ratio = field(default_factory=partial(Ratio, PACE_MEMORY_TOKENS))
    """Seconds per token of its sessions."""
    pace_alone: Ratio = field(default_factory=partial(Ratio, PACE_MEMORY_TOKENS))
    """Seconds that these tokens would have cost without a worker."""
    proposed: Ratio = field(default_factory=partial(Ratio, MEMORY_TOKENS))
    """Tokens that it had proposed, of those that its sessions committed beyond their head start."""
    paired: PairedTest = field(default_factory=PairedTest)
    """Time that its sessions' rounds took, and would have taken without it."""
    tried_tokens: int = 0
    """Tokens that its sessions committed since it first joined or last rested."""
    judged_at: float = 0.0
    """When any of these figures last changed; 0: never."""
    rests_until: float | None = None
    """When its rest ends; None: it does not rest."""
    rest_s: float = FIRST_REST_S
    """How long its next rest is."""

    def inherit(self, former: WorkerRecord) -> None:
        """Go on with this record instead."""
        for each in fields(WorkerRecord):
            setattr(self, each.name, getattr(former, each.name))


@dataclass(slots=True, eq=False)
class PooledWorker(WorkerRecord):
    """One connection's worker, as the controller knows it."""

    worker_id: WorkerId
    """The id of this connection."""
    name: str
    """How an operator knows it."""
    max_sessions: int
    """Sessions that it is willing to draft for at a time."""
    labels: tuple[str, ...]
    """What it says it is, as KEY=VALUE."""
    heartbeat: Heartbeat
    """Whether it lives."""
    identity: str = ""
    """The same each time that it connects, so that its record is kept; empty: it is new each time."""
    model_name: str = ""
    """What it calls its draft model; empty: not known."""
    context_length: int = MAX_SEQUENCE_TOKENS
    """Tokens of the longest text that it can hold, and that can be told it."""
    rtt: RttEstimate = field(default_factory=RttEstimate)
    """Of acknowledgements."""
    step_s: float = INITIAL_WORKER_STEP_S
    """Time of its draft step, as it says."""
    busy_until: float = -math.inf
    """Until when we assume that it computes a long pass, as it has said; other workers are preferred."""
    sessions: set[SessionId] = field(default_factory=set)
    """The sessions that it drafts for."""
    reuse_numbers: ReuseNumbers = field(default_factory=ReuseNumbers)
    """What it is told instead of reuse keys."""

    @property
    def share(self) -> float:
        """Share of its sessions' committed tokens that it had proposed; half before anything is known."""
        return self.proposed.mean(0.5, PRIOR_TOKENS)

    @property
    def delay_s(self) -> float:
        """Between a token that it had not foreseen and the arrival of its first drafts after it."""
        return self.heartbeat.rtt.smoothed_s + REJOIN_STEPS * self.step_s

    @property
    def head_start_s(self) -> float:
        """How long after a session's opening it cannot be expected to have proposed much."""
        return min(HEAD_START_DELAYS * self.delay_s, MAX_HEAD_START_S)

    @property
    def expected_cost(self) -> float:
        """What a token of one more session is expected to cost for want of a draft, in seconds, while the worker is idle."""
        expected_share = self.proposed.mean(HALF_SHARE_S / (HALF_SHARE_S + self.delay_s), PRIOR_TOKENS)
        return (1.0 - expected_share) * (HALF_SHARE_S + self.delay_s)

    def is_to_be_tried(self, now: float) -> bool:
        """Whether it is idle, and nobody knows what it is worth now."""
        return not self.sessions and (self.tried_tokens < TRIAL_TOKENS or now >= self.judged_at + REVIEW_S)

    def committed(self, tokens: int, *, proposed: int | None, now: float) -> None:
        """A session of its has committed tokens. `proposed`: how many of them it had; None while that does not count."""
        self.judged_at = now
        self.tried_tokens += tokens
        if proposed is not None:
            self.proposed.add(proposed, tokens)

    def judge(self) -> bool:
        """False when it has been of no use, or has done more harm than good, and should rest."""
        known_tokens = self.proposed.bottom
        is_useless = known_tokens > TRIAL_TOKENS and self.proposed.top + 1.0 < USELESS_SHARE * known_tokens
        if is_useless or self.paired.is_loss:
            return False
        if self.tried_tokens > PROVEN_TOKENS:
            self._find(Finding.PROVEN)
            self.rest_s = FIRST_REST_S
        return True

    def passed_over(self) -> None:
        """A session has left it for another worker, since it had not drafted for so long: it comes after the others until it is of use."""
        self.proposed.add(0.0, TRIAL_TOKENS)

    def rest(self, now: float) -> set[SessionId]:
        """Send it to rest, and forget what led to that. Returns the sessions that it had."""
        self._find(Finding.FAILED)
        self.rests_until, self.rest_s = now + self.rest_s, min(2 * self.rest_s, MAX_REST_S)
        self.tried_tokens = 0
        self.proposed, self.paired = Ratio(MEMORY_TOKENS), PairedTest()
        resting, self.sessions = self.sessions, set()
        return resting

    def has_room(self, now: float) -> bool:
        """Whether it may have one more session."""
        return len(self.sessions) < self.max_sessions and not self.is_resting(now)

    def is_resting(self, now: float) -> bool:
        """Whether it rests."""
        return self.rests_until is not None and now < self.rests_until

    def wake(self, now: float) -> None:
        """End a rest that is over."""
        if self.rests_until is not None and not self.is_resting(now):
            self.rests_until = None
            self._find(Finding.RESTED)

    def _find(self, finding: Finding) -> None:
        self.standing = STANDINGS[self.standing, finding]


def choose_worker(workers: Iterable[PooledWorker], placement: Placement, *, length: int = 0, now: float) -> PooledWorker | None:
    """The worker for one more session, whose text is so long; None where none is allowed, has room and is awake."""
    free = [
        worker
        for worker in workers
        if worker.has_room(now) and length + CONTEXT_ROOM <= worker.context_length and placement.allows(worker.labels)
    ]
    least_cost = min((worker.expected_cost for worker in free), default=0.0)

    def cost(worker: PooledWorker) -> tuple[bool, float, bool, float, WorkerId]:
        is_tried = worker.is_to_be_tried(now)
        load = len(worker.sessions) / min(worker.max_sessions, LOADED_SESSIONS)
        expected = least_cost if is_tried else worker.expected_cost * (1.0 + load)
        return now < worker.busy_until, expected, not is_tried, worker.delay_s, worker.worker_id

    return min(free, key=cost, default=None)
