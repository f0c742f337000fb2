"""What expanding nodes is worth: learned by rank, and worked out for trees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from wanspec.core.policy.coverage import INITIAL_SHARES, KNOWN_LOOKS, LIMITS, MAX_LEVELS, REFRESH_LOOKS, Coverage, look_at
from wanspec.core.speculation.tree import DraftTree, Node


def tree_with_children(*probs: float) -> DraftTree:
    tree = DraftTree([1], max_position=100)
    for token, prob in enumerate(probs):
        tree.add(tree.head, token, log_prob=math.log(prob))
    return tree


def observe(coverage: Coverage, parents: Sequence[Node], head: Node) -> None:
    coverage.learn(look_at(parents, head))


def tokens(coverage: Coverage, width: int) -> list[float]:
    """That a tree of this width adds to a round, for each number of levels."""
    return [float(value) for value in coverage.trees(width).tokens[-1]]


def gain(coverage: Coverage, leaves: Sequence[float], verified: Sequence[float], *, width: int) -> float:
    return sum(coverage.after(leaves, verified, width=width)) - sum(verified)


def test_before_anything_is_seen_the_initial_shares_hold() -> None:
    assert Coverage().total == pytest.approx(sum(INITIAL_SHARES))


def test_what_children_cover_is_learned() -> None:
    coverage, tree = Coverage(), tree_with_children(0.1, 0.3)
    for _ in range(300):
        observe(coverage, [tree.head], tree.head)
    assert coverage.total == pytest.approx(0.4, abs=0.01)
    assert gain(coverage, [1.0], [], width=1) == pytest.approx(0.3, abs=0.01)


def test_seeing_no_node_teaches_nothing() -> None:
    coverage = Coverage()
    observe(coverage, [], DraftTree([1], max_position=9).head)
    assert coverage.total == pytest.approx(sum(INITIAL_SHARES))


def test_nodes_count_by_how_probable_they_are() -> None:
    coverage, tree = Coverage(), tree_with_children(0.99, 0.0001)
    likely, unlikely = tree.head.children.values()
    tree.add(likely, 1, log_prob=math.log(0.9))
    for _ in range(300):
        observe(coverage, [likely, unlikely], tree.head)
    assert coverage.total == pytest.approx(0.9, abs=0.01)


def test_estimates_that_sum_to_more_than_one_cover_no_more_than_everything() -> None:
    coverage, tree = Coverage(), tree_with_children(1.0, 1.0, 1.0)
    for _ in range(300):
        observe(coverage, [tree.head], tree.head)
    assert coverage.total == pytest.approx(1.0, abs=0.001)
    assert coverage.total <= 1.0
    assert gain(coverage, [1.0], [], width=8) == pytest.approx(1.0, abs=0.001)


def test_a_gain_is_what_new_nodes_add_to_the_best_of_a_round() -> None:
    coverage = Coverage()
    first, second = INITIAL_SHARES[:2]
    assert gain(coverage, [0.5], [], width=2) == pytest.approx(0.5 * (first + second))
    assert gain(coverage, [0.5], [0.3, 0.2], width=2) == pytest.approx(0.5 * first - 0.2)
    assert gain(coverage, [0.5], [0.9, 0.8], width=2) == 0.0
    assert gain(coverage, [], [0.9], width=2) == 0.0
    assert coverage.after([0.5], [0.9, 0.01], width=2) == [0.9, pytest.approx(0.5 * first)]


@pytest.mark.parametrize("width", [1, 32])
def test_a_tree_is_expanded_and_verified_up_to_its_width(width: int) -> None:
    trees = Coverage().trees(width)
    assert trees.expanded[-1, 0] == 1.0  # the head
    assert trees.verified[-1, :2].tolist() == [0.0, min(width, len(INITIAL_SHARES))]
    assert trees.expanded[-1].max() == trees.verified[-1].max() == width


def test_a_tree_of_probable_nodes_has_fewer_of_them_and_they_cover_less() -> None:
    trees = Coverage().trees(32)
    for which in (trees.tokens, trees.verified, trees.expanded):
        assert (np.diff(which, axis=0) >= 0.0).all()
    assert trees.expanded[:, 1].tolist() == [(np.array(INITIAL_SHARES) >= limit).sum() for limit in LIMITS]
    assert trees.verified[0].tolist() == [0.0] + [1.0] * MAX_LEVELS  # 0.7 and no more: 0.7 squared is less than LIMITS[0]


def test_where_no_child_was_ever_right_next_to_nothing_is_covered() -> None:
    coverage, tree = Coverage(), tree_with_children(1e-9)
    for _ in range(1000):
        observe(coverage, [tree.head], tree.head)
    assert 0.0 < coverage.total < 0.01  # it is divided by


def test_trees_are_worth_more_the_deeper_and_the_wider_they_are_and_less_and_less_so() -> None:
    coverage = Coverage()
    wide, narrow = tokens(coverage, 32), tokens(coverage, 1)
    assert len(wide) == MAX_LEVELS + 1
    assert wide[0] == 0.0
    assert wide == sorted(wide)
    gains = [after - before for before, after in pairwise(wide)]
    assert gains == sorted(gains, reverse=True)
    assert all(a >= b for a, b in zip(wide, narrow, strict=True))
    assert narrow[-1] == pytest.approx(INITIAL_SHARES[0], rel=0.1)  # one node is one node


def test_a_tree_goes_deeper_where_the_draft_model_is_surer() -> None:
    """As much is covered on average, but here every other position is sure, there none is."""
    mixed, even = Coverage(), Coverage()
    for _ in range(200):
        for prob in (0.99, 0.35):
            tree = tree_with_children(prob)
            observe(mixed, [tree.head], tree.head)
        tree = tree_with_children(0.67)
        observe(even, [tree.head], tree.head)
    assert tokens(mixed, 4)[8] > tokens(even, 4)[8]


def test_what_trees_are_worth_is_worked_out_again_at_once_at_first_and_then_now_and_then() -> None:
    coverage, tree = Coverage(), tree_with_children(0.1)
    for _ in range(REFRESH_LOOKS):
        before = tokens(coverage, 8)
        observe(coverage, [tree.head], tree.head)
        assert tokens(coverage, 8)[-1] < before[-1]
    before = tokens(coverage, 8)
    observe(coverage, [tree.head], tree.head)
    assert tokens(coverage, 8) == before
    for _ in range(REFRESH_LOOKS):
        observe(coverage, [tree.head], tree.head)
    assert tokens(coverage, 8)[-1] < before[-1]


def test_a_draft_model_is_known_within_some_thirty_looks_and_the_guess_forgotten() -> None:
    coverage, tree = Coverage(), tree_with_children(0.99)
    for _ in range(KNOWN_LOOKS):
        assert not coverage.is_known
        observe(coverage, [tree.head], tree.head)
    assert coverage.is_known
    assert coverage.total == pytest.approx(0.99, abs=0.02)
