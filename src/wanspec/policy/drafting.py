"""The worker's half of every policy (the paper's Algorithm 2): which leaves to expand next, and which children to offer."""

from __future__ import annotations

import heapq

from wanspec.speculation.tree import DraftTree, Node
from wanspec.speculation.types import DraftChoices, DraftingConfig


class Frontier:
    """A session's unexpanded nodes, the most probable first; of equally probable ones the older."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Node]] = []
        self._too_deep: list[tuple[float, int, Node]] = []

    def __contains__(self, node: Node) -> bool:
        return any(entry[2] is node for entry in (*self._heap, *self._too_deep))

    def add(self, node: Node) -> None:
        """A node that the draft model has not scored."""
        heapq.heappush(self._heap, (-node.path_log_prob, node.node_id, node))

    def prune(self, tree: DraftTree) -> None:
        """Forget what has left the tree; to be called when its head has moved."""
        self._heap = [entry for entry in (*self._heap, *self._too_deep) if entry[2] in tree]
        self._too_deep = []
        heapq.heapify(self._heap)

    def take(self, tree: DraftTree, config: DraftingConfig) -> list[Node]:
        """The leaves to expand now: at most `config.leaves`, none as deep as `config.max_depth` already."""
        deepest = min(tree.head.position + config.max_depth, tree.max_position)
        leaves: list[Node] = []
        while self._heap and len(leaves) < config.leaves:
            entry = heapq.heappop(self._heap)
            if entry[2].position < deepest:
                leaves.append(entry[2])
            else:
                self._too_deep.append(entry)
        return leaves


def offered_children(choices: DraftChoices, config: DraftingConfig) -> list[tuple[int, float]]:
    """Tokens to propose after a node, with their log probabilities: the first alone where the draft is confident, else the top few."""
    count = 1 if choices.entropy_nats < config.entropy_threshold_nats else config.branch
    return list(zip(choices.tokens[:count], choices.log_probs[:count], strict=True))
