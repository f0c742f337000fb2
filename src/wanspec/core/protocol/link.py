"""A session's tie to the worker that drafts for it, as the controller sees it.

It knows which of our nodes each of the worker's node ids means, which commits the worker has yet to acknowledge, and since when. All
that a worker says about a session is judged here: what is merely late is ignored, what cannot be is a RemoteProtocolError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count
from operator import lt

from msgspec import Struct

from wanspec.core.protocol.messages import ACKNOWLEDGE_S, MAX_WORKER_NODES, Drafts
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import MAX_DEPTH, WorkerId
from wanspec.errors import RemoteProtocolError

MAX_NODE_IDS = 2 * MAX_WORKER_NODES
"""Ids of a worker that may stand for nodes of one tree: an honest worker has one id for a node, and so never more than there are nodes."""


HELD_BY_PASS_S = 0.9 * ACKNOWLEDGE_S
"""A worker that has nothing to say of a commit for this long is in a pass; a little less than it waits, as round trips vary."""


class MergeResult(Struct, frozen=True, kw_only=True):
    """What became of one Drafts message."""

    joined: int
    """Nodes that entered the tree or met a node there; the next two are among them."""
    late: int
    """Nodes whose token had been committed before they came."""
    duplicates: int
    """Nodes that were there already."""
    stale: int
    """Nodes on a prefix that is no longer committed or open, and nodes sent twice."""
    refused: int
    """Nodes beyond a limit."""
    rtt_s: float | None
    """The round trip that its acknowledgement shows, if it is a new one."""


class SessionLink:
    """One session on one worker."""

    def __init__(
        self, worker_id: WorkerId, tree: DraftTree, reliability: Reliability, *, opening: int, now: float, max_depth: int = MAX_DEPTH
    ) -> None:
        """`max_depth`: how far below its root the worker was asked to draft."""
        self.worker_id = worker_id
        self._opening = opening
        self.num_opening_tokens = tree.head.position + 1
        """What the worker was told at first: the prompt, as a rule."""
        self.opened_at = self.told_at = now
        """When it was first told anything, and when last."""
        self.has_answered = False
        """Whether the worker has said anything of it."""
        self.computes_since: float | None = None
        """Since when the worker has been in a pass for it, as it says; None: it has since drafted, or said that it has nothing."""
        self.rejoins = (tree.head.position, now)
        """The newest committed position whose token the worker had not proposed when it was told of it, and when that was."""
        self._tree = tree
        self._max_depth = max_depth
        self.reliability = reliability
        self._nodes: dict[int, Node] = {}
        """The worker's node id -> our node."""
        self._ids_at_pruning = 0
        self._next_node_id = 1
        self._unacknowledged: deque[tuple[int, float]] = deque([(tree.head.position, now)])
        """(position of the newest token told, when it was told), oldest first."""

    @property
    def unacknowledged_since(self) -> float | None:
        """When the oldest commit went out that the worker has not acknowledged."""
        return self._unacknowledged[0][1] if self._unacknowledged else None

    @property
    def num_nodes(self) -> int:
        """Nodes in the tree that the worker has proposed."""
        return self._tree.num_arrived

    @property
    def newest_node_id(self) -> int:
        """The highest of the worker's ids that is under way no more."""
        return self._next_node_id - 1

    def told(self, path: Sequence[Node], *, now: float) -> None:
        """The worker has just been told every token up to the head, `path` being the new ones."""
        self._unacknowledged.append((self._tree.head.position, now))
        self.told_at = now
        for node in path:
            if node.arrived_at is None:
                self.rejoins = (node.position, now)

    def merge(self, drafts: Drafts, *, vocabulary_size: int, now: float, has_room: bool = True) -> MergeResult:
        """Join a worker's drafts to the tree. Raises RemoteProtocolError on what no honest worker sends.

        `has_room`: whether this worker may have more nodes, over all sessions.
        """
        self._check(drafts, vocabulary_size)
        if drafts.opening < self._opening:  # late: another time that this session was open there, with ids of its own
            return MergeResult(joined=0, late=0, duplicates=0, stale=len(drafts.tokens), refused=0, rtt_s=None)
        rtt_s = self._acknowledge(drafts, now)
        tree, nodes, worth = self._tree, self._nodes, self.reliability.log_prob  # each node counts
        base, head_position = tree.spine_node(drafts.base_position), tree.head.position
        deepest = drafts.base_position + self._max_depth
        joined = late = duplicates = refused = 0
        for node_id, parent_id, token, claim in zip(count(drafts.first_node_id), drafts.parent_ids, drafts.tokens, drafts.log_probs):
            if not has_room or tree.num_arrived >= MAX_WORKER_NODES:
                refused += 1
                continue
            parent = nodes.get(parent_id) if parent_id else base
            if parent is None or parent not in tree or node_id < self._next_node_id:
                continue
            if parent.position >= deepest:
                refused += 1
                continue
            is_known = token in parent.children
            node = tree.join(parent, token, log_prob=0.0 if is_known else worth(claim), claim=claim, now=now)
            if node is not None:
                if node.position <= head_position:
                    late += 1
                elif is_known:
                    duplicates += 1
                nodes[node_id] = node
                joined += 1
        self._next_node_id = max(self._next_node_id, drafts.first_node_id + len(drafts.tokens))
        self._forget_removed()
        stale = len(drafts.tokens) - joined - refused
        return MergeResult(joined=joined, late=late, duplicates=duplicates, stale=stale, refused=refused, rtt_s=rtt_s)

    def _check(self, drafts: Drafts, vocabulary_size: int) -> None:
        if drafts.opening > self._opening:
            raise RemoteProtocolError(
                f"it drafts for opening {drafts.opening} of session {drafts.session_id}, which has been opened {self._opening} times"
            )
        if drafts.base_position > self._tree.head.position:
            raise RemoteProtocolError(f"it acknowledges position {drafts.base_position}, but only {self._tree.head.position} is committed")
        if drafts.tokens and not 0 <= min(drafts.tokens) <= max(drafts.tokens) < vocabulary_size:
            outside = next(token for token in drafts.tokens if not 0 <= token < vocabulary_size)
            raise RemoteProtocolError(f"it drafted token {outside}, but the vocabulary has {vocabulary_size}")
        if not all(map(lt, drafts.parent_ids, count(drafts.first_node_id))) or min(drafts.parent_ids, default=0) < 0:
            pairs = enumerate(drafts.parent_ids, start=drafts.first_node_id)
            node_id, parent_id = next((node_id, parent_id) for node_id, parent_id in pairs if not 0 <= parent_id < node_id)
            raise RemoteProtocolError(f"its node {node_id} names {parent_id} as parent, which is not an earlier node")

    def _acknowledge(self, drafts: Drafts, now: float) -> float | None:
        """Take note of what the worker knows. The round trip, when this is the first answer to a commit."""
        rtt_s = None
        self.has_answered = True
        since = self.unacknowledged_since
        while self._unacknowledged and self._unacknowledged[0][0] <= drafts.base_position:
            position, told_at = self._unacknowledged.popleft()
            if position == drafts.base_position:
                rtt_s = max(0.0, now - told_at - drafts.held_s)
        if drafts.tokens:
            self.computes_since = None
        elif since is not None and rtt_s is not None:  # it has held the oldest of these commits for this long
            if now - since - rtt_s < HELD_BY_PASS_S:
                self.computes_since = None
            elif self.computes_since is None:
                self.computes_since = since
        self._tree.advance_root(drafts.base_position)
        return rtt_s

    def _forget_removed(self) -> None:
        if len(self._nodes) <= 2 * self._ids_at_pruning + 64:  # only when they have doubled, or each message could cost a full pass
            return
        self._nodes = {node_id: node for node_id, node in self._nodes.items() if node in self._tree}
        self._ids_at_pruning = len(self._nodes)
        if self._ids_at_pruning > MAX_NODE_IDS:
            raise RemoteProtocolError(f"it has {self._ids_at_pruning} ids for the nodes of one tree, at most {MAX_NODE_IDS} (MAX_NODE_IDS)")


def proposed_in(path: Sequence[Node]) -> int:
    """How many of these nodes a worker has proposed."""
    return sum([node.arrived_at is not None for node in path])
