"""The worker's half of best-first drafting: what is offered, what is withheld until the head moves, and what is expanded."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec.core.policy.drafting import MIN_LOG_PROB, WITHHELD_SHARE, Frontier, estimates_of
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.tree import DraftTree
from wanspec.core.speculation.types import DraftChoices, DraftingConfig

CONFIG = DraftingConfig(branch=8, leaves=4, max_depth=64, path_prob_min=0.1, is_calibrated=True)


def new_tree() -> DraftTree:
    return DraftTree([1], max_position=100)


def test_children_that_are_too_improbable_are_withheld_and_come_when_the_head_moves_towards_them() -> None:
    tree, frontier = new_tree(), Frontier()
    (first,) = frontier.offer(tree, tree.head, [(2, math.log(0.5)), (3, math.log(0.01))], CONFIG)
    assert frontier.offer(tree, first, [(4, math.log(0.12)), (5, math.log(0.02))], CONFIG) == []
    assert tree.size == 2
    tree.commit([2])
    tree.prune()
    (released,) = frontier.head_moved(tree, CONFIG)
    assert (released.token, released.parent) == (4, first)
    assert released in frontier
    tree.commit([4])
    tree.prune()
    assert frontier.head_moved(tree, CONFIG) == []


def test_what_is_far_too_improbable_is_forgotten() -> None:
    tree, frontier = new_tree(), Frontier()
    frontier.offer(tree, tree.head, [(2, math.log(0.9)), (3, math.log(0.9 * 0.1 * WITHHELD_SHARE / 2))], CONFIG)
    assert len(frontier._withheld) == 0


def test_what_was_withheld_and_then_committed_is_not_proposed() -> None:
    tree, frontier = new_tree(), Frontier()
    frontier.offer(tree, tree.head, [(2, math.log(0.05))], CONFIG)
    tree.commit([2])
    tree.prune()
    assert frontier.head_moved(tree, CONFIG) == []


def test_what_was_withheld_below_a_node_that_is_gone_goes_with_it() -> None:
    tree, frontier = new_tree(), Frontier()
    (left, right) = frontier.offer(tree, tree.head, [(2, math.log(0.5)), (3, math.log(0.4))], CONFIG)
    frontier.offer(tree, right, [(4, math.log(0.1))], CONFIG)
    tree.commit([left.token])
    tree.prune()
    assert frontier.head_moved(tree, CONFIG) == []
    assert frontier._withheld == []


def test_without_a_bound_everything_is_offered() -> None:
    tree, frontier = new_tree(), Frontier()
    offered = frontier.offer(tree, tree.head, [(2, -0.1), (3, -99.0)], DraftingConfig(branch=8))
    assert [node.path_log_prob for node in offered] == [-0.1, MIN_LOG_PROB]


def test_a_full_tree_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.core.speculation.tree.MAX_TREE_NODES", 2)
    tree, frontier = new_tree(), Frontier()
    assert len(frontier.offer(tree, tree.head, [(2, -0.1), (3, -0.2)], CONFIG)) == 1


def test_estimates_are_calibrated_where_there_is_a_calibration() -> None:
    choices = DraftChoices(tokens=(4, 5, 6), log_probs=(-0.7, -0.9, -4.0), entropy_nats=0.9)
    other = DraftChoices(tokens=(7,), log_probs=(-0.2,), entropy_nats=0.4)
    warm, calibration = Calibration(), Calibration()
    estimates = estimates_of([(choices, calibration), (other, None), (other, warm), (other, calibration)])
    assert estimates[0] == calibration.log_probs([choices])[0]
    assert estimates[1] == (-0.2,)
    assert estimates[2] == warm.log_probs([other])[0]
    assert estimates[3] == pytest.approx(calibration.log_probs([other])[0])


STEPS = st.lists(
    st.tuples(st.sampled_from(["expand", "commit", "surprise"]), st.lists(st.floats(-6.0, -0.05), min_size=1, max_size=8)), max_size=20
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, path_prob_min=st.sampled_from([1e-4, 0.01, 0.2]))
def test_whatever_happens_new_nodes_are_probable_have_consecutive_ids_and_parents_before_them(
    steps: list[tuple[str, list[float]]], path_prob_min: float
) -> None:
    config = DraftingConfig(branch=8, leaves=3, max_depth=10, path_prob_min=path_prob_min)
    tree, frontier = new_tree(), Frontier()
    taken: set[int] = set()
    frontier.add(tree.head)
    for kind, log_probs in steps:
        new = []
        if kind == "expand":
            leaves = frontier.take(tree, config)
            assert not taken & {leaf.node_id for leaf in leaves}
            taken |= {leaf.node_id for leaf in leaves}
            for leaf in leaves:
                new += frontier.offer(tree, leaf, list(enumerate(sorted(log_probs, reverse=True))), config)
        elif tree.room > 2:
            tree.commit([0 if kind == "commit" else 77])
            tree.prune()
            new = frontier.head_moved(tree, config)
            if tree.head.node_id not in taken and tree.head not in frontier:
                frontier.add(tree.head)
        first = new[0].node_id if new else 0
        assert [node.node_id for node in new] == list(range(first, first + len(new)))
        least = tree.head.path_log_prob + math.log(path_prob_min)
        assert all(node in tree and node.path_log_prob >= least - 1e-9 for node in new)
