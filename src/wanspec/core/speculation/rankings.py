"""What a draft model has said of a text's nodes, kept until the target has chosen: the calibration learns from both."""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, NodeId


class Rankings:
    """One text's."""

    def __init__(self, calibration: Calibration | None) -> None:
        """`calibration` None: nobody learns from them, and none is kept."""
        self.calibration = calibration
        self._by_node: dict[NodeId, DraftChoices] = {}
        """By the node that they follow, for nodes that are still in the tree."""

    def note(self, node: Node, ranking: DraftChoices) -> None:
        """The draft model has ranked what follows a node."""
        if self.calibration is not None:
            self._by_node[node.node_id] = ranking

    def committed(self, tree: DraftTree, old_head: Node, path: Sequence[Node]) -> None:
        """The target has chosen the tokens of `path`, below `old_head`."""
        if self.calibration is None or not self._by_node:
            return
        for parent, node in zip([old_head, *path], path, strict=False):
            ranking = self._by_node.get(parent.node_id)
            if ranking is not None:
                self.calibration.observe(ranking, node.token)
        self._by_node = {node_id: ranking for node_id, ranking in self._by_node.items() if node_id in tree.nodes}
