"""The default policy: before each pass, verify what is there, or draft locally where that is worth more than it costs.

*Verify*: the most probable nodes that are there, as many as are worth the time that they add to the pass; none is plain decoding. *Draft*:
expand the most probable leaves locally, in one batched pass. With V the nodes to verify, S(V) the sum of the most probable ones' path
probabilities, C the children that coverage expects below the leaves, and rho the seconds that a token costs at present,

    draft if and only if   rho * (S(V + C) - S(V))  >  L + price,

where L is the time of the local pass and of what C adds to the target's. A leaf whose children the worker is about to deliver counts for
less (SOON_SHARE): those will be there for the next round anyway. Where one level of drafting does not pay, several may (`alone`).

All sessions share a local pass and wait for it. So a session also says what it would gain by one that is not worth its own time, and the
pass is made where the gains of all repay the time of all (`protocol/passes.py`).

- rho is the measured time per token, and never more than plain decoding takes.
- The price keeps drafts out of a busy site, but no generation shall be slower for it. It is charged in full while tokens are clearly
  cheaper than they would be here alone, and not at all where they are no cheaper (`alone` says what they would cost).
- Waiting for drafts that are under way is never worth its time: they are there for the next round, and who waits misses the common pass.

Without a worker the same rule drafts a tree on the spot, as deep as pays at each position, or nothing at all where the draft model is of no
use. It is asked again from time to time (`is_draft_due`): another text may suit it. At a site without a draft model there is nothing to
weigh: what workers and the text itself propose is verified, and what `alone` says is of plain decoding and lookup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from wanspec.core.policy.alone import Alone
from wanspec.core.policy.coverage import Coverage, look_at
from wanspec.core.policy.interface import Decision, DraftLocally, Outcome, Policy, Situation, Verify
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftingConfig

DEAR_PACE, CHEAP_PACE = 0.965, 0.975
"""Time per token, as a ratio to that without a worker, up to which a local pass costs the whole price, and from which on nothing."""
GUESSED_PACE = 0.9
"""The same ratio before anything is known of a worker: the first has the benefit of the doubt."""
GUESSED_TOKENS = 30.0
"""How many tokens such a guess counts as."""
BELIEVED_SHARE = 0.5
"""A worker's children that cover less than this share of the usual are not all that may follow, whatever it says."""
SOON_SHARE = 0.4
"""How much less a local pass is credited with for what the worker will deliver before its end, as a share of the worker's record."""
EXPECTED_TOKENS = 32
"""How much longer a text is expected to go on, at least."""
NEVER = math.inf
_PROB = attrgetter("prob")


class _Leaf(NamedTuple):
    """A node without a draft model's children."""

    node: Node
    """The leaf."""
    prob: float
    """Probability that the target's path runs through it and goes on where nothing is drafted yet."""
    children_at: float
    """When a worker's are expected; infinity: never."""


