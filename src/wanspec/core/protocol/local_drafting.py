"""Local drafts for an engine that verifies by itself: when a pass of the draft model beside it is worth what all requests wait for it.

Theory of operation. Between two steps of the engine the draft model may lengthen the chains that workers have left short, by one token of
each in one batched pass, level after level. Every request waits for a pass. So it is done for those that gain by it, best first, and for as
many as are worth most together:

- A request whose chain is reached with probability P gains P times the usual share of first guesses that come true, in tokens. A token is
  worth what one costs a request at present: the time of a step over the tokens that it commits, as measured of late, local passes included;
  but not more than a step without any drafts takes, which gives one, too.
- A pass costs its time, as measured for so many tokens, and what the engine's own step takes longer to verify what it adds, as measured for
  so many drafts: both as often as there are requests. It costs the price besides, for each of its requests that a worker drafts for. The
  price is what keeps drafts out of a busy site.
- Nothing is worth anything before it is likely enough to be proposed.

A text that is new to the draft model has to be computed there first. That is an investment: it is made once the text has gone on for so
long that, going on as long again, it would bring that in; and a piece at a time, for the step waits. Passes that were too dear are tried
again, so seldom that it hardly costs anything: it may have been a hiccup of the machine that was measured, or fewer requests be there.

Where a pass fails, all caches are given back and local drafts rest. What is drafted here is a draft like any other: the engine verifies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from wanspec.core.policy.adaptive import BELIEVED_SHARE
from wanspec.core.policy.coverage import INITIAL_SHARES
from wanspec.core.policy.drafting import MIN_LOG_PROB, estimates_of
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.protocol.effects import ReleaseSession, StartDraft
from wanspec.core.protocol.events import DraftFinished
from wanspec.core.protocol.followed_text import FollowedText
from wanspec.core.protocol.local_text import LocalText
from wanspec.core.protocol.passes import INITIAL_DRAFT_STEP_S
from wanspec.core.protocol.pool import PACE_MEMORY_TOKENS
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.model_view import PlannedItem
from wanspec.core.speculation.ratio import Ratio
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import SessionId
from wanspec.errors import LocalProtocolError

SHARE_SMOOTHING = 0.03
"""Of the share of first guesses that come true: hundreds of them make it."""
NEAR_TOKENS = 64
"""A text that lacks no more is as good as computed: it takes no longer than a few drafts do."""
CATCH_UP_TOKENS = 512
"""Of texts that lack more, computed in one step of the engine, for all of them together: it bounds what a step waits."""
TRIAL_SHARE = 0.01
"""Of the time, spent on trying what seemed too dear: what things took is forgotten when so much more has gone by without any pass."""
MAX_CACHES = 512
"""Texts that the draft model holds at a time; others are not drafted for here. More than most engines run, and some that have ended."""
REST_S = 10.0
"""After a pass that failed: what was wrong, such as memory that was short, may pass."""


class _Leaf(NamedTuple):
    """Where a text's chain could go on."""

    gain_s: float
    """What that is worth to the request, its price subtracted."""
    text: FollowedText
    node: Node


