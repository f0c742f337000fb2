"""Ours: verify a tree; wait, or draft locally, when that is worth more than it costs.

Before each pass three things can be done. *Verify* the most probable nodes that are there, as many as are worth the time that they add to
the pass: none is plain decoding. *Wait* for drafts that are under way. *Draft*: expand the most probable leaves locally, in one batched
pass. More nodes mean more tokens in the round: a leaf that the target's path reaches with probability P, and whose children cover a share c
of what may follow, adds P c tokens when it is expanded. A token is worth the time that one costs at present, and never more than plain
decoding takes for it. The best of the three is done.

- Waiting costs three times its time: what is not waited for is not lost, it is there for the next round.
- A local pass costs its time, the time that its children add to the target's pass, and a price; and it is credited with less for what the
  worker will have delivered by its end. The price is what keeps drafts out of a busy site, but no generation shall be slower for it: it is
  charged in full while the generation is clearly faster than it would be here alone, and not at all where it is no faster.
- What a token would cost here alone is worked out for every round, and compared with what it did cost over the same rounds: from what
  passes take, from what children have been seen to cover, and from how many tokens the drafts that are free here too (lookup) did foresee.
- What a token is worth depends on whether the worker's news is near. With drafts coming in it is the measured time per token. In the gap
  after a token that the worker had not foreseen, a round trip and more, time passes anyway, and a token is worth what it costs alone.

Without a worker the same rule drafts a tree on the spot, as deep as pays at each position, or nothing at all where the draft model is of no
use. It is asked again from time to time (`is_draft_due`): another text may suit it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wanspec.core.policy.coverage import Coverage, Look, look_at
from wanspec.core.policy.interface import Decision, DraftLocally, Outcome, Situation, Verify
from wanspec.core.policy.pass_times import Pace, PassTimes
from wanspec.core.policy.sharing import best_size, sizes_up_to
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import DraftingConfig

WAIT_COST = 3.0
"""What waiting must gain, as a multiple of its time. Tuned, as the next, in the simulator and on the bundled pair."""
DEAR_PACE, CHEAP_PACE = 0.965, 0.975
"""Time per token, as a ratio to that without a worker, up to which a local pass costs the whole price, and from which on nothing."""
GUESSED_PACE = 0.9
"""The same ratio where nothing is known of any worker yet: the first has the benefit of the doubt."""
BELIEVED_SHARE = 0.5
"""A worker's children that cover less than this share of the usual are not all that may follow, whatever it says."""
SOON_SHARE = 0.4
"""By how much less a local pass is credited with what the worker will deliver before its end: that is there for the next round anyway."""
EXPECTED_TOKENS = 32
"""How much longer a text is expected to go on, at least."""
MIN_PROB = 1e-9
NEVER = math.inf


class _Leaf(NamedTuple):
    """A node without a draft model's children."""

    node: Node
    prob: float
    """Probability that the target's path runs through it and goes on where nothing is drafted yet."""
    children_at: float
    """When a worker's are expected; infinity: never."""


