"""The draft tree of one session, the same on both sides of the WAN.

A node *is* its parent and its token, whoever proposed it and whenever it arrives: `add` joins an existing node rather than making a
second one. Committed tokens that are still in the tree form the *spine*, from the root to the *head*; the head is the end of the
committed sequence and drafts live below it. A worker keeps root and head together. A controller keeps its root at the newest committed
position that the worker has acknowledged, so that drafts based on an older head still find their place. What branches off the spine can
never be committed and is gone.

Positions are absolute; nothing here knows time, models or the wire.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter
from typing import NamedTuple, cast

from msgspec import Struct, field

from wanspec.core.speculation.types import NodeId, Position
from wanspec.errors import LocalProtocolError

MAX_TREE_NODES = 4096
"""Nodes that one site adds to a session's tree: far above what any policy uses. A node takes some 470 bytes, so these take 2 MB."""


class Node(Struct, eq=False):
    """A token that may follow its parent."""

    node_id: NodeId
    """The id of the node, in its tree."""
    parent: Node | None
    """The node before it; None: it is the root, or gone."""
    token: int
    """The token that it stands for."""
    position: Position
    """Where the token stands in the sequence."""
    path_log_prob: float
    """Sum of acceptance estimates (natural logarithms) from where the tree began; only differences below one head mean anything."""
    children: dict[int, Node] = field(default_factory=dict)
    """By token."""
    arrived_at: float | None = None
    """At the controller: when a worker proposed it (seconds); None: no worker has."""
    claim: float = 0.0
    """At the controller: the worker's own estimate given the parent (natural logarithm)."""


_PATH_LOG_PROB = attrgetter("path_log_prob")


class Fork(NamedTuple):
    """What was drafted in the place of a committed token."""

    parent: Node
    """The committed node before the choice."""
    children: dict[int, Node]
    """The parent's when the token was committed, by token."""
    chosen: Node
    """The committed token's node; one of the children, made if nobody had drafted it."""


