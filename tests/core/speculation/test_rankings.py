"""What a draft model has said, kept until the target has chosen."""

from __future__ import annotations

import pytest

from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.rankings import Rankings
from wanspec.core.speculation.tree import DraftTree
from wanspec.core.speculation.types import DraftChoices

FIRST = DraftChoices(tokens=(4, 5), log_probs=(-0.1, -3.0), entropy_nats=0.3)
SECOND = DraftChoices(tokens=(6,), log_probs=(-0.2,), entropy_nats=0.1)


class Recorded(Calibration):
    """A calibration that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[DraftChoices, int]] = []

    def observe(self, choices: DraftChoices, token: int) -> None:
        self.told.append((choices, token))


@pytest.fixture
def tree() -> DraftTree:
    made = DraftTree([1, 2], max_position=100)
    for token in FIRST.tokens:
        made.add(made.head, token, log_prob=-1.0)
    return made


def commit(rankings: Rankings, tree: DraftTree, *tokens: int) -> None:
    head, path = tree.head, tree.commit(tokens)
    tree.prune()
    rankings.committed(tree, head, path)


def test_the_calibration_learns_of_each_ranked_place_of_the_text_which_token_came(tree: DraftTree) -> None:
    calibration = Recorded()
    rankings = Rankings(calibration)
    rankings.note(tree.head, FIRST)
    rankings.note(tree.head.children[4], SECOND)
    commit(rankings, tree, 4, 9, 8)
    assert calibration.told == [(FIRST, 4), (SECOND, 9)]  # nobody ranked what comes after the 9
    commit(rankings, tree, 7)
    assert len(calibration.told) == 2


def test_what_was_said_of_nodes_that_are_gone_is_forgotten_and_of_those_to_come_kept(tree: DraftTree) -> None:
    calibration = Recorded()
    rankings = Rankings(calibration)
    rankings.note(tree.head.children[4], SECOND)
    rankings.note(tree.head.children[5], SECOND)
    commit(rankings, tree, 4)
    assert calibration.told == []
    assert list(rankings._by_node) == [tree.head.node_id]
    commit(rankings, tree, 6)
    assert calibration.told == [(SECOND, 6)]
    tree.advance_root(tree.head.position)
    commit(rankings, tree, 6)
    assert rankings._by_node == {}


def test_where_nobody_learns_nothing_is_kept(tree: DraftTree) -> None:
    rankings = Rankings(None)
    rankings.note(tree.head, FIRST)
    commit(rankings, tree, 4)
    assert rankings._by_node == {}
