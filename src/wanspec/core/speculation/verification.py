"""The verification walk: from the target's choices to the tokens that are committed."""

from __future__ import annotations

from collections.abc import Callable

from wanspec.core.speculation.types import ScoreItem


def walk(item: ScoreItem, choose: Callable[[int], int]) -> list[tuple[int, int]]:
    """Follow the target's choices down the draft tokens of a target pass; each step commits a token.

    `choose` has the target's token after a row of the pass. It is asked for the rows on the way alone: the first, which is the head's,
    then that of the draft token that the choice before accepted. The last choice is the bonus token (a whole path was accepted) or the
    correction token (it was not). Returns row and token of each step, at least one: accepted drafts + 1.
    """
    assert item.append, "the first row of a target pass is the head's"
    below = {(node.parent_id, node.token): (node.node_id, row) for row, node in enumerate(item.nodes, start=1)}
    walked = [(0, choose(0))]
    step = below.get((None, walked[0][1]))
    while step is not None:
        node_id, row = step
        walked.append((row, choose(row)))
        step = below.get((node_id, walked[-1][1]))
    return walked