class DraftTree:
    """Committed end and proposed continuations of one sequence."""

    def __init__(self, tokens: Sequence[int], *, max_position: int, max_nodes: int | None = None) -> None:
        """Start at the end of the committed `tokens` (at least one); no draft is kept beyond `max_position`.

        `max_nodes` limits what `add` and `grow` make; None: MAX_TREE_NODES. Nodes that a worker proposed (`join`) are not among these.
        """
        if not tokens:
            msg = "a draft tree needs at least one committed token"
            raise LocalProtocolError(msg)
        self._ids = cast("Iterator[NodeId]", count(1))
        self.max_position = max_position
        self._max_nodes = MAX_TREE_NODES if max_nodes is None else max_nodes
        self.num_arrived = 0
        """At the controller: nodes that the session's worker has proposed, those on the spine included."""
        self.nodes: dict[NodeId, Node] = {}
        self._forks: list[Fork] = []
        """Since the last `prune`."""
        self.root = self._create(None, tokens[-1], Position(len(tokens) - 1), 0.0)
        self.head = self.root

    def __contains__(self, node: Node) -> bool:
        return self.nodes.get(node.node_id) is node

    @property
    def size(self) -> int:
        """Nodes, those of the spine included."""
        return len(self.nodes)

    @property
    def room(self) -> int:
        """How many tokens deep a draft below the head may be."""
        return max(0, self.max_position - self.head.position)

    def add(self, parent: Node, token: int, *, log_prob: float) -> Node | None:
        """The child of `parent` with this token, made if need be.

        None where it cannot be of use: the parent is gone, the child would branch off the spine, lies beyond `max_position`, or the
        tree is full.
        """
        if (existing := parent.children.get(token)) is not None:
            return existing if self.nodes.get(existing.node_id) is existing else None
        if self._is_full or not self._takes_children(parent):
            return None
        return self._create(parent, token, Position(parent.position + 1), parent.path_log_prob + log_prob)

    def join(self, parent: Node, token: int, *, log_prob: float, claim: float, now: float) -> Node | None:
        """The child of `parent` with this token, which a worker has proposed and claims to be this probable; made if need be.

        None as with `add`, except that the caller limits how many nodes a worker may have (`num_arrived`).
        """
        nodes = self.nodes  # called for every draft that arrives: each look-up counts
        node = parent.children.get(token)
        if node is None:
            if not self._takes_children(parent):
                return None
            node = self._create(parent, token, Position(parent.position + 1), parent.path_log_prob + log_prob)
        elif nodes.get(node.node_id) is not node:
            return None
        if node.arrived_at is None:
            node.arrived_at, node.claim = now, claim
            self.num_arrived += 1
        return node

    def disown(self) -> None:
        """Make the tree ready for another worker: drafts of the last one stay, but count for no worker.

        Where that leaves more than this site may have itself, all drafts go: no series of workers can fill the memory.
        """
        self.advance_root(self.head.position)
        if len(self.nodes) > self._max_nodes:
            for child in self.head.children.values():
                self._remove_subtree(child)
            self.head.children = {}
        for node in self.nodes.values():  # what is yet to be pruned, too
            if node is not self.head:
                node.arrived_at = None
        self.num_arrived = int(self.head.arrived_at is not None)

    def grow(self, parent: Node, children: Iterable[tuple[int, float]]) -> list[Node]:
        """Add (token, log_prob) children that `parent` does not have yet; those that were made, for the reasons of `add` perhaps none."""
        if not self._takes_children(parent):
            return []
        position = Position(parent.position + 1)
        new: list[Node] = []
        for token, log_prob in children:
            if token not in parent.children and not self._is_full:
                new.append(self._create(parent, token, position, parent.path_log_prob + log_prob))
        return new

    def reestimate(self, node: Node, path_log_prob: float) -> None:
        """Another estimate of a node; what is below it moves with it."""
        shift = path_log_prob - node.path_log_prob
        pending = [node]
        while pending:
            moved = pending.pop()
            moved.path_log_prob += shift
            pending.extend(moved.children.values())

    def commit(self, tokens: Iterable[int]) -> list[Node]:
        """Move the head along `tokens`, which are final. Returns their nodes; those that nobody proposed are made.

        Drafts that branch off are below the head no more. They stay in memory until `prune`, which must come before anything is added.
        """
        path = []
        for token in tokens:
            parent, children = self.head, self.head.children
            self.head = children.get(token) or self._create(parent, token, Position(parent.position + 1), parent.path_log_prob)
            parent.children = {token: self.head}
            self._forks.append(Fork(parent, children, self.head))
            path.append(self.head)
        return path

    def prune(self) -> list[Fork]:
        """Forget the drafts that have branched off since the last call; says which there were, in the order of the committed tokens."""
        forks, self._forks = self._forks, []
        for fork in forks:
            for child in fork.children.values():
                if child is not fork.chosen:
                    self._remove_subtree(child)
        return forks

    def advance_root(self, position: int) -> None:
        """Forget the spine before `position` (at most the head's)."""
        while self.root.position < min(position, self.head.position):
            (child,) = self.root.children.values()
            self._delete(self.root)
            self.root.children = {}
            child.parent = None
            self.root = child

    def spine_node(self, position: int) -> Node | None:
        """The committed node at this position, if it is still in the tree."""
        if not self.root.position <= position <= self.head.position:
            return None
        node = self.root
        while node.position < position:
            (node,) = node.children.values()
        return node

    def drafts(self) -> Iterator[Node]:
        """Every node below the head, parents before children."""
        pending = list(self.head.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    def most_probable(self, limit: int, *, min_log_prob: float) -> list[Node]:
        """The `limit` most probable nodes below the head whose path, from it, is at least as probable as that; best first, connected."""
        least = self.head.path_log_prob + min_log_prob
        best: list[Node] = []
        heap = [(-child.path_log_prob, child.node_id, child) for child in self.head.children.values()]
        heapq.heapify(heap)
        while heap and len(best) < limit:
            _, _, node = heapq.heappop(heap)
            if node.path_log_prob < least:
                break
            best.append(node)
            for child in node.children.values():
                heapq.heappush(heap, (-child.path_log_prob, child.node_id, child))
        return best

    def best_path(self, depth: int, *, min_log_prob: float = -math.inf) -> list[Node]:
        """From below the head, the most probable child at each step, at most `depth` nodes and as probable as that from the head on."""
        node = self.head
        least = node.path_log_prob + min_log_prob
        path: list[Node] = []
        while node.children and len(path) < depth:
            node = max(node.children.values(), key=_PATH_LOG_PROB)
            if node.path_log_prob < least:
                break
            path.append(node)
        return path

    def path_to(self, node: Node) -> list[Node]:
        """The nodes from below the head down to `node`."""
        path = []
        while node is not self.head:
            path.append(node)
            if node.parent is None:
                msg = f"node {node.node_id} is not below the head"
                raise LocalProtocolError(msg)
            node = node.parent
        return path[::-1]

    @property
    def _is_full(self) -> bool:
        return len(self.nodes) - self.num_arrived >= self._max_nodes

    def _takes_children(self, parent: Node) -> bool:
        return self.nodes.get(parent.node_id) is parent and self.head.position <= parent.position < self.max_position

    def _delete(self, node: Node) -> None:
        del self.nodes[node.node_id]
        self.num_arrived -= node.arrived_at is not None

    def _create(self, parent: Node | None, token: int, position: Position, path_log_prob: float) -> Node:
        node_id = next(self._ids)
        node = self.nodes[node_id] = Node(node_id, parent, token, position, path_log_prob)
        if parent is not None:
            parent.children[token] = node
        return node

    def _remove_subtree(self, top: Node) -> None:
        pending = [top]
        for node in pending:  # which grows
            self._delete(node)
            node.parent = None  # or the two would keep each other until somebody collects garbage
            pending += node.children.values()
