"""How a draft tree grows, at a worker and at the controller: which leaves to expand next, and which children to offer."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Sequence

from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, DraftingConfig

MIN_LOG_PROB = -15.9375
"""The smallest estimate that the wire can carry."""
WITHHELD_SHARE = 0.02
"""Children this much below `path_prob_min` are forgotten: the head would have to move far for them to be wanted after all."""
WITHHELD_NATS = math.log(WITHHELD_SHARE)


class Frontier:
    """A session's unexpanded nodes, the most probable first; of equally probable ones the older.

    Children that are too improbable to be offered yet are withheld, as plain tuples, until the head moves towards them.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Node]] = []
        self._too_deep: list[tuple[float, int, Node]] = []
        self._withheld: list[tuple[Node, list[tuple[int, float]]]] = []
        """(parent, its (token, log_prob) children, the most probable first)"""

    def __contains__(self, node: Node) -> bool:
        return any(entry[2] is node for entry in (*self._heap, *self._too_deep))

    def add(self, node: Node) -> None:
        """A node that the draft model has not scored."""
        heapq.heappush(self._heap, (-node.path_log_prob, node.node_id, node))

    def offer(self, tree: DraftTree, parent: Node, children: list[tuple[int, float]], config: DraftingConfig) -> list[Node]:
        """Hang (token, log_prob) children, the most probable first, under `parent`.

        Returns the nodes to be proposed; what is too improbable is withheld.
        """
        least = _least_log_prob(tree, config)
        offered, rest = self._hang(tree, parent, children, least)
        at_least = least + WITHHELD_NATS - parent.path_log_prob
        if rest and (withheld := [child for child in rest if child[1] >= at_least]):
            self._withheld.append((parent, withheld))
        return offered

    def head_moved(self, tree: DraftTree, config: DraftingConfig) -> list[Node]:
        """Forget what has left the tree. Returns the nodes that are now probable enough to be proposed."""
        self._heap = [entry for entry in (*self._heap, *self._too_deep) if entry[2] in tree]
        self._too_deep = []
        heapq.heapify(self._heap)
        least = _least_log_prob(tree, config)
        withheld, self._withheld = self._withheld, []
        released: list[Node] = []
        for parent, children in withheld:
            if parent in tree and parent.position >= tree.head.position:
                offered, rest = self._hang(tree, parent, children, least)
                released += offered
                if rest:
                    self._withheld.append((parent, rest))
        return released

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

    def _hang(
        self, tree: DraftTree, parent: Node, children: list[tuple[int, float]], least: float
    ) -> tuple[list[Node], list[tuple[int, float]]]:
        """The new nodes of those children that are probable enough, and the other children."""
        own, likely = parent.path_log_prob, 0
        while likely < len(children) and own + children[likely][1] >= least:
            likely += 1
        new = tree.grow(parent, [(token, max(MIN_LOG_PROB, log_prob)) for token, log_prob in children[:likely]])
        for node in new:
            self.add(node)
        return new, children[likely:]


def _least_log_prob(tree: DraftTree, config: DraftingConfig) -> float:
    return tree.head.path_log_prob + math.log(config.path_prob_min) if config.path_prob_min else -math.inf


def estimates_of(rankings: Sequence[tuple[DraftChoices, Calibration | None]]) -> list[Sequence[float]]:
    """Log probabilities of each ranking's tokens: as the draft model says, or as its calibration, where there is one, has learned."""
    estimates: list[Sequence[float]] = [ranking.log_probs for ranking, _ in rankings]
    indices: defaultdict[Calibration, list[int]] = defaultdict(list)
    for index, (_, calibration) in enumerate(rankings):
        if calibration is not None:
            indices[calibration].append(index)
    for calibration, own in indices.items():
        for index, log_probs in zip(own, calibration.log_probs([rankings[index][0] for index in own]), strict=True):
            estimates[index] = log_probs
    return estimates


def offered_children(ranking: DraftChoices, log_probs: Sequence[float], config: DraftingConfig) -> list[tuple[int, float]]:
    """The ranking's tokens to propose, with their estimates: the first alone where the draft is confident, else the top few."""
    count = 1 if ranking.entropy_nats < config.entropy_threshold_nats else config.branch
    return list(zip(ranking.tokens[:count], log_probs[:count], strict=True))
