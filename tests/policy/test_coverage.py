"""What expanding nodes is worth: learned by rank, and worked out for trees."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from wanspec.policy.coverage import INITIAL_SHARES, MAX_LEVELS, REFRESH_LOOKS, Coverage
from wanspec.speculation.tree import DraftTree


def tree_with_children(*probs: float) -> DraftTree:
    tree = DraftTree([1], max_position=100)
    for token, prob in enumerate(probs):
        tree.add(tree.head, token, log_prob=math.log(prob))
    return tree


def test_before_anything_is_seen_the_initial_shares_hold() -> None:
    assert Coverage().total == pytest.approx(sum(INITIAL_SHARES))


def test_what_children_cover_is_learned() -> None:
    coverage, tree = Coverage(), tree_with_children(0.1, 0.3)
    for _ in range(300):
        coverage.observe([tree.head], tree.head)
    assert coverage.total == pytest.approx(0.4, abs=0.01)
    assert coverage.gain([1.0], [], width=1) == pytest.approx(0.3, abs=0.01)


def test_seeing_no_node_teaches_nothing() -> None:
    coverage = Coverage()
    coverage.observe([], DraftTree([1], max_position=9).head)
    assert coverage.total == Coverage().total


def test_nodes_count_by_how_probable_they_are() -> None:
    coverage, tree = Coverage(), tree_with_children(0.99, 0.0001)
    likely, unlikely = tree.head.children.values()
    tree.add(likely, 1, log_prob=math.log(0.9))
    for _ in range(300):
        coverage.observe([likely, unlikely], tree.head)
    assert coverage.total == pytest.approx(0.9, abs=0.01)


def test_estimates_that_sum_to_more_than_one_cover_no_more_than_everything() -> None:
    coverage, tree = Coverage(), tree_with_children(1.0, 1.0, 1.0)
    for _ in range(300):
        coverage.observe([tree.head], tree.head)
    assert coverage.total == pytest.approx(1.0, abs=0.001)
    assert coverage.total <= 1.0
    assert coverage.gain([1.0], [], width=8) == pytest.approx(1.0, abs=0.001)


def test_a_gain_is_what_new_nodes_add_to_the_best_of_a_round() -> None:
    coverage = Coverage()
    first, second = INITIAL_SHARES[:2]
    assert coverage.gain([0.5], [], width=2) == pytest.approx(0.5 * (first + second))
    assert coverage.gain([0.5], [0.3, 0.2], width=2) == pytest.approx(0.5 * first - 0.2)
    assert coverage.gain([0.5], [0.9, 0.8], width=2) == 0.0
    assert coverage.gain([], [0.9], width=2) == 0.0


def test_trees_are_worth_more_the_deeper_and_the_wider_they_are_and_less_and_less_so() -> None:
    coverage = Coverage()
    wide, narrow = coverage.tree_tokens(32), coverage.tree_tokens(1)
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
            mixed.observe([tree.head], tree.head)
        tree = tree_with_children(0.67)
        even.observe([tree.head], tree.head)
    assert mixed.tree_tokens(4)[8] > even.tree_tokens(4)[8]


def test_what_trees_are_worth_is_worked_out_again_now_and_then() -> None:
    coverage, tree = Coverage(), tree_with_children(0.1)
    before = coverage.tree_tokens(8)
    coverage.observe([tree.head], tree.head)
    assert coverage.tree_tokens(8) is before
    for _ in range(REFRESH_LOOKS):
        coverage.observe([tree.head], tree.head)
    assert coverage.tree_tokens(8)[-1] < before[-1]
