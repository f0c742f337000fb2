"""Ours: verify a tree; wait, or draft locally, when that is worth more than it costs.

Before each pass three things can be done. *Verify* the most probable nodes that are there. *Wait* for drafts that are under way. *Draft*:
expand the most probable leaves locally, in one batched pass. More nodes mean more tokens in the round: a leaf whose path the target takes
with probability P, and whose children cover a share c of what may follow, adds P c tokens when it is expanded. A token is worth the time
that one costs at present; waiting costs its time; a local pass costs its time and `redundancy_price_s`, and counts only what the worker
would not have delivered meanwhile. The best of the three is done.

What a token costs depends on whether the worker's news is near. With drafts coming in it is the measured time per token. In the gap
after a token that the worker had not foreseen, a round trip and more, time passes anyway, and a token is worth what it costs to write it
with local drafts alone. Without a worker that is the whole rule, and makes the tree of co-located drafting, as deep as pays.
"""

from __future__ import annotations

import math

from wanspec.policy.interface import Decision, DraftLocally, Outcome, Situation, Verify, Wait
from wanspec.speculation.tree import Node
from wanspec.speculation.types import DraftingConfig

INITIAL_COVERAGE = 0.85
"""Share of what may follow a node that its children cover, before it is known."""
COVERAGE_SMOOTHING = 0.05
MAX_LEVELS = 16
"""Levels of local drafting that are thought about."""
PACE_MEMORY = 0.95
"""Of the time per token, for each round."""
WAIT_COST = 3.0
"""What waiting must gain, as a multiple of its time: what is not waited for is not lost, it is there for the next round."""
DEAR_PACE, CHEAP_PACE = 0.85, 0.97
"""Time per token, as a share of that with local drafts alone, up to which a local pass costs the whole price, and from which on nothing."""


