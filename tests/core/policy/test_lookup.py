"""Free drafts in a tree: where they hang, how deep, and what is learned from them."""

from __future__ import annotations

import math

from wanspec.core.policy.lookup import LEAF_LOG_PROB_MIN, Lookup
from wanspec.core.speculation.suffix import CONTRADICTED_SHARE, PRIOR_RATES
from wanspec.core.speculation.tree import DraftTree, Node

REPEATING = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5]


def grow(tree: DraftTree, lookup: Lookup, *, path_prob_min: float) -> list[Node]:
    """The nodes that are new, in order."""
    before = set(tree.nodes)
    lookup.grow(tree, path_prob_min=path_prob_min)
    return [node for node_id, node in tree.nodes.items() if node_id not in before]


def grown(text: list[int], *, path_prob_min: float = 0.01, max_position: int = 1000) -> tuple[DraftTree, Lookup, list[Node]]:
    tree, lookup = DraftTree(text, max_position=max_position), Lookup(text)
    return tree, lookup, grow(tree, lookup, path_prob_min=path_prob_min)


def test_what_followed_before_hangs_below_the_head_as_a_chain() -> None:
    tree, _, new = grown(REPEATING)
    assert [node.token for node in new][:4] == [6, 7, 8, 9]
    assert new == tree.best_path(len(new))
    assert all(node.path_log_prob >= math.log(0.01) for node in new)


def test_a_chain_ends_where_it_becomes_improbable() -> None:
    _, _, new = grown(REPEATING, path_prob_min=0.5)
    assert [node.token for node in new] == [6]
    assert math.isclose(math.exp(new[0].path_log_prob), PRIOR_RATES[4])


def test_a_text_without_repetition_adds_nothing() -> None:
    assert grown([1, 2, 3])[2] == []


def test_nothing_hangs_beyond_the_last_useful_position() -> None:
    _, _, new = grown(REPEATING, max_position=len(REPEATING))
    assert [node.token for node in new] == [6]


def test_a_leaf_is_looked_at_once_until_the_text_goes_on() -> None:
    tree, lookup, _ = grown(REPEATING, path_prob_min=0.5)
    assert grow(tree, lookup, path_prob_min=0.5) == []
    bare = DraftTree(REPEATING, max_position=1000)
    assert grow(bare, lookup, path_prob_min=0.5) == []
    lookup.committed(bare.head, [])
    assert grow(bare, lookup, path_prob_min=0.5)


def test_a_draft_that_is_there_already_is_joined_and_not_new() -> None:
    tree, lookup = DraftTree(REPEATING, max_position=1000), Lookup(REPEATING)
    there = tree.add(tree.head, 6, log_prob=-0.2)
    new = grow(tree, lookup, path_prob_min=0.2)
    assert there is not None
    assert there not in new
    assert there.path_log_prob == -0.2
    assert [node.parent for node in new] == [there, *new[:-1]]


def test_leaves_that_are_hardly_reached_are_not_looked_at() -> None:
    tree, lookup = DraftTree(REPEATING, max_position=1000), Lookup(REPEATING)
    likely, unlikely = (tree.add(tree.head, token, log_prob=p) for token, p in ((1, -0.5), (2, LEAF_LOG_PROB_MIN - 0.1)))
    assert likely is not None
    assert unlikely is not None
    new = grow(tree, lookup, path_prob_min=0.001)
    assert new
    assert likely.children
    assert not unlikely.children


def test_proposals_that_come_true_are_believed_more() -> None:
    pattern = [1, 2, 3, 4, 5]
    tree, lookup = DraftTree(pattern * 3, max_position=10_000), Lookup(pattern * 3)
    for step in range(40):
        grow(tree, lookup, path_prob_min=0.001)
        lookup.committed(tree.head, tree.commit([pattern[step % 5]]))
    fresh = DraftTree(pattern, max_position=10_000)
    (child, *_) = grow(fresh, lookup, path_prob_min=0.001)
    assert child.token == 1
    assert math.exp(child.path_log_prob) > 0.9


def test_proposals_that_do_not_are_believed_less() -> None:
    lookup, text = Lookup([1, 2]), DraftTree([1, 2], max_position=10_000)
    for step in range(30):  # the 1 is always followed by something new
        lookup.committed(text.head, text.commit([100 + 2 * step, 1]))
        fresh = DraftTree([1], max_position=10_000)
        (child, *_) = grow(fresh, lookup, path_prob_min=0.001)
        lookup.committed(fresh.head, fresh.commit([101 + 2 * step]))
    assert math.exp(child.path_log_prob) < PRIOR_RATES[0] / 2


