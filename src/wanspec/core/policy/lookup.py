"""Drafts that cost no pass: what followed the last time the text had the same end, hung below the leaves of a draft tree.

They are there at once, while the worker's news is still under way. What a draft model says later is news about them too: where it holds
another token for the most probable one, a proposal seldom comes true, and counts for as much as such proposals have been worth.

(A worker gains nothing by lookups: its own model is about to say more. That was measured, and so was the reuse of what had been drafted
below a rejected token: it hardly ever came true.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

from wanspec.core.speculation.suffix import SuffixIndex
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import NodeId

LEAF_LOG_PROB_MIN = math.log(0.05)
"""Leaves that the target's path is less likely to reach are not worth a look."""
MAX_LEAVES = 32
"""Nodes searched for leaves; more than this can hardly be that probable."""
_CLAIM, _PATH_LOG_PROB = attrgetter("claim"), attrgetter("path_log_prob")


class Lookup:
    """One session's."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._index = SuffixIndex(tokens)
        self._looked_at: set[NodeId] = set()
        self._proposed: dict[NodeId, tuple[int, int]] = {}
        """Parent -> (token proposed after it, length of the match)."""
        self._unranked: set[NodeId] = set()
        """Parents after which no draft model has spoken yet."""
        self._contradicted: set[NodeId] = set()
        """Parents after which a draft model holds another token than the proposed one for the most probable."""

    def committed(self, old_head: Node, path: Sequence[Node]) -> int:
        """The target has gone this way from `old_head`. Returns how many of the path's first tokens this alone had proposed."""
        num_true = 0
        for depth, (parent, node) in enumerate(zip([old_head, *path], path, strict=False)):
            if parent.node_id in self._proposed:
                token, match = self._proposed[parent.node_id]
                self._index.observe(match, contradicted=parent.node_id in self._contradicted, came_true=token == node.token)
                num_true += num_true == depth and token == node.token
        self._index.extend([node.token for node in path])
        self._looked_at.clear()
        self._proposed.clear()
        self._unranked.clear()
        self._contradicted.clear()
        return num_true

    def ranked(self, tree: DraftTree, parent: Node, first: int) -> None:
        """A draft model holds `first` for the most probable token after `parent`: where another one was proposed, its estimate changes."""
        self._unranked.discard(parent.node_id)
        token, match = self._proposed.get(parent.node_id, (first, 0))
        if token != first and (child := parent.children.get(token)) is not None:
            self._contradicted.add(parent.node_id)
            tree.reestimate(child, parent.path_log_prob + self._index.log_prob(match, contradicted=True))

    def grow(self, tree: DraftTree, *, path_prob_min: float) -> None:
        """Hang proposals below the head and the leaves, as deep as they are probable enough."""
        for parent in [node for node_id in self._unranked if (node := tree.nodes.get(node_id)) is not None]:
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
            ranked = max(node.children.values(), key=_PATH_LOG_PROB, default=None)
            log_prob = self._index.log_prob(proposal.match)
            child = tree.add(node, proposal.token, log_prob=log_prob) if node.path_log_prob + log_prob >= least else None
            if child is None:
                break
            self._proposed[node.node_id] = (proposal.token, proposal.match)
            if ranked is None:
                self._unranked.add(node.node_id)
            else:
                self.ranked(tree, node, ranked.token)
            node = child
            proposal = self._index.follow(proposal)
