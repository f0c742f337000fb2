"""Drafts that cost no pass: what followed the last time the text had the same end, hung below the leaves of a draft tree.

They are there at once, while the worker's news is still under way. What a draft model says later is news about them too: where it holds
another token for the most probable one, a proposal seldom comes true, and counts for as much as such proposals have been worth.

(A worker gains nothing by lookups: its own model is about to say more. That was measured, and so was the reuse of what had been drafted
below a rejected token: it hardly ever came true.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from wanspec.core.speculation.suffix import SuffixIndex
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import NodeId

LEAF_LOG_PROB_MIN = math.log(0.05)
"""Leaves that the target's path is less likely to reach are not worth a look."""
MAX_LEAVES = 32
"""Nodes searched for leaves; more than this can hardly be that probable."""
_CLAIM, _PATH_LOG_PROB = attrgetter("claim"), attrgetter("path_log_prob")


@dataclass(slots=True)
class _Proposed:
    """What was looked up after a node."""

    token: int
    """The token proposed after it."""
    match: int
    """Length of the match."""
    is_ranked: bool = False
    """Whether a draft model has said what follows the node."""
    is_contradicted: bool = False
    """Whether it holds another token for the most probable."""


class Lookup:
    """One session's."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._index = SuffixIndex(tokens)
        self._looked_at: set[NodeId] = set()
        self._proposed: dict[NodeId, _Proposed] = {}
        """By the node that a token is proposed after."""

    def committed(self, old_head: Node, path: Sequence[Node]) -> int:
        """The target has gone this way from `old_head`. Returns how many of the path's first tokens this alone had proposed."""
        num_true = 0
        for depth, (parent, node) in enumerate(zip([old_head, *path], path, strict=False)):
            if (own := self._proposed.get(parent.node_id)) is not None:
                came_true = own.token == node.token
                self._index.observe(own.match, contradicted=own.is_contradicted, came_true=came_true)
                num_true += num_true == depth and came_true
        self._index.extend([node.token for node in path])
        self._looked_at.clear()
        self._proposed.clear()
        return num_true

    def ranked(self, tree: DraftTree, parent: Node, first: int) -> None:
        """A draft model holds `first` for the most probable token after `parent`: where another one was proposed, its estimate changes.

        It falls to what such proposals have been worth, but not below what a worker claims.
        """
        own = self._proposed.get(parent.node_id)
        if own is None:
            return
        own.is_ranked, own.is_contradicted = True, own.token != first
        child = parent.children.get(own.token)
        if own.is_contradicted and child is not None:
            log_prob = self._index.log_prob(own.match, contradicted=True)
            claim = child.claim if child.arrived_at is not None else log_prob
            tree.reestimate(child, parent.path_log_prob + max(log_prob, claim))

    def grow(self, tree: DraftTree, *, path_prob_min: float) -> None:
        """Hang proposals below the head and the leaves, as deep as they are probable enough."""
        for node_id, own in self._proposed.items():
            if not own.is_ranked and (parent := tree.nodes.get(node_id)) is not None:
                arrived = [child for child in parent.children.values() if child.arrived_at is not None]
                if arrived:
                    self.ranked(tree, parent, max(arrived, key=_CLAIM).token)
        leaves = [node for node in tree.most_probable(MAX_LEAVES, min_log_prob=LEAF_LOG_PROB_MIN) if not node.children]
        least = tree.head.path_log_prob + math.log(path_prob_min)
        for leaf in (tree.head, *leaves):
            if leaf.node_id not in self._looked_at:
                self._looked_at.add(leaf.node_id)
                self._grow_below(tree, leaf, least)

    def _grow_below(self, tree: DraftTree, leaf: Node, least: float) -> None:
        proposal = self._index.propose([node.token for node in tree.path_to(leaf)])
        node = leaf
        while proposal is not None:
            first = max(node.children.values(), key=_PATH_LOG_PROB) if node.children else None
            is_drafted = proposal.token in node.children
            log_prob = self._index.log_prob(proposal.match)
            child = tree.add(node, proposal.token, log_prob=log_prob) if node.path_log_prob + log_prob >= least else None
            if child is None:
                break
            own = self._proposed[node.node_id] = _Proposed(proposal.token, proposal.match)
            if is_drafted:  # its estimate stays
                own.is_ranked, own.is_contradicted = True, first is not child
            elif first is not None:
                self.ranked(tree, node, first.token)
            node = child
            proposal = self._index.follow(proposal)
