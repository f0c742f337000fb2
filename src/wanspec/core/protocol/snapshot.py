"""What goes on at one moment, for an operator to see: the workers, the sessions, and the draft tree of one of them.

It is read from the machine between two events and changes nothing. It is bounded, however large a tree is, and no token of a prompt is in
it; drafts may repeat some, as the text does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct

from wanspec.core.protocol.pool import PooledWorker
from wanspec.core.protocol.session import Session
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import NodeId, Position, SessionId, WorkerId

MAX_SHOWN_DRAFTS = 96
"""Of a tree, the most probable ones: about what fits on a screen, and more than a verify takes."""
MAX_SHOWN_COMMITTED = 16
"""Of a tree's spine, the newest: a worker over any honest link has fewer to acknowledge."""


class WorkerSnapshot(Struct, frozen=True, kw_only=True):
    """A worker that is connected."""

    worker_id: WorkerId
    """The id of its connection."""
    name: str
    """How an operator knows it."""
    labels: tuple[str, ...]
    """What it says it is, as KEY=VALUE."""
    rtt_s: float | None
    """None until it has been measured."""
    step_s: float
    """Of its draft step, as it says."""
    share: float | None
    """Of the tokens that its sessions committed lately, how much it had proposed, 0 to 1; None before there are any."""
    sessions: int
    """Sessions that it drafts for now."""
    max_sessions: int
    """Sessions that it is willing to draft for at a time."""
    rests_s: float
    """How much longer it rests; 0: it does not."""


class SessionSnapshot(Struct, frozen=True, kw_only=True):
    """A request in progress."""

    session_id: SessionId
    """The id of the session."""
    worker_id: WorkerId | None
    """Who drafts for it now."""
    drafts: int
    """Nodes below its head."""


class NodeSnapshot(Struct, frozen=True, kw_only=True):
    """A node of a draft tree."""

    node_id: NodeId
    """The id of the node, in its tree."""
    parent_id: NodeId | None
    """None: the parent is not shown, or is gone."""
    token: int | None
    """None: it belongs to the prompt."""
    position: Position
    """Where its token stands in the sequence."""
    probability: float
    """That the text goes this way from the head on, as far as is known, 0 to 1; of a committed one, 1."""
    is_committed: bool
    """Whether its token is final."""
    is_from_worker: bool
    """Whether the present worker has proposed it, be it late; else it was drafted here, looked up, or added by the target."""


class TreeSnapshot(Struct, frozen=True, kw_only=True):
    """The draft tree of a session: the end of what is committed, oldest first, then drafts, parents before children."""

    session_id: SessionId
    """The session that the tree is of."""
    head_id: NodeId
    """The newest committed node."""
    nodes: tuple[NodeSnapshot, ...]
    """Committed nodes, oldest first, then drafts, parents before children."""
    left_out: int
    """Drafts that are not shown, less probable than those that are."""


class Snapshot(Struct, frozen=True, kw_only=True):
    """A controller at one moment."""

    workers: tuple[WorkerSnapshot, ...]
    """Oldest first, as are the sessions."""
    sessions: tuple[SessionSnapshot, ...]
    """Requests in progress, oldest first."""
    tree: TreeSnapshot | None
    """The draft tree of the session that was asked for; None: there is no such session."""


def take_snapshot(
    workers: Iterable[PooledWorker], sessions: Mapping[SessionId, Session], session_id: SessionId | None, *, now: float
) -> Snapshot:
    """All workers and sessions, and the tree of the one that is named."""
    shown = sessions.get(session_id) if session_id is not None else None
    return Snapshot(
        workers=tuple(_worker(worker, now) for worker in workers),
        sessions=tuple(
            SessionSnapshot(
                session_id=session.session_id,
                worker_id=session.link.worker_id if session.link is not None else None,
                drafts=_num_drafts(session),
            )
            for session in sessions.values()
        ),
        tree=_tree(shown) if shown is not None else None,
    )


def _worker(worker: PooledWorker, now: float) -> WorkerSnapshot:
    measured = [rtt for rtt in (worker.rtt, worker.heartbeat.rtt) if rtt.min_s < math.inf]
    return WorkerSnapshot(
        worker_id=worker.worker_id,
        name=worker.name,
        labels=worker.labels,
        rtt_s=measured[0].smoothed_s if measured else None,
        step_s=worker.step_s,
        share=worker.proposed.top / worker.proposed.bottom if worker.proposed.bottom else None,
        sessions=len(worker.sessions),
        max_sessions=worker.max_sessions,
        rests_s=max(0.0, worker.rests_until - now) if worker.rests_until is not None else 0.0,
    )


def _num_drafts(session: Session) -> int:
    return sum(1 for _ in session.tree.drafts())


def _tree(session: Session) -> TreeSnapshot:
    drafts = session.tree.most_probable(MAX_SHOWN_DRAFTS, min_log_prob=-math.inf)
    spine = _spine(session)
    return TreeSnapshot(
        session_id=session.session_id,
        head_id=session.tree.head.node_id,
        nodes=tuple(_node(session, node, is_first=node is spine[0]) for node in (*spine, *drafts)),
        left_out=_num_drafts(session) - len(drafts),
    )


def _spine(session: Session) -> list[Node]:
    """The head, and what was committed before it, as far as it is still in the tree, and was not the prompt."""
    spine, node = [session.tree.head], session.tree.head.parent
    while node is not None and node.position >= session.num_prompt_tokens and len(spine) < MAX_SHOWN_COMMITTED:
        spine.append(node)
        node = node.parent
    return spine[::-1]


def _node(session: Session, node: Node, *, is_first: bool) -> NodeSnapshot:
    head = session.tree.head
    is_committed = node.position <= head.position
    return NodeSnapshot(
        node_id=node.node_id,
        parent_id=None if is_first or node.parent is None else node.parent.node_id,
        token=node.token if node.position >= session.num_prompt_tokens else None,
        position=node.position,
        probability=1.0 if is_committed else math.exp(min(0.0, node.path_log_prob - head.path_log_prob)),
        is_committed=is_committed,
        is_from_worker=node.arrived_at is not None,
    )
