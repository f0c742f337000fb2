"""What one model has seen of one session: turns "score these nodes" into the item of a forward pass.

The view mirrors the model's cache. Committed nodes that the model has scored move to its prefix; committed tokens that it has not are
appended to it; ancestors of a wanted node that it lacks are scored with it. A pass counts as done when it is planned, since passes of a
model run one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import NodeId, NodeSpec, Position, SamplingParams, ScoreItem, SessionId

CACHED_SLACK = 64
"""Node ids kept beyond twice the tree's before those that have left it are forgotten; they are never used again."""
NEAR_TOKENS = 64
"""Up to this many unseen tokens, a text is computed whole, and not counted: it takes no longer than a few drafts do."""
MAX_PIECE_TOKENS = 512
"""Most tokens of longer unseen texts that one pass computes, all sessions together.

Everybody else waits for such a pass. On an L40S with an 8B model, a worker and seven other users, a prompt of 16,000 tokens makes their
inter-token latency 55 ms (p95), with twice this 106 ms and computed whole 1.5 s; its own first token comes after 1.74 s instead of 1.71 and
1.52 s (`python bench/prompts.py`). With half of this it comes a third later on faster cards (`--preset h100-32b`), which compute 350 tokens
in the time of one.
"""


class PlannedItem(Struct, frozen=True, kw_only=True):
    """A session's part of a pass, and which node each row of the answer belongs to."""

    item: ScoreItem
    """The session's part of the pass."""
    rows: tuple[Node, ...]
    """The node that each row of the answer belongs to; none for a piece of a longer text."""


class ModelView:
    """Bookkeeping for one model and one session."""

    def __init__(
        self,
        session_id: SessionId,
        sampling: SamplingParams,
        tokens: Sequence[int],
        *,
        reuse_key: str | None = None,
        num_log_probs: int | None = None,
        wants_entropy: bool = False,
    ) -> None:
        """`reuse_key` is of the first item, `num_log_probs` and `wants_entropy` of every one."""
        self._session_id = session_id
        self._sampling = sampling
        self._reuse_key, self._num_log_probs, self._wants_entropy = reuse_key, num_log_probs, wants_entropy
        self._prefix_length = 0
        self._commit: list[NodeId] = []
        self._append: list[int] = list(tokens)
        self._cached: set[NodeId] = set()

    @property
    def is_empty(self) -> bool:
        """Whether the model has yet to see this session at all."""
        return self._prefix_length == 0

    def has_scored(self, node: Node) -> bool:
        """Whether `node` is in the model's cache."""
        return node.node_id in self._cached

    @property
    def num_seen(self) -> int:
        """Tokens of the committed text that the model has computed."""
        return self._prefix_length

    @property
    def may_have_kept(self) -> bool:
        """Whether the model may begin, or go on, from what it has kept of an earlier session."""
        return self._reuse_key is not None

    @property
    def num_unseen(self) -> int:
        """Newest tokens of the committed text that the model has yet to compute."""
        return len(self._append)

    def num_to_compute(self, tree: DraftTree, wanted: Iterable[Node]) -> int:
        """How many tokens a pass that scores the `wanted` nodes would compute; see `plan`."""
        counted: set[NodeId] = set()
        for node in wanted:
            step: Node | None = node
            while step is not tree.head and step is not None and step.node_id not in self._cached and step.node_id not in counted:
                counted.add(step.node_id)
                step = step.parent
        return len(self._append) + len(counted)

    def committed(self, nodes: Iterable[Node]) -> None:
        """Note nodes that were committed, in order."""
        for node in nodes:
            if not self._append and node.node_id in self._cached:
                self._commit.append(node.node_id)
            else:
                self._append.append(node.token)

    def plan_piece(self, tokens: int) -> PlannedItem:
        """The item that computes the next `tokens` of the unseen text, fewer than there are, and has no rows: nothing follows them yet."""
        piece, self._append = self._append[:tokens], self._append[tokens:]
        self._prefix_length += len(self._commit) + len(piece)
        item = ScoreItem(
            session_id=self._session_id,
            sampling=self._sampling,
            commit=tuple(self._commit),
            append=tuple(piece),
            prefix_length=self._prefix_length,
            reuse_key=self._reuse_key,
        )
        self._commit = []
        return PlannedItem(item=item, rows=())

    def plan(self, tree: DraftTree, wanted: Iterable[Node]) -> PlannedItem:
        """The item that scores the `wanted` nodes below the head, whatever they hang from, and the head where it was not scored yet."""
        if len(self._cached) > 2 * len(tree.nodes) + CACHED_SLACK:
            self._cached &= tree.nodes.keys()
        rows = [tree.head] if self._append else []
        missing: list[Node] = []
        for node in wanted:
            if node.node_id not in self._cached:
                missing += self._missing(tree, node)
        scored = (*rows, *missing)
        self._prefix_length += len(self._commit) + len(self._append)
        item = ScoreItem(
            session_id=self._session_id,
            sampling=self._sampling,
            commit=tuple(self._commit),
            append=tuple(self._append),
            nodes=tuple([_spec(tree, node) for node in missing]),
            prefix_length=self._prefix_length,
            next_positions=tuple([Position(row.position + 1) for row in scored]),
            reuse_key=self._reuse_key,
            num_log_probs=self._num_log_probs,
            wants_entropy=self._wants_entropy,
        )
        self._commit, self._append, self._reuse_key = [], [], None
        self._cached.add(tree.head.node_id)
        return PlannedItem(item=item, rows=scored)

    def _missing(self, tree: DraftTree, node: Node) -> list[Node]:
        """The nodes on the way from the head to `node` that the model has not scored; marks them as scored."""
        missing = []
        step: Node | None = node
        while step is not tree.head and step is not None and step.node_id not in self._cached:
            missing.append(step)
            self._cached.add(step.node_id)
            step = step.parent
        return missing[::-1]


class Allowance:
    """How much unseen text one pass may still compute."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.is_used = False
        """Whether the pass computes a part of a long text."""

    def plan(self, view: ModelView, tree: DraftTree, wanted: Sequence[Node]) -> PlannedItem | None:
        """A session's part of the pass: the wanted nodes, or a piece of the text before them; None: not in this pass."""
        unseen = view.num_unseen
        if unseen > NEAR_TOKENS:
            if not self._tokens:
                return None
            self.is_used = True
            if unseen > self._tokens:
                piece, self._tokens = self._tokens, 0
                return view.plan_piece(piece)
            self._tokens -= unseen
        return view.plan(tree, wanted)


def known_tokens(items: Sequence[ScoreItem]) -> int | None:
    """How many tokens a pass computes, prompts included; None where a model may have seen a part of them for an earlier session."""
    return sum([item.tokens for item in items]) if all(item.reuse_key is None for item in items) else None


def _spec(tree: DraftTree, node: Node) -> NodeSpec:
    parent_id = None if node.parent is None or node.parent is tree.head else node.parent.node_id
    return NodeSpec(node_id=node.node_id, parent_id=parent_id, token=node.token)