def test_it_says_how_many_of_the_first_tokens_committed_it_had_proposed() -> None:
    for tokens, proposed in (([6, 7, 8], 3), ([6, 7, 1], 2), ([1, 7, 8], 0)):
        tree, lookup, _ = grown(REPEATING)
        old_head = tree.head
        assert lookup.committed(old_head, tree.commit(tokens)) == proposed


def test_what_a_draft_model_contradicts_counts_for_less() -> None:
    tree, lookup, new = grown(REPEATING)
    first, second = new[:2]
    lookup.ranked(tree, tree.head, 99)
    assert math.isclose(math.exp(first.path_log_prob), CONTRADICTED_SHARE * PRIOR_RATES[4])
    assert second.path_log_prob < first.path_log_prob
    before = second.path_log_prob
    lookup.ranked(tree, first, second.token)  # and what it confirms for no less
    assert second.path_log_prob == before


def test_a_workers_first_choice_counts_as_a_word_about_what_was_looked_up() -> None:
    tree, lookup, new = grown(REPEATING)
    assert tree.join(tree.head, 50, log_prob=-3.0, claim=-3.0, now=1.0) is not None
    assert tree.join(tree.head, 51, log_prob=-0.1, claim=-0.1, now=1.0) is not None
    grow(tree, lookup, path_prob_min=0.01)
    assert math.isclose(math.exp(new[0].path_log_prob), CONTRADICTED_SHARE * PRIOR_RATES[4])


def test_a_workers_agreement_leaves_what_was_looked_up_as_it_is() -> None:
    tree, lookup, new = grown(REPEATING)
    assert tree.join(tree.head, 6, log_prob=0.0, claim=-0.1, now=1.0) is new[0]
    before = new[0].path_log_prob
    grow(tree, lookup, path_prob_min=0.01)
    assert new[0].path_log_prob == before


def test_a_node_that_was_ranked_before_contradicts_at_once() -> None:
    tree, lookup = DraftTree(REPEATING, max_position=1000), Lookup(REPEATING)
    drafted = tree.add(tree.head, 50, log_prob=-0.1)
    new = grow(tree, lookup, path_prob_min=0.01)
    own = next(node for node in new if node.parent is tree.head)
    assert drafted is not None
    assert (own.token, math.isclose(math.exp(own.path_log_prob), CONTRADICTED_SHARE * PRIOR_RATES[4])) == (6, True)


def test_what_was_contradicted_and_comes_true_is_learned_apart() -> None:
    pattern = [1, 2, 3, 4, 5]
    tree, lookup = DraftTree(pattern * 3, max_position=10_000), Lookup(pattern * 3)
    for position in range(400):
        grow(tree, lookup, path_prob_min=0.5)
        lookup.ranked(tree, tree.head, 99)
        old_head = tree.head
        path = tree.commit([pattern[position % 5]])
        tree.prune()
        tree.advance_root(tree.head.position)
        lookup.committed(old_head, path)
    grow(tree, lookup, path_prob_min=0.01)
    child = tree.head.children[pattern[0]]
    lookup.ranked(tree, tree.head, 99)
    assert math.exp(child.path_log_prob - tree.head.path_log_prob) > 0.8


def test_a_token_that_was_drafted_keeps_its_own_estimate() -> None:
    tree, lookup = DraftTree(REPEATING, max_position=1000), Lookup(REPEATING)
    for token, log_prob in ((50, -0.1), (6, -4.0)):
        assert tree.add(tree.head, token, log_prob=log_prob) is not None
    grow(tree, lookup, path_prob_min=0.01)
    assert tree.head.children[6].path_log_prob == -4.0


def test_a_workers_second_choice_is_worth_what_it_claims() -> None:
    tree, lookup, new = grown(REPEATING)
    for token, claim in ((50, -0.9), (6, -1.0)):
        assert tree.join(tree.head, token, log_prob=claim, claim=claim, now=1.0) is not None
    grow(tree, lookup, path_prob_min=0.01)
    assert new[0].path_log_prob == -1.0


def test_a_later_word_of_agreement_counts() -> None:
    tree, lookup, new = grown(REPEATING)
    lookup.ranked(tree, tree.head, 99)
    lookup.ranked(tree, tree.head, new[0].token)
    assert not lookup._proposed[tree.head.node_id].is_contradicted
