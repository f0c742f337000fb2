"""What a model is asked: prefill, catch-up, missing ancestors; and the walk from its choices to committed tokens."""

from __future__ import annotations

from wanspec.core.speculation.model_view import ModelView
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import SamplingParams, SessionId
from wanspec.core.speculation.verification import walk


def grow(tree: DraftTree, parent: Node, *tokens: int) -> list[Node]:
    path = []
    for token in tokens:
        node = tree.add(parent, token, log_prob=-1.0)
        assert node is not None
        path.append(node)
        parent = node
    return path


def started() -> tuple[DraftTree, ModelView]:
    return DraftTree([1, 2, 3], max_position=100), ModelView(SessionId(1), SamplingParams(), [1, 2, 3])


def test_the_first_item_is_the_prompt_and_its_row_is_the_heads() -> None:
    tree, view = started()
    assert view.is_empty
    planned = view.plan(tree, [])
    assert (planned.item.append, planned.item.prefix_length, planned.item.next_positions) == ((1, 2, 3), 3, (3,))
    assert planned.rows == (tree.head,)
    assert view.has_scored(tree.head)


def test_a_wanted_node_brings_its_unscored_ancestors_and_nothing_twice() -> None:
    tree, view = started()
    view.plan(tree, [])
    path = grow(tree, tree.head, 4, 5, 6)
    first = view.plan(tree, [path[1]])
    assert [(spec.token, spec.parent_id) for spec in first.item.nodes] == [(4, None), (5, path[0].node_id)]
    second = view.plan(tree, [path[2], path[1]])
    assert [(spec.token, spec.parent_id) for spec in second.item.nodes] == [(6, path[1].node_id)]
    assert second.item.next_positions == (6,)


def test_committed_nodes_that_were_scored_move_and_the_rest_is_appended() -> None:
    tree, view = started()
    view.plan(tree, [])
    path = grow(tree, tree.head, 4, 5)
    view.plan(tree, path)
    view.committed(tree.commit([4, 5, 9]))
    planned = view.plan(tree, [])
    assert (planned.item.commit, planned.item.append) == ((path[0].node_id, path[1].node_id), (9,))
    assert (planned.item.prefix_length, planned.item.next_positions) == (6, (6,))


def test_after_a_divergence_later_commits_are_appended_although_a_node_was_scored() -> None:
    tree, view = started()
    view.plan(tree, [])
    view.committed(tree.commit([8]))
    view.committed(tree.commit([9]))
    assert view.plan(tree, []).item.append == (8, 9)


def test_it_is_known_beforehand_how_much_a_pass_would_compute() -> None:
    tree, view = started()
    path = grow(tree, tree.head, 4, 5, 6)
    sizes = []
    for wanted in ([tree.head], [path[1], path[0]], [path[1], path[2]], [path[2]]):
        expected = view.num_to_compute(tree, wanted)
        assert view.plan(tree, wanted).item.tokens == expected
        sizes.append(expected)
    assert sizes == [3, 2, 1, 0]
    view.committed(tree.commit([4, 9]))
    assert (view.num_unseen, view.num_to_compute(tree, [tree.head])) == (1, 1)


def test_a_text_may_be_computed_in_pieces_and_nothing_follows_but_the_last() -> None:
    tree = DraftTree([1, 2, 3, 4, 5], max_position=100)
    view = ModelView(SessionId(1), SamplingParams(), [1, 2, 3, 4, 5], reuse_key="alice", num_log_probs=0)
    pieces = [view.plan_piece(2), view.plan_piece(1)]
    assert [(piece.item.append, piece.item.prefix_length, piece.rows) for piece in pieces] == [((1, 2), 2, ()), ((3,), 3, ())]
    assert [(piece.item.next_positions, piece.item.num_log_probs) for piece in pieces] == [((), None)] * 2
    assert [piece.item.reuse_key for piece in pieces] == ["alice", "alice"]
    assert (view.num_unseen, view.is_empty, view.has_scored(tree.head)) == (2, False, False)
    last = view.plan(tree, [])
    assert (last.item.append, last.item.prefix_length, last.item.next_positions, last.item.reuse_key) == ((4, 5), 5, (5,), "alice")


def test_a_piece_keeps_the_committed_nodes_that_the_model_has_scored() -> None:
    tree, view = started()
    view.plan(tree, [])
    (scored,) = grow(tree, tree.head, 4)
    view.plan(tree, [scored])
    view.committed(tree.commit([4, 7, 8]))
    piece = view.plan_piece(1)
    assert (piece.item.commit, piece.item.append, piece.item.prefix_length) == ((scored.node_id,), (7,), 5)
    assert (view.plan(tree, []).item.commit, view.num_unseen) == ((), 0)


def verdict(tree: DraftTree, view: ModelView, choices: dict[Node, int]) -> list[int]:
    """What is committed where the target verifies these nodes below the head, and chooses so after each; it is asked for no other row."""
    planned = view.plan(tree, [node for node in choices if node is not tree.head])
    return [token for _, token in walk(planned.item, lambda row: choices[planned.rows[row]])]


def test_a_fully_accepted_path_earns_a_bonus_token() -> None:
    tree, view = started()
    a, b = grow(tree, tree.head, 4, 5)
    assert verdict(tree, view, {tree.head: 4, a: 5, b: 6}) == [4, 5, 6]


def test_a_rejection_ends_the_walk_with_the_correction() -> None:
    tree, view = started()
    a, b = grow(tree, tree.head, 4, 5)
    assert verdict(tree, view, {tree.head: 4, a: 7, b: 6}) == [4, 7]


def test_in_a_tree_the_walk_follows_whichever_branch_the_target_takes() -> None:
    tree, view = started()
    (a,), (b,) = grow(tree, tree.head, 4), grow(tree, tree.head, 5)
    assert verdict(tree, view, {tree.head: 5, a: 1, b: 6}) == [5, 6]


def test_a_child_that_was_not_verified_ends_the_walk() -> None:
    tree, view = started()
    grow(tree, tree.head, 4, 5)
    assert verdict(tree, view, {tree.head: 4}) == [4]


def test_the_target_is_asked_for_the_rows_on_the_way_alone() -> None:
    tree, view = started()
    path, aside = grow(tree, tree.head, 4, 5), grow(tree, tree.head, 6, 7)
    planned = view.plan(tree, [*path, *aside])
    asked = []

    def choose(row: int) -> int:
        asked.append(planned.rows[row])
        return {tree.head: 6, aside[0]: 8}[planned.rows[row]]

    assert walk(planned.item, choose) == [(0, 6), (3, 8)]
    assert asked == [tree.head, aside[0]]