class LocalDrafting:
    """See the module's text."""

    def __init__(self, *, context_length: int, redundancy_price_s: float, session_ids: Iterator[SessionId]) -> None:
        """`context_length`: of the draft model. `session_ids`: for its sessions, never used before nor elsewhere."""
        self._context_length, self._price_s = context_length, redundancy_price_s
        self._session_ids = session_ids
        self._caches: dict[SessionId, LocalText] = {}
        """By the id of the text."""
        self._in_flight: list[tuple[FollowedText, PlannedItem]] = []
        self._tokens_in_flight = 0
        self._forget_times()
        self._pace = Ratio(PACE_MEMORY_TOKENS)
        self._calibration = Calibration()  # of all temperatures: the engine does not tell them
        self._share = INITIAL_SHARES[0]
        """How probable the first guess is after a node, on average."""
        self._texts: Sequence[FollowedText] = ()
        """Of this step, those that more drafts may be worth something to,"""
        self._num_rows = 0
        """all requests that wait for a pass,"""
        self._catch_up_tokens = 0
        """and committed tokens that may still be computed in it."""
        self._num_to_verify = 0
        """Tokens of the engine's coming step: one for each request, and drafts."""
        self._stepped_at = self._passed_at = -math.inf
        self._local_s = 0.0
        """What passes took in this step."""
        self._drafted_step_s = 0.0
        """The newest step with passes in it, these and the engine's part together."""
        self._rests_until = -math.inf
        self.num_passes = self.num_tokens = 0
        """In this step: passes, one over several texts counting for each of them, and draft tokens that they gave."""

    def step_began(self, texts: Sequence[FollowedText], *, num_rows: int, went_on: int, committed: int, now: float) -> None:
        """The engine has finished a step of `num_rows` requests; these texts may be drafted for.

        `went_on`: rows that had been drafted for in the step before; `committed`: tokens of these.
        """
        if went_on:  # or the engine may have been idle
            self._measure(now - self._stepped_at, went_on, committed, is_decoding=went_on == num_rows)
        self._stepped_at, self._local_s = now, 0.0
        self._texts, self._num_rows, self._catch_up_tokens = texts, num_rows, CATCH_UP_TOKENS
        self.num_passes = self.num_tokens = 0

    def start(self, *, max_tokens: int, min_log_prob: float, now: float) -> StartDraft | None:
        """The pass that is worth its time to those that wait for it; None: none is."""
        if self._in_flight:
            raise LocalProtocolError("a local draft pass is in flight")
        if not self._pace.bottom or now < self._rests_until:
            return None
        if now - self._passed_at > self._drafted_step_s / TRIAL_SHARE:
            self._forget_times()
        if not self.num_passes:
            self._num_to_verify = self._num_rows + sum([len(text.chain(max_tokens, min_log_prob)) for text in self._texts])
        token_s = self._pace.top / self._pace.bottom
        token_s = min(token_s, self._verify_times.expected_s(self._num_rows) or token_s)
        found = [self._leaf(text, token_s, max_tokens, min_log_prob) for text in self._texts]
        leaves = sorted([leaf for leaf in found if leaf is not None], key=lambda leaf: leaf.gain_s, reverse=True)
        self._texts = [leaf.text for leaf in leaves]
        self._in_flight = [self._plan(leaf) for leaf in leaves[: self._count(leaves)] if self._has_room(leaf.text)]
        if not self._in_flight:
            return None
        self._passed_at = now
        self._num_to_verify += len(self._in_flight)
        items = tuple(plan.item for _, plan in self._in_flight)
        self._tokens_in_flight = sum(item.tokens for item in items)
        return StartDraft(items=items)

    def finished(self, event: DraftFinished) -> None:
        """The pass in flight is done: the chains go on."""
        planned = self._end_pass()
        self._times.add(self._tokens_in_flight, event.duration_s)
        self._local_s += event.duration_s
        scored = [
            (text, node, choices)
            for (text, plan), ranked in zip(planned, event.choices, strict=True)
            if text.session_id in self._caches
            for node, choices in zip(plan.rows, ranked, strict=bool(plan.rows))
            if node in text.tree and choices.tokens
        ]
        estimates = estimates_of([(choices, self._calibration) for _, _, choices in scored])
        for (text, node, choices), log_probs in zip(scored, estimates, strict=True):
            self._share += SHARE_SMOOTHING * (math.exp(log_probs[0]) - self._share)
            self._caches[text.session_id].drafted(node, choices)
            self._grow(text, node, choices.tokens, log_probs)

    def failed(self, *, now: float) -> list[ReleaseSession]:
        """The pass in flight could not be run; what the caches hold is not known."""
        self._end_pass()
        self._rests_until = now + REST_S
        released = [ReleaseSession(session_id=cache.session_id) for cache in self._caches.values()]
        self._caches.clear()
        return released

    def committed(self, text: FollowedText, old_head: Node, path: Sequence[Node]) -> None:
        """The engine has committed the tokens of `path`, below `old_head`."""
        cache = self._caches.get(text.session_id)
        if cache is not None:
            cache.committed(text.tree, old_head, path, self._calibration)

    def forget(self, text: FollowedText) -> list[ReleaseSession]:
        """Give a text's cache back."""
        cache = self._caches.pop(text.session_id, None)
        return [ReleaseSession(session_id=cache.session_id)] if cache is not None else []

    def answered(self, num_to_verify: int) -> None:
        """The engine has been told what may follow: tokens of its coming step, one for each request among them."""
        self._num_to_verify = num_to_verify

    def _measure(self, step_s: float, went_on: int, committed: int, *, is_decoding: bool) -> None:
        """Take note of what a step took. `is_decoding`: no prompt was computed in it."""
        self._pace.add(step_s * went_on, committed)
        if is_decoding:
            self._verify_times.add(self._num_to_verify, step_s - self._local_s)
        if self.num_passes:
            self._drafted_step_s = step_s

    def _forget_times(self) -> None:
        self._times = PassTimes(INITIAL_DRAFT_STEP_S, tries_less=True)
        self._verify_times = PassTimes(0.0, tries_less=True)
        """Of the engine's own part of a step."""

    def _leaf(self, text: FollowedText, token_s: float, max_tokens: int, min_log_prob: float) -> _Leaf | None:
        """Where the text's chain could go on; None: nowhere that would be worth anything."""
        chain, tree, cache = text.chain(max_tokens, min_log_prob), text.tree, self._caches.get(text.session_id)
        node = chain[-1] if chain else tree.head
        has_room = len(chain) < max_tokens and node.position < min(tree.max_position, self._context_length)
        if not has_room or not text.is_speakable or _is_expanded(node) or (cache is not None and cache.has_drafted(node)):
            return None
        prob = math.exp(node.path_log_prob - tree.head.path_log_prob) * self._share
        gain_s = prob * token_s - (self._price_s if text.link is not None else 0.0)
        if gain_s <= 0.0 or prob < math.exp(min_log_prob) or not self._has_room(text):
            return None
        num_lacking = cache.num_lacking if cache is not None else text.end
        if num_lacking > NEAR_TOKENS and gain_s * text.num_followed < self._num_rows * self._times.expected_s(num_lacking):
            return None
        return _Leaf(gain_s, text, node)

    def _count(self, leaves: Sequence[_Leaf]) -> int:
        """How many of these, best first, to lengthen in one pass."""
        sums = accumulate([leaf.gain_s for leaf in leaves])
        worths = [gain_s - self._num_rows * self._cost_s(count) for count, gain_s in enumerate(sums, start=1)]
        best = max(range(len(worths)), key=worths.__getitem__, default=-1)
        return best + 1 if best >= 0 and worths[best] > 0.0 else 0

    def _cost_s(self, count: int) -> float:
        """What every request waits for so many more drafts: their pass, and their verification."""
        now_s = self._verify_times.expected_s(self._num_to_verify)
        return self._times.expected_s(count) + max(0.0, self._verify_times.expected_s(self._num_to_verify + count) - now_s)

    def _has_room(self, text: FollowedText) -> bool:
        """Whether the text may still be computed in this step, and be held."""
        cache = self._caches.get(text.session_id)
        if cache is None and len(self._caches) >= MAX_CACHES:
            return False
        return self._catch_up_tokens > 0 or (cache.num_lacking if cache is not None else text.end) <= NEAR_TOKENS

    def _plan(self, leaf: _Leaf) -> tuple[FollowedText, PlannedItem]:
        text = leaf.text
        cache = self._caches.get(text.session_id)
        if cache is None:
            cache = self._caches[text.session_id] = LocalText(next(self._session_ids), text.tokens)
        most = cache.num_lacking
        if most > NEAR_TOKENS:
            most = min(most, self._catch_up_tokens)
            self._catch_up_tokens -= most
        plan = cache.plan(text.tree, leaf.node, most=most)
        text.local_drafts += 1
        self.num_passes += 1
        return text, plan

    def _grow(self, text: FollowedText, node: Node, tokens: Sequence[int], log_probs: Sequence[float]) -> None:
        """Hang the first guess under a node (chains are verified: others would be of no use), and judge what a worker has hung there."""
        self.num_tokens += 1
        for token, log_prob in zip(tokens, log_probs, strict=True):
            existing = node.children.get(token)
            if existing is not None:
                text.tree.reestimate(existing, node.path_log_prob + log_prob)  # a worker may say anything
            elif token == tokens[0]:
                text.tree.add(node, token, log_prob=max(MIN_LOG_PROB, log_prob))

    def _end_pass(self) -> list[tuple[FollowedText, PlannedItem]]:
        if not self._in_flight:
            raise LocalProtocolError("no local draft pass is in flight")
        planned, self._in_flight = self._in_flight, []
        return planned


def _is_expanded(node: Node) -> bool:
    """Whether a worker has said what follows a node, improbable as that may be."""
    said = math.fsum(math.exp(child.path_log_prob - node.path_log_prob) for child in node.children.values())
    return said >= BELIEVED_SHARE
