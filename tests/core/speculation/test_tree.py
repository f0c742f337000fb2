"""The draft tree: joining, committing, re-rooting; a state machine against the obvious model (a set of paths)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wanspec.core.speculation.tree import MAX_TREE_NODES, DraftTree, Node
from wanspec.errors import LocalProtocolError


def new_tree(*, max_position: int = 100) -> DraftTree:
    return DraftTree([7, 8, 9], max_position=max_position)


def add(tree: DraftTree, parent: Node, token: int, log_prob: float = -1.0) -> Node:
    node = tree.add(parent, token, log_prob=log_prob)
    assert node is not None
    return node


def test_a_tree_begins_at_the_last_committed_token() -> None:
    tree = new_tree()
    assert (tree.root, tree.head.token, tree.head.position) == (tree.head, 9, 2)


def test_a_tree_without_tokens_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="at least one"):
        DraftTree([], max_position=10)


def test_the_same_child_added_twice_is_one_node() -> None:
    tree = new_tree()
    assert add(tree, tree.head, 4) is add(tree, tree.head, 4, -3.0)


def test_a_commit_follows_a_draft_and_keeps_what_is_below_it() -> None:
    tree = new_tree()
    first = add(tree, tree.head, 4)
    second = add(tree, first, 5)
    other = add(tree, tree.head, 6)
    assert tree.commit([4]) == [first]
    assert tree.head is first
    assert list(tree.drafts()) == [second]
    assert other in tree  # until it is pruned
    tree.prune()
    assert second in tree
    assert other not in tree


def test_pruning_says_what_was_drafted_in_the_place_of_each_committed_token_and_forgets_what_branched_off() -> None:
    tree = new_tree()
    head, first, other = tree.head, add(tree, tree.head, 4), add(tree, tree.head, 6)
    second, beside = add(tree, first, 5), add(tree, other, 5)
    path = tree.commit([4, 7])
    assert [node in tree for node in (other, beside, second)] == [True] * 3
    before, after = tree.prune()
    assert (before.parent, before.children, before.chosen) == (head, {4: first, 6: other}, first)
    assert (after.parent, after.children, after.chosen) == (first, {5: second, 7: path[1]}, path[1])
    assert [node in tree for node in (other, beside, second)] == [False] * 3
    assert other.parent is None  # or each would keep the other in memory
    assert set(tree.nodes.values()) == {head, *path}
    assert tree.prune() == []


def test_pruning_may_come_after_the_spine_was_forgotten_and_after_more_commits() -> None:
    tree = new_tree()
    nodes = [add(tree, tree.head, token) for token in (4, 5)]
    tree.commit([4])
    tree.commit([8, 9])
    tree.advance_root(5)
    assert [fork.chosen.token for fork in tree.prune()] == [4, 8, 9]
    assert nodes[1] not in tree
    assert list(tree.nodes.values()) == [tree.head]


def test_of_what_a_worker_proposed_no_more_is_counted_than_there_is() -> None:
    tree = new_tree()
    for token in (4, 5):
        tree.join(tree.head, token, log_prob=-1.0, claim=-1.0, now=0.0)
    tree.commit([4])
    assert tree.num_arrived == 2
    tree.prune()
    assert tree.num_arrived == 1
    add(tree, tree.head, 6)
    tree.join(tree.head, 7, log_prob=-1.0, claim=-1.0, now=0.0)
    tree.commit([6])
    tree.disown()  # another worker comes before the old one's drafts are pruned
    tree.prune()
    assert tree.num_arrived == 0


def test_a_commit_of_what_nobody_drafted_makes_the_node() -> None:
    tree = new_tree()
    add(tree, tree.head, 4)
    (node,) = tree.commit([5])
    assert (tree.head, node.position, list(tree.drafts())) == (node, 3, [])


def test_a_draft_that_comes_after_its_token_was_committed_joins_the_committed_node() -> None:
    tree = new_tree()
    root = tree.head
    (committed,) = tree.commit([4])
    assert tree.add(root, 4, log_prob=-1.0) is committed


def test_nothing_branches_off_the_spine() -> None:
    tree = new_tree()
    root = tree.head
    tree.commit([4])
    assert tree.add(root, 5, log_prob=-1.0) is None


def test_nothing_grows_below_a_pruned_node() -> None:
    tree = new_tree()
    pruned = add(tree, tree.head, 6)
    child = add(tree, pruned, 1)
    tree.commit([4])
    tree.prune()
    assert tree.add(pruned, 2, log_prob=-1.0) is None
    assert tree.add(pruned, child.token, log_prob=-1.0) is None


def test_nothing_grows_beyond_the_last_useful_position() -> None:
    tree = new_tree(max_position=3)
    assert tree.room == 1
    last = add(tree, tree.head, 4)
    assert tree.add(last, 5, log_prob=-1.0) is None


def test_a_full_tree_takes_no_more() -> None:
    tree = new_tree(max_position=10**6)
    for token in range(MAX_TREE_NODES - 1):
        add(tree, tree.head, token)
    assert tree.add(tree.head, MAX_TREE_NODES, log_prob=-1.0) is None


def test_the_root_moves_along_the_spine_and_no_further() -> None:
    tree = new_tree()
    path = tree.commit([4, 5, 6])
    tree.advance_root(4)
    assert (tree.root, tree.spine_node(3), tree.spine_node(4)) == (path[1], None, path[1])
    tree.advance_root(1000)
    assert tree.root is tree.head is path[2]
    assert tree.spine_node(6) is None


def test_the_best_path_takes_the_most_probable_child_each_time() -> None:
    tree = new_tree()
    likely, unlikely = add(tree, tree.head, 4, -0.1), add(tree, tree.head, 5, -2.0)
    add(tree, unlikely, 6, -0.1)
    below = add(tree, likely, 7, -0.5)
    assert tree.best_path(5) == [likely, below]
    assert tree.best_path(1) == [likely]


def test_the_most_probable_nodes_are_connected_sorted_and_no_more_than_asked_for() -> None:
    tree = new_tree()
    tree.commit([1])
    likely, unlikely = add(tree, tree.head, 4, -0.1), add(tree, tree.head, 5, -2.0)
    below, hidden = add(tree, likely, 7, -0.5), add(tree, unlikely, 6, -0.1)
    assert tree.most_probable(9, min_log_prob=-9.0) == [likely, below, unlikely, hidden]
    assert tree.most_probable(3, min_log_prob=-9.0) == [likely, below, unlikely]
    assert tree.most_probable(9, min_log_prob=-0.6) == [likely, below]
    assert tree.most_probable(0, min_log_prob=-9.0) == []
    assert new_tree().most_probable(9, min_log_prob=-9.0) == []


def test_of_equally_probable_nodes_the_older_is_first() -> None:
    tree = new_tree()
    nodes = [add(tree, tree.head, token, -1.0) for token in (6, 4, 5)]
    assert tree.most_probable(9, min_log_prob=-9.0) == nodes


def test_a_path_ends_at_its_node() -> None:
    tree = new_tree()
    first = add(tree, tree.head, 4)
    second = add(tree, first, 5)
    assert tree.path_to(second) == [first, second]
    assert tree.path_to(tree.head) == []
    assert second.position - tree.head.position == 2


def test_there_is_no_path_to_a_node_above_the_head() -> None:
    tree = new_tree()
    root = tree.root
    tree.commit([4])
    with pytest.raises(LocalProtocolError, match="below the head"):
        tree.path_to(root)


TOKENS = st.integers(0, 3)


class TreeMachine(RuleBasedStateMachine):
    """The tree against its meaning: a committed sequence and a set of draft paths that extend it."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = DraftTree([0], max_position=40)
        self.committed: tuple[int, ...] = (0,)
        self.root_position = 0
        self.paths: set[tuple[int, ...]] = set()
        self.forks: list[tuple[int, set[int]]] = []
        """Committed tokens since the last pruning, and what was drafted in the place of each."""
        self.known: list[tuple[Node, tuple[int, ...]]] = [(self.tree.head, (0,))]

    @precondition(lambda self: not self.forks)
    @rule(data=st.data(), token=TOKENS)
    def add(self, data: st.DataObject, token: int) -> None:
        parent, parent_path = data.draw(st.sampled_from(self.known))
        path = (*parent_path, token)
        parent_is_there = parent_path in self.paths or (
            self.committed[: len(parent_path)] == parent_path and len(parent_path) - 1 >= self.root_position
        )
        extends_the_committed = path[: len(self.committed)] == self.committed[: len(path)]
        node = self.tree.add(parent, token, log_prob=-1.0)
        if parent_is_there and extends_the_committed and len(path) <= 41:
            assert node is not None
            self.known.append((node, path))
            if len(path) > len(self.committed):
                self.paths.add(path)
        else:
            assert node is None

    @precondition(lambda self: len(self.committed) < 36)
    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=3))
    def commit(self, tokens: list[int]) -> None:
        for node in self.tree.commit(tokens):
            drafted = {path[-1] for path in self.paths if path[:-1] == self.committed}
            self.forks.append((node.token, drafted))
            self.committed = (*self.committed, node.token)
            self.known.append((node, self.committed))
        self.paths = {path for path in self.paths if len(path) > len(self.committed) and path[: len(self.committed)] == self.committed}

    @rule()
    def prune(self) -> None:
        forks = self.tree.prune()
        assert [(fork.chosen.token, set(fork.children) - {fork.chosen.token}) for fork in forks] == [
            (token, drafted - {token}) for token, drafted in self.forks
        ]
        self.forks = []

    @rule(count=st.integers(0, 12), depth=st.integers(0, 6))
    def most_probable(self, count: int, depth: int) -> None:
        nodes = self.tree.most_probable(count, min_log_prob=-depth - 0.5)  # every draft is -1 below its parent
        assert len(nodes) <= count
        assert len(set(map(id, nodes))) == len(nodes)
        assert [node.path_log_prob for node in nodes] == sorted((node.path_log_prob for node in nodes), reverse=True)
        assert all(node.parent is self.tree.head or node.parent in nodes[:index] for index, node in enumerate(nodes))
        if len(nodes) < count:
            assert len(nodes) == sum(len(path) - len(self.committed) <= depth for path in self.paths)

    @rule(position=st.integers(0, 40))
    def advance_root(self, position: int) -> None:
        self.tree.advance_root(position)
        self.root_position = max(self.root_position, min(position, len(self.committed) - 1))

    @invariant()
    def tree_and_meaning_agree(self) -> None:
        head = self.tree.head
        assert (head.position, head.token) == (len(self.committed) - 1, self.committed[-1])
        drafts = {self.committed + tuple(step.token for step in self.tree.path_to(node)) for node in self.tree.drafts()}
        assert drafts == self.paths
        spine = [self.tree.spine_node(position) for position in range(self.root_position, len(self.committed))]
        assert [node.token for node in spine if node] == list(self.committed[self.root_position :])
        if not self.forks:
            assert len(self.tree.nodes) == len(self.paths) + len(spine)


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_the_tree_means_a_set_of_paths = TreeMachine.TestCase


def test_a_draft_below_a_node_that_is_gone_joins_nothing_though_the_node_had_such_a_child() -> None:
    tree = DraftTree([1], max_position=100)
    gone = tree.add(tree.head, 5, log_prob=-0.1)
    assert gone is not None
    child = tree.add(gone, 6, log_prob=-0.1)
    tree.commit([7])
    tree.prune()
    assert child is not None
    assert child not in tree
    assert tree.join(gone, 6, log_prob=-0.1, claim=-0.1, now=1.0) is None
