"""A followed text as the local draft model knows it: what of it is in that model's cache, and what the model said after its nodes.

Texts are caught up with in pieces, since an engine's step waits for each of them. Until all that is committed is in the cache, nothing is
drafted.
"""

from __future__ import annotations

from collections.abc import Sequence

from wanspec.core.protocol.followed_text import UNCOUPLED
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.model_view import ModelView, PlannedItem
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, NodeId, Position, SessionId

NOBODYS_NODE = NodeId(0)
"""Of tokens that were committed before the cache began: no tree gives it out, so that they are never taken for drafts in the cache."""


class LocalText:
    """See the module's text."""

    def __init__(self, session_id: SessionId, tokens: Sequence[int]) -> None:
        """`session_id`: the local model's own, never used before. `tokens`: all that are committed."""
        self.session_id = session_id
        self._view = ModelView(session_id, UNCOUPLED, ())
        self._tokens = list(tokens)
        self._path: list[Node] = []
        """Committed since; these and `_tokens`, which come before them, the view has not been told of."""
        self._choices: dict[NodeId, DraftChoices] = {}
        """What the model said after nodes that are still in the tree."""

    @property
    def num_lacking(self) -> int:
        """Committed tokens that are not in the cache, or come there with the next pass."""
        return len(self._tokens) + len(self._path)

    def has_drafted(self, node: Node) -> bool:
        """Whether the model has said what follows a node."""
        return node.node_id in self._choices

    def plan(self, tree: DraftTree, leaf: Node, *, most: int) -> PlannedItem:
        """The item that scores `leaf`, or, where more than `most` committed tokens are lacking, the first of those, and no rows."""
        tokens, self._tokens = self._tokens[:most], self._tokens[most:]
        self._view.committed([Node(NOBODYS_NODE, None, token, Position(0), 0.0) for token in tokens])
        room = most - len(tokens)
        path, self._path = self._path[:room], self._path[room:]
        self._view.committed(path)
        if not self.num_lacking:
            return self._view.plan(tree, (leaf,))
        return PlannedItem(item=self._view.plan(tree, ()).item, rows=())

    def drafted(self, node: Node, choices: DraftChoices) -> None:
        """The model has said what follows a node."""
        self._choices[node.node_id] = choices

    def committed(self, tree: DraftTree, old_head: Node, path: Sequence[Node], calibration: Calibration) -> None:
        """The engine has committed the tokens of `path`, below `old_head`; the calibration learns from them."""
        self._path += path
        if not self._choices:
            return
        for parent, node in zip([old_head, *path], path, strict=False):
            choices = self._choices.get(parent.node_id)
            if choices is not None:
                calibration.observe(choices, node.token)
        self._choices = {node_id: choices for node_id, choices in self._choices.items() if node_id in tree.nodes}
