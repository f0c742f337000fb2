"""Ours: verify a tree; wait, or draft locally, when that is worth more than it costs.

Before each pass three things can be done. *Verify* the most probable nodes that are there. *Wait* for drafts that are under way. *Draft*:
expand the most probable leaves locally, in one batched pass. More nodes mean more tokens in the round: a leaf that the target's path
reaches with probability P, and whose children cover a share c of what may follow, adds P c tokens when it is expanded. A token is worth the
time that one costs at present. The best of the three is done.

- Waiting costs three times its time: what is not waited for is not lost, it is there for the next round.
- A local pass costs its time and a price, and is credited with less for what the worker will have delivered by its end. The price is what
  keeps drafts out of a busy site, but no generation shall be slower for it: it is charged in full while the generation is clearly faster
  than with local drafts alone, and not at all where it is no faster.
- What a token costs depends on whether the worker's news is near. With drafts coming in it is the measured time per token. In the gap after
  a token that the worker had not foreseen, a round trip and more, time passes anyway, and a token is worth what it costs to write it with
  local drafts alone.

Without a worker the same rule drafts a tree on the spot, as deep as pays at each position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from wanspec.policy.coverage import MAX_LEVELS
from wanspec.policy.interface import Decision, DraftLocally, Outcome, Situation, Verify, Wait
from wanspec.policy.pass_times import Pace
from wanspec.speculation.tree import Node
from wanspec.speculation.types import DraftingConfig

WAIT_COST = 3.0
"""What waiting must gain, as a multiple of its time. Tuned, as the next, in the simulator and on the bundled pair."""
DEAR_PACE, CHEAP_PACE = 0.9, 1.0
"""Time per token, as a share of that with local drafts alone, up to which a local pass costs the whole price, and from which on nothing."""
BELIEVED_SHARE = 0.5
"""A worker's children that cover less than this share of the usual are not all that may follow, whatever it says."""
SOON_SHARE = 0.4
"""By how much less a local pass is credited with what the worker will deliver before its end: that is there for the next round anyway."""
INHERITED_TOKENS = 20.0
"""The pace of the sessions before counts at a session's start as much as this many tokens."""
MIN_PROB = 1e-9
NEVER = math.inf


class _Leaf(NamedTuple):
    """A node without a draft model's children."""

    node: Node
    prob: float
    """Probability that the target's path runs through it and goes on where nothing is drafted yet."""
    children_at: float
    """When a worker's are expected; infinity: never."""