class Adaptive(Policy):
    """See the module's text."""

    def __init__(
        self,
        *,
        verify_width: int,
        redundancy_price_s: float,
        drafting: DraftingConfig,
        uses_lookup: bool,
        chain_prob_min: float | None = None,
    ) -> None:
        """`chain_prob_min`: for an engine that verifies chains, how probable the path down to a draft must be; None: it verifies trees."""
        self.drafting = self.local_drafting = drafting
        self.uses_lookup = uses_lookup
        self.tolerates_harm = redundancy_price_s == NEVER
        self._verify_width, self._width = verify_width, drafting.leaves
        self._price_s = redundancy_price_s
        self._verifies_chains = chain_prob_min is not None
        self._min_log_prob = math.log(drafting.path_prob_min if chain_prob_min is None else chain_prob_min)
        self._alone: Alone | None = None
        """What this round would be without a worker; None before the first question about it."""
        self._seen: tuple[Coverage, list[Node], Node] | None = None
        """What the newest question saw: expanded nodes of the tree below a head, whose children show what children cover."""

    def decide(self, situation: Situation, *, now: float) -> Decision:
        tree = situation.tree
        self._alone = alone = situation.alone(self._verify_width)
        chosen = self._chosen(tree)
        guessed_pace = GUESSED_PACE if situation.arrivals is not None else 1.0
        pace_s = situation.pace.mean(guessed_pace * alone.bare_s, GUESSED_TOKENS)
        token_s = min(alone.plain_s, pace_s)
        verify = Verify(tuple(chosen), gives_way=True, token_s=token_s)
        if not situation.has_draft_model:
            return verify
        leaves = self._leaves(situation, chosen, now)
        if self._verifies_chains:
            leaves = self._end_of_chain(situation, chosen, leaves)
        if not leaves:
            return verify
        if situation.is_draft_due:
            # As much as all others lose by waiting (`Passes.are_drafts_first`), so that it is done.
            gain_s = situation.num_sessions * situation.draft_times.expected_s(situation.num_sessions * len(leaves))
            return DraftLocally(tuple([leaf.node for leaf in leaves]), gain_s, verify)
        ratio = 0.0 if self._verifies_chains else pace_s / situation.pace_alone.mean(alone.bare_s, GUESSED_TOKENS)
        charged_s = 0.0 if situation.arrivals is None else self._charged_s(ratio)
        # A pass that others want takes its time in any case, so whoever gains anything by it takes part.
        least_s = -alone.draft_s if situation.num_sessions > 1 else 0.0
        most_s = token_s * sum([leaf.prob for leaf in leaves]) * situation.coverage.total - alone.draft_s
        if most_s <= charged_s + least_s and not alone.may_gain(token_s * max([leaf.prob for leaf in leaves]), charged_s + least_s):
            return verify  # what can be gained at most is worth neither one pass nor several; most rounds with a worker end here
        leaves = self._worth_expanding(situation, alone, leaves, token_s)
        gain_s = self._draft_gain_s(situation, alone, chosen, leaves, token_s, now) - charged_s
        if gain_s > least_s:
            gain_s -= self._catching_up_s(situation, alone, [leaf.node for leaf in leaves], ratio)
        return DraftLocally(tuple([leaf.node for leaf in leaves]), gain_s, verify) if gain_s > least_s else verify

    def committed(self, outcome: Outcome, *, now: float) -> None:
        if self._alone is not None and not self._verifies_chains:  # what `alone` says is of trees
            self.alone_token_s = self._alone.token_s(outcome.num_free)
        self._alone = None

    def learn(self) -> None:
        if self._seen is not None:
            coverage, expanded, head = self._seen
            self._seen = None
            coverage.learn(look_at(expanded, head))

    def _chosen(self, tree: DraftTree) -> list[Node]:
        """The nodes to verify, best first, parents before children."""
        choose = tree.best_path if self._verifies_chains else tree.most_probable
        return choose(self._verify_width, min_log_prob=self._min_log_prob)

    def _end_of_chain(self, situation: Situation, chosen: Sequence[Node], leaves: Sequence[_Leaf]) -> list[_Leaf]:
        """Where a chain may go on: at its end, if that is not expanded, and if what follows is likely enough to be verified."""
        end = chosen[-1] if chosen else situation.tree.head
        least = math.exp(self._min_log_prob)
        has_room = len(chosen) < self._verify_width
        return [
            leaf
            for leaf in leaves
            if has_room and leaf.node is end and (situation.is_draft_due or leaf.prob * situation.coverage.first >= least)
        ]

    def _leaves(self, situation: Situation, chosen: Sequence[Node], now: float) -> list[_Leaf]:
        """What no draft model has expanded yet among the head and the nodes of the coming round; `_seen` keeps what one has."""
        tree, arrivals = situation.tree, situation.arrivals
        base, total = tree.head.path_log_prob, situation.coverage.total
        step_s = arrivals.step_s if arrivals else 0.0
        leaves: list[_Leaf] = []
        expanded: list[Node] = []
        has_drafted = situation.has_drafted
        for node in (tree.head, *chosen):
            if has_drafted(node):
                expanded.append(node)
                continue
            prob = math.exp(node.path_log_prob - base)
            below, has_arrived = 0.0, False
            for child in node.children.values():
                below += math.exp(child.path_log_prob - base)
                has_arrived = has_arrived or child.arrived_at is not None
            if has_arrived and below >= BELIEVED_SHARE * prob * total:
                expanded.append(node)
            elif node.position < tree.max_position:
                children_at = NEVER if arrivals is None or has_arrived else arrivals.children_at(node, now=now)
                children_at += len(leaves) // self._width * step_s  # a worker expands so many leaves in a step
                # A worker's children are a part of what a draft model offers; what was looked up is right or wrong by itself.
                leaves.append(_Leaf(node, max(0.0, prob - (below / total if has_arrived else below)), children_at))
        if situation.worker_is_alike:  # what another model's children cover says nothing of the one here
            self._seen = (situation.coverage, expanded, tree.head)
        return leaves

    def _worth_expanding(self, situation: Situation, alone: Alone, leaves: Sequence[_Leaf], token_s: float) -> list[_Leaf]:
        """Of the leaves, the most probable one and those that are worth the time that they add to a local pass."""
        best_first = sorted(leaves, key=_PROB, reverse=True)[: self._verify_width]
        leaf_s = situation.coverage.total * token_s
        return best_first[: 1 + alone.num_leaves_worth([leaf.prob * leaf_s for leaf in best_first[1:]])]

    def _draft_gain_s(
        self, situation: Situation, alone: Alone, chosen: Sequence[Node], leaves: Sequence[_Leaf], token_s: float, now: float
    ) -> float:
        """What a local pass over the leaves is worth, in seconds, its time subtracted.

        Leaves whose children are about to come from the worker count for less. The other sessions will want as much of the pass, and of the
        target's.
        """
        duration_s = situation.draft_times.expected_s(situation.num_sessions * len(leaves))
        soon, share = now + duration_s, SOON_SHARE * situation.worker_share
        fresh = [leaf.prob if leaf.children_at > soon else leaf.prob * (1.0 - share) for leaf in leaves]
        base = situation.tree.head.path_log_prob
        verified = [math.exp(node.path_log_prob - base) for node in chosen]
        then = situation.coverage.after(fresh, verified, width=self._verify_width)
        kept, worth_now_s = alone.nodes_worth([token_s * prob for prob in verified])
        gain_s = alone.nodes_worth([token_s * prob for prob in then])[1] - worth_now_s - duration_s
        return gain_s if gain_s > 0.0 or self._verifies_chains else alone.gain_of_levels_s(fresh[0], kept, token_s)

    def _catching_up_s(self, situation: Situation, alone: Alone, nodes: Sequence[Node], ratio: float) -> float:
        """A local pass's charge for text that the draft model has not seen, and has to compute with these nodes.

        The first such token is the usual one, left by most rounds in every session: the last draft that came true, which nobody has
        expanded. It is always charged. Further ones help later rounds too. They are free where no worker makes this text faster and the
        text would repay them by going on for as many tokens as were generated since the draft model was last asked, and while little is
        known of that model.
        """
        times, sessions = situation.draft_times, situation.num_sessions
        unseen = situation.draft_tokens(nodes) - len(nodes)
        if unseen <= 0:
            return 0.0
        own, usual = sessions * len(nodes), sessions * (len(nodes) + 1)
        usual_s = times.expected_s(usual) - times.expected_s(own)
        if unseen == 1 or not situation.coverage.is_known:
            return usual_s
        more_s = times.expected_s(usual + unseen - 1) - times.expected_s(usual)
        if situation.arrivals is None or ratio >= CHEAP_PACE:
            saved_s = alone.plain_s - alone.bare_s
            if more_s <= saved_s * max(EXPECTED_TOKENS, situation.num_undrafted):
                return usual_s
        return usual_s + more_s

    def _charged_s(self, ratio: float) -> float:
        """The price of a local pass: as much of it as we can afford and still be faster than without a worker."""
        if self._price_s == NEVER:
            return NEVER
        return self._price_s * min(1.0, max(0.0, (CHEAP_PACE - ratio) / (CHEAP_PACE - DEAR_PACE)))
