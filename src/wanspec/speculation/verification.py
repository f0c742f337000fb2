"""The verification walk: from the target's choices to the tokens that are committed."""

from __future__ import annotations

from collections.abc import Mapping

from wanspec.speculation.tree import DraftTree
from wanspec.speculation.types import NodeId, TargetChoice


def walk(tree: DraftTree, choices: Mapping[NodeId, TargetChoice]) -> list[TargetChoice]:
    """Follow the target's choices down from the head of `tree`.

    `choices` has the target's choice after the head and after every verified node. Each step commits a choice; it goes on while the
    choice is a verified child. The last one is the bonus token (all of a path was accepted) or the correction token (it was not), so
    that the result has at least one element: accepted drafts + 1.
    """
    committed = []
    node = tree.head
    while True:
        choice = choices[node.node_id]
        committed.append(choice)
        child = node.children.get(choice.token)
        if child is None or child.node_id not in choices:
            return committed
        node = child