class Adaptive:
    """See the module's text."""

    uses_entropy = False

    def __init__(self, *, verify_width: int, redundancy_price_s: float, drafting: DraftingConfig, uses_lookup: bool) -> None:
        self.drafting: DraftingConfig | None = drafting
        self.local_drafting = drafting
        self.uses_lookup = uses_lookup
        self._verify_width = verify_width
        self._width = drafting.leaves
        self._price_s = redundancy_price_s
        self._min_log_prob = math.log(drafting.path_prob_min)
        self._alone_s = 0.0
        """What a token costs with local drafts alone; 0 before that was ever computed."""
        self._knows_alone_s = False
        """Whether it was computed in this round."""
        self._pace, self._pace_alone = Pace(), Pace()
        """What tokens have cost, and what the same ones would have with local drafts alone: from round to round both vary by a seventh."""
        self._round_began_at: float | None = None

    @property
    def alone_token_s(self) -> float | None:
        """As of the newest round that was thought about. It says nothing where all is to be drafted elsewhere, however slow that is."""
        return None if self._price_s == NEVER or not self._alone_s else self._alone_s

    def decide(self, situation: Situation, *, now: float) -> Decision:
        tree, arrivals = situation.tree, situation.arrivals
        chosen = tree.most_probable(self._verify_width, min_log_prob=self._min_log_prob)
        leaves = self._leaves(situation, chosen, now)
        verify = Verify(tuple(chosen), gives_way=True)
        if not leaves:
            return verify
        if not self._knows_alone_s:
            self._alone_s, self._knows_alone_s = self._time_alone_s(situation), True
        token_s = self._token_s(situation, leaves, now)
        wait_until, wait_gain_s = self._best_wait(situation, leaves, token_s * situation.worker_share, now)
        draft_gain_s = self._draft_gain_s(situation, chosen, leaves, token_s, now)
        if draft_gain_s > max(0.0, wait_gain_s):
            return DraftLocally(tuple([leaf.node for leaf in leaves]), draft_gain_s, verify)
        if arrivals is not None and wait_gain_s > 0.0:
            return Wait(wait_until + arrivals.slack_s)
        return verify

    def opened(self, *, now: float) -> None:
        pass

    def committed(self, outcome: Outcome, *, now: float) -> None:
        if self._round_began_at is not None:
            committed = outcome.accepted + 1
            self._pace.add(now - self._round_began_at, committed)
            self._pace_alone.add(self._alone_s * committed, committed)
        self._round_began_at = now
        self._knows_alone_s = False

    def _leaves(self, situation: Situation, chosen: Sequence[Node], now: float) -> list[_Leaf]:
        """What no draft model has expanded yet among the head and the nodes of the coming round."""
        tree, arrivals = situation.tree, situation.arrivals
        base = tree.head.path_log_prob
        step_s = arrivals.step_s if arrivals else 0.0
        leaves: list[_Leaf] = []
        expanded = []
        for node in (tree.head, *chosen):
            prob = math.exp(node.path_log_prob - base)
            below, has_arrived = 0.0, False
            for child in node.children.values():
                below += math.exp(child.path_log_prob - base)
                has_arrived = has_arrived or child.arrived_at is not None
            if situation.has_drafted(node) or (has_arrived and below >= BELIEVED_SHARE * prob * situation.coverage.total):
                expanded.append(node)
            elif node.position < tree.max_position:
                children_at = NEVER if arrivals is None or has_arrived else arrivals.children_at(node, now=now)
                children_at += len(leaves) // self._width * step_s
                leaves.append(_Leaf(node, max(0.0, prob - below / situation.coverage.total), children_at))
        situation.coverage.observe(expanded, tree.head)
        return leaves

    def _best_wait(self, situation: Situation, leaves: Sequence[_Leaf], token_s: float, now: float) -> tuple[float, float]:
        """Until when waiting is worth most, and how much, in seconds."""
        best, arrivals = (now, 0.0), situation.arrivals
        if arrivals is None:
            return best
        coming = [leaf for leaf in leaves if leaf.children_at < NEVER]
        for until in {leaf.children_at for leaf in coming}:
            arriving = [(leaf.prob, 1.0 + (until - leaf.children_at) / arrivals.step_s) for leaf in coming if leaf.children_at <= until]
            tokens = sum([prob * _deepening(levels, situation.coverage.total) for prob, levels in arriving])
            gain_s = tokens * token_s - WAIT_COST * (until - now)
            if gain_s > best[1]:
                best = (until, gain_s)
        return best

    def _draft_gain_s(self, situation: Situation, chosen: Sequence[Node], leaves: Sequence[_Leaf], token_s: float, now: float) -> float:
        """What a local pass over the leaves is worth, in seconds.

        It takes no longer for the leaves whose children are about to come from the worker: they come along, and count for less. The other
        sessions will want as much of it.
        """
        duration_s = situation.draft_times.expected_s(situation.num_sessions * min(len(leaves), self._verify_width))
        soon, share = now + duration_s, SOON_SHARE * situation.worker_share
        fresh = [leaf.prob if leaf.children_at > soon else leaf.prob * (1.0 - share) for leaf in leaves]
        base = situation.tree.head.path_log_prob
        verified = [math.exp(node.path_log_prob - base) for node in chosen]
        tokens = situation.coverage.gain(fresh, verified, width=self._verify_width)
        return tokens * token_s - duration_s - self._charged_s(situation)

    def _charged_s(self, situation: Situation) -> float:
        """The price of a local pass: as much of it as we can afford and still be faster than with local drafts alone."""
        if situation.arrivals is None:
            return 0.0
        if self._price_s == NEVER:
            return NEVER
        share = self._recent_token_s(situation) / self._pace_alone.blended_with(self._alone_s, INHERITED_TOKENS)
        return self._price_s * min(1.0, max(0.0, (CHEAP_PACE - share) / (CHEAP_PACE - DEAR_PACE)))

    def _token_s(self, situation: Situation, leaves: Sequence[_Leaf], now: float) -> float:
        """What a token is worth."""
        soon = now + situation.target_times.expected_s(1 + self._verify_width)
        near = sum([leaf.prob for leaf in leaves if leaf.children_at <= soon])
        share = near / max(MIN_PROB, sum([leaf.prob for leaf in leaves]))
        return share * self._recent_token_s(situation) + (1.0 - share) * self._alone_s

    def _recent_token_s(self, situation: Situation) -> float:
        """What one has cost lately, in this session and, at its start, in those before."""
        before_s = situation.pace_s or self._alone_s
        return self._pace.blended_with(before_s, INHERITED_TOKENS)

    def _time_alone_s(self, situation: Situation) -> float:
        """What one costs with local drafts alone, as many levels of them, and as wide, as are best for all sessions together."""
        width, sessions = self._verify_width, situation.num_sessions
        best_s = math.inf
        while width:
            target_s = situation.target_times.expected_s(sessions * (1 + width))
            draft_s = situation.draft_times.expected_s(sessions * width)
            tokens = situation.coverage.tree_tokens(width)
            best_s = min(best_s, *[(target_s + levels * draft_s) / (1.0 + more) for levels, more in enumerate(tokens)])
            width = width // 2 if sessions > 1 else 0
        return best_s


def _deepening(levels: float, share: float) -> float:
    """Tokens that so many levels below a node of the path are worth, where children cover `share` of what may follow."""
    depth = min(MAX_LEVELS, int(levels))
    return share * (1.0 - share**depth) / (1.0 - share) if share < 1.0 else depth