class RoundsAlone(NamedTuple):
    """What this round could be without a worker, for each of LIMITS and number of levels of local drafts [limits, 1 + MAX_LEVELS]."""

    duration_s: NDArray[np.float64]
    tokens: NDArray[np.float64]
    """Expected, without those of drafts that cost nothing."""

    def token_s(self, num_free: int) -> float:
        """What a token costs at best where so many come from drafts that cost nothing."""
        return float((self.duration_s / (self.tokens + num_free)).min())


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
        self._alone: RoundsAlone | None = None
        """What this round would be without a worker; None before the first question about it."""
        self._bare_s = 0.0
        """What a token of this round costs without a worker and without free drafts."""
        self._alone_s: float | None = None
        """What a token of the newest round would have cost without a worker; None before that was ever known."""
        self._pace, self._pace_alone = Pace(), Pace()
        """What tokens have cost, and what the same ones would have without a worker."""
        self._round_began_at: float | None = None
        self._seen: tuple[Coverage, Look] | None = None
        """What the newest question showed of the children that expanded nodes have; learned when a pass has followed on it."""

    @property
    def alone_token_s(self) -> float | None:
        """Of the newest round. It says nothing where all is to be drafted elsewhere, however slow that is."""
        return None if self._price_s == NEVER else self._alone_s

    def decide(self, situation: Situation, *, now: float) -> Decision:
        tree = situation.tree
        chosen = tree.most_probable(self._verify_width, min_log_prob=self._min_log_prob)
        leaves = self._leaves(situation, chosen, now)
        if self._alone is None:
            self._alone = self._rounds_alone(situation)
            self._bare_s = self._alone.token_s(0)
        plain_s = situation.target_times.expected_s(situation.num_sessions)
        verify = Verify(tuple(chosen), gives_way=True, token_s=min(plain_s, self._recent_token_s(situation)))
        if not leaves:
            return verify
        token_s = verify.token_s
        leaves = self._worth_expanding(situation, leaves, token_s)
        draft_gain_s = self._draft_gain_s(situation, chosen, leaves, token_s, now)
        if draft_gain_s > 0.0:
            return DraftLocally(tuple([leaf.node for leaf in leaves]), draft_gain_s, verify)
        return verify

    def opened(self, *, now: float) -> None:
        pass

    def committed(self, outcome: Outcome, *, now: float) -> None:
        if self._alone is not None:
            self._alone_s = self._alone.token_s(outcome.num_free)
        if self._round_began_at is not None and self._alone_s is not None:
            committed = outcome.accepted + 1
            self._pace.add(now - self._round_began_at, committed)
            self._pace_alone.add(self._alone_s * committed, committed)
        self._round_began_at = now
        self._alone = None
        self._learn()

    def drafted(self) -> None:
        self._learn()

    def _learn(self) -> None:
        """Note what the newest question has shown, now that something was done about it: a question alone teaches nothing."""
        if self._seen is not None:
            coverage, look = self._seen
            coverage.learn(look)
            self._seen = None

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
        look = look_at(expanded, tree.head)
        self._seen = (situation.coverage, look) if look is not None else None
        return leaves

    def _worth_expanding(self, situation: Situation, leaves: Sequence[_Leaf], token_s: float) -> list[_Leaf]:
        """Of the leaves, the most probable one and those that are worth the time that they add to a local pass."""
        best_first = sorted(leaves, key=lambda leaf: leaf.prob, reverse=True)[: self._verify_width]
        sessions = situation.num_sessions
        gains_s = [leaf.prob * situation.coverage.total * token_s for leaf in best_first[1:]]
        return best_first[: 1 + best_size(gains_s, situation.draft_times, sure_tokens=sessions, copies=sessions)[0]]

    def _draft_gain_s(self, situation: Situation, chosen: Sequence[Node], leaves: Sequence[_Leaf], token_s: float, now: float) -> float:
        """What a local pass over the leaves is worth, in seconds.

        Leaves whose children are about to come from the worker count for less. The other sessions will want as much of the pass, and of the
        target's. A pass that only finds out whether the draft model is still of no use is worth just its time to all.
        """
        nodes = [leaf.node for leaf in leaves]
        duration_s = situation.draft_times.expected_s(situation.num_sessions * len(nodes))
        if situation.arrivals is None and situation.is_draft_due:
            return situation.num_sessions * duration_s
        soon, share = now + duration_s, SOON_SHARE * situation.worker_share
        fresh = [leaf.prob if leaf.children_at > soon else leaf.prob * (1.0 - share) for leaf in leaves]
        base = situation.tree.head.path_log_prob
        verified = [math.exp(node.path_log_prob - base) for node in chosen]
        then = situation.coverage.after(fresh, verified, width=self._verify_width)
        kept, worth_now_s = self._worth(situation, verified, token_s)
        gain_s = self._worth(situation, then, token_s)[1] - worth_now_s - duration_s
        if gain_s <= 0.0:
            gain_s = self._gain_of_levels_s(situation, fresh[0], kept, token_s)
        return gain_s - self._catching_up_s(situation, nodes) - self._charged_s(situation)

    def _gain_of_levels_s(self, situation: Situation, prob: float, verified: int, token_s: float) -> float:
        """What local passes below a leaf of this path probability are worth beside `verified` nodes, in seconds: as many as pay most.

        One may not pay where the next do: the first token that is added to a pass costs more than those that follow.
        """
        sessions, trees = situation.num_sessions, situation.coverage.trees(self._verify_width)
        durations_s = _durations_s(situation.target_times, sessions, sessions * (verified + trees.verified[:, 1:]))
        durations_s += np.cumsum(_durations_s(situation.draft_times, 0, sessions * trees.expanded), axis=1)
        gains_s = np.where(
            verified + trees.verified[:, 1:] <= self._verify_width, token_s * prob * trees.tokens[:, 1:] - durations_s, -NEVER
        )
        return float(gains_s.max()) + situation.target_times.expected_s(sessions * (1 + verified))

    def _catching_up_s(self, situation: Situation, nodes: Sequence[Node]) -> float:
        """A local pass's charge for text that the draft model has not seen, and has to compute with these nodes.

        That helps later rounds too. So it is free where no worker makes this text faster and the text would repay it by going on for as
        many tokens as were generated since the draft model was last asked. It is also free while little is known of that model.
        """
        if not situation.coverage.is_known:
            return 0.0
        own, more = situation.num_sessions * len(nodes), max(0, situation.draft_tokens(nodes) - len(nodes))
        more_s = situation.draft_times.expected_s(own + more) - situation.draft_times.expected_s(own)
        if situation.arrivals is None or self._ratio_to_alone(situation) >= CHEAP_PACE:
            saved_s = situation.target_times.expected_s(situation.num_sessions) - self._bare_s
            if more_s <= saved_s * max(EXPECTED_TOKENS, situation.num_undrafted):
                return 0.0
        return more_s

    def _worth(self, situation: Situation, probs: Sequence[float], token_s: float) -> tuple[int, float]:
        """How many of the nodes of these path probabilities, best first, are worth their time in a round, and what they are, in seconds."""
        sessions = situation.num_sessions
        gains_s = [token_s * prob for prob in probs]
        return best_size(gains_s, situation.target_times, sure_tokens=sessions, copies=sessions)

    def _charged_s(self, situation: Situation) -> float:
        """The price of a local pass: as much of it as we can afford and still be faster than without a worker."""
        if situation.arrivals is None:
            return 0.0
        if self._price_s == NEVER:
            return NEVER
        ratio = self._ratio_to_alone(situation)
        return self._price_s * min(1.0, max(0.0, (CHEAP_PACE - ratio) / (CHEAP_PACE - DEAR_PACE)))

    def _ratio_to_alone(self, situation: Situation) -> float:
        """What a token has cost lately, in relation to what it would have without a worker."""
        return self._recent_token_s(situation) / self._alone_token_s(situation)

    def _recent_token_s(self, situation: Situation) -> float:
        """What one has cost lately, in this session and, at its start, in those before."""
        guess = GUESSED_PACE if situation.arrivals is not None else 1.0
        return self._pace.after(situation.pace, guess * self._bare_s)

    def _alone_token_s(self, situation: Situation) -> float:
        """What the same tokens would have cost without a worker."""
        return self._pace_alone.after(situation.pace_alone, self._bare_s)

    def _rounds_alone(self, situation: Situation) -> RoundsAlone:
        """This round without a worker, for each of LIMITS and number of levels; the other sessions do likewise."""
        sessions = situation.num_sessions
        trees = situation.coverage.trees(self._verify_width)
        duration_s = _durations_s(situation.target_times, sessions, sessions * trees.verified)
        duration_s[:, 1:] += np.cumsum(_durations_s(situation.draft_times, 0, sessions * trees.expanded), axis=1)
        unseen = np.diff(trees.tokens, axis=1)  # the last level's token, where it comes true, is computed in the next round
        duration_s[:, 1:] += _durations_s(situation.draft_times, sessions, sessions * unseen) - situation.draft_times.expected_s(sessions)
        return RoundsAlone(duration_s, 1.0 + trees.tokens)


def _durations_s(times: PassTimes, sure_tokens: int, more_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of passes over `sure_tokens` and each of these expected numbers of tokens more."""
    sizes = sizes_up_to(math.ceil(more_tokens.max(initial=0.0)))
    durations_s: NDArray[np.float64] = np.interp(more_tokens, sizes, times.durations_s(sure_tokens, sizes))
    return durations_s
