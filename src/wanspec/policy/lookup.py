"""Drafts that cost no pass: what followed the last time the text had the same end, hung below the leaves of a draft tree.

Both sides do it. At a worker such nodes let one draft step go several levels deeper; at the controller they are there at once, when the
worker's news is still under way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from wanspec.speculation.suffix import SuffixIndex
from wanspec.speculation.tree import DraftTree, Node
from wanspec.speculation.types import NodeId

LEAF_PROB_MIN = 0.05
"""Leaves that the target's path is less likely to reach are not worth a look."""


class Lookup:
    """One session's."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._index = SuffixIndex(tokens)
        self._looked_at: set[NodeId] = set()
        self._proposed: dict[NodeId, tuple[int, int]] = {}
        """Parent -> (token proposed after it, length of the match)."""

    def committed(self, old_head: Node, path: Sequence[Node]) -> None:
        """The target has gone this way from `old_head`."""
        for parent, node in zip([old_head, *path], path, strict=False):
            if parent.node_id in self._proposed:
                token, match = self._proposed[parent.node_id]
                self._index.observe(match, came_true=token == node.token)
        self._index.extend([node.token for node in path])
        self._looked_at.clear()
        self._proposed.clear()

    def grow(self, tree: DraftTree, leaves: Iterable[Node], *, path_prob_min: float) -> list[Node]:
        """Hang proposals below these nodes, as deep as they are probable enough. Returns the nodes that are new."""
        least_leaf = tree.head.path_log_prob + math.log(LEAF_PROB_MIN)
        least = tree.head.path_log_prob + math.log(path_prob_min)
        new: list[Node] = []
        for leaf in leaves:
            if leaf.path_log_prob >= least_leaf and leaf.node_id not in self._looked_at:
                self._looked_at.add(leaf.node_id)
                new += self._grow_below(tree, leaf, least)
        return new

    def _grow_below(self, tree: DraftTree, leaf: Node, least: float) -> list[Node]:
        new: list[Node] = []
        proposal = self._index.propose([node.token for node in tree.path_to(leaf)])
        node = leaf
        while proposal is not None:
            log_prob = self._index.log_prob(proposal)
            is_new = proposal.token not in node.children
            child = tree.add(node, proposal.token, log_prob=log_prob) if node.path_log_prob + log_prob >= least else None
            if child is None:
                break
            self._proposed[node.node_id] = (proposal.token, proposal.match)
            if is_new:
                new.append(child)
            node = child
            proposal = self._index.follow(proposal)
        return new