class Adaptive:
    """See the module's text."""

    def __init__(self, *, verify_width: int, redundancy_price_s: float, drafting: DraftingConfig, uses_lookup: bool) -> None:
        self.drafting: DraftingConfig | None = drafting
        self.local_drafting = drafting
        self.uses_lookup = uses_lookup
        self._verify_width = verify_width
        self._price_s = redundancy_price_s
        self._min_log_prob = math.log(drafting.path_prob_min)
        self._coverage = INITIAL_COVERAGE
        self._time_s = self._tokens = 0.0
        self._round_began_at: float | None = None

    def decide(self, situation: Situation, *, now: float) -> Decision:
        tree = situation.tree
        chosen = tree.most_probable(self._verify_width, min_log_prob=self._min_log_prob)
        leaves = self._leaves(situation, chosen)
        if not leaves:
            return Verify(tuple(chosen))
        wait_until, wait_gain_s = self._best_wait(situation, leaves, now)
        wanted, draft_gain_s = self._local_pass(situation, leaves, now)
        if wanted and draft_gain_s > max(0.0, wait_gain_s):
            return DraftLocally(tuple(wanted))
        if wait_gain_s > 0.0 and situation.arrivals is not None:
            return Wait(wait_until + situation.arrivals.slack_s)
        return Verify(tuple(chosen))

    def opened(self, *, now: float) -> None:
        pass

    def committed(self, outcome: Outcome, *, now: float) -> None:
        if self._round_began_at is not None:
            self._time_s = PACE_MEMORY * self._time_s + now - self._round_began_at
            self._tokens = PACE_MEMORY * self._tokens + outcome.accepted + 1
        self._round_began_at = now

    def _leaves(self, situation: Situation, chosen: list[Node]) -> list[tuple[Node, float]]:
        """Nodes of the coming round without children, the head among them if it is one, each with the probability of its path."""
        tree = situation.tree
        base = tree.head.path_log_prob
        leaves = []
        covered = reached = 0.0
        for node in (tree.head, *chosen):
            prob = math.exp(node.path_log_prob - base)
            below = sum([math.exp(child.path_log_prob - base) for child in node.children.values()])
            if situation.has_drafted(node) or any([child.arrived_at is not None for child in node.children.values()]):
                reached += prob
                covered += below
            elif node.position < tree.max_position:
                leaves.append((node, max(0.0, prob - below / self._coverage)))
        if reached:
            self._coverage += COVERAGE_SMOOTHING * (min(1.0, covered / reached) - self._coverage)
        return leaves

    def _best_wait(self, situation: Situation, leaves: list[tuple[Node, float]], now: float) -> tuple[float, float]:
        """Until when waiting is worth most, and how much, in seconds."""
        if situation.arrivals is None:
            return now, 0.0
        expected = [(situation.arrivals.children_at(node, now=now), prob) for node, prob in leaves]
        expected = sorted((max(at, now), prob) for at, prob in expected if at < math.inf)
        token_s = self._token_s(situation, expected, leaves, now)
        best_until, best_gain_s = now, 0.0
        for until, _ in expected:
            gain_s = self._arriving(expected, until, situation.arrivals.step_s) * token_s - WAIT_COST * (until - now)
            if gain_s > best_gain_s:
                best_until, best_gain_s = until, gain_s
        return best_until, best_gain_s

    def _arriving(self, expected: list[tuple[float, float]], until: float, step_s: float) -> float:
        """Tokens by which what arrives until then is expected to lengthen the round."""
        return sum([prob * self._deepening((until - at) / step_s + 1.0) for at, prob in expected if at <= until])

    def _deepening(self, levels: float) -> float:
        """Tokens that so many levels below a node of the path are worth."""
        return sum([self._coverage**level for level in range(1, min(MAX_LEVELS, int(levels)) + 1)])

    def _local_pass(self, situation: Situation, leaves: list[tuple[Node, float]], now: float) -> tuple[list[Node], float]:
        """The leaves that a local pass would expand, and what that is worth, in seconds."""
        duration_s = situation.draft_times.expected_s(min(len(leaves), self._verify_width))
        arrivals = situation.arrivals
        expected = [] if arrivals is None else [(arrivals.children_at(node, now=now), prob) for node, prob in leaves]
        gained = 0.0
        wanted = []
        for node, prob in leaves:
            comes = arrivals is not None and arrivals.children_at(node, now=now) <= now + duration_s
            if not comes and not situation.has_drafted(node):
                wanted.append(node)
                gained += prob * self._coverage
        token_s = self._token_s(situation, expected, leaves, now)
        return wanted, gained * token_s - duration_s - (self._charged_s(situation) if arrivals is not None else 0.0)

    def _charged_s(self, situation: Situation) -> float:
        """The price of a local pass: as much of it as we can afford and still be faster than with local drafts alone."""
        if not self._tokens or self._price_s == math.inf:
            return self._price_s
        pace = self._time_s / self._tokens / self._alone_s(situation)
        return self._price_s * min(1.0, max(0.0, (CHEAP_PACE - pace) / (CHEAP_PACE - DEAR_PACE)))

    def _token_s(self, situation: Situation, expected: list[tuple[float, float]], leaves: list[tuple[Node, float]], now: float) -> float:
        """What a token is worth."""
        alone_s = self._alone_s(situation)
        if not self._tokens:
            return alone_s
        soon = now + situation.target_times.expected_s(self._verify_width)
        near = sum([prob for at, prob in expected if at <= soon])
        share = near / max(1e-9, sum([prob for _, prob in leaves]))
        return share * self._time_s / self._tokens + (1.0 - share) * alone_s

    def _alone_s(self, situation: Situation) -> float:
        """Time per token with local drafts alone, as many levels of them as are best."""
        target_s, draft_s = situation.target_times.expected_s(self._verify_width), situation.draft_times.expected_s(self._verify_width)
        return min([(target_s + levels * draft_s) / (1.0 + self._deepening(levels)) for levels in range(MAX_LEVELS)])
