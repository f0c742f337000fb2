"""The verification walk: from the target's choices to the tokens that are committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wanspec.speculation.tree import DraftTree
from wanspec.speculation.types import NodeId, ScoreItem, TargetChoice


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


def walked_rows(item: ScoreItem, tokens: Sequence[int]) -> list[int]:
    """The rows of a target pass whose choices a walk commits, told by its item and the token chosen after each row, without a tree.

    The first row is the head's, which every verify appends; the walk goes on as above.
    """
    below = {(node.parent_id, node.token): (node.node_id, row) for row, node in enumerate(item.nodes, start=1)}
    rows = [0]
    step = below.get((None, tokens[0]))
    while step is not None:
        node_id, row = step
        rows.append(row)
        step = below.get((node_id, tokens[row]))
    return rows
