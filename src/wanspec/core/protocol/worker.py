"""The worker machine: drafts ahead for many sessions, waiting for nobody.

Theory of operation. Each session is a tree whose root is its head: the newest committed token the worker knows. Whenever the device is
free, the best leaves of all sessions go into one batched draft step; what comes out is offered to the controller and grows the trees. A
commit moves a head along its tokens: where the tree holds them, everything below is kept and drafting goes on as if nothing had
happened; where it does not, the next step scores the missing tokens on its way.

Every Drafts message acknowledges the newest commit; a session that has nothing to draft acknowledges with an empty one. What the
controller sends is checked too, and an impossible message is a RemoteProtocolError: the driver then ends the connection.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import assert_never

from wanspec.core.policy.drafting import MIN_LOG_PROB, Frontier, estimates_of, offered_children
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.sharing import best_rate, counts_of, ranked
from wanspec.core.protocol.effects import Effect, LeaveController, ReleaseSession, SendMessage, StartDraft
from wanspec.core.protocol.events import DeadlineReached, DraftFinished, MessageReceived, WorkerEvent
from wanspec.core.protocol.heartbeat import ASLEEP_S, CONTROLLER_LOST_S
from wanspec.core.protocol.messages import (
    ACKNOWLEDGE_S,
    MAX_HELD_S,
    MAX_NODE_ID,
    MAX_NODES_PER_FRAME,
    MAX_SEQUENCE_TOKENS,
    MAX_STEP_S,
    MAX_WORKER_NODES,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    OpenSession,
    Ping,
    Pong,
    Welcome,
)
from wanspec.core.protocol.reuse import NO_REUSE
from wanspec.core.speculation.calibration import Calibration, CalibrationBook
from wanspec.core.speculation.model_view import MAX_PIECE_TOKENS, Allowance, ModelView, PlannedItem, known_tokens
from wanspec.core.speculation.rankings import Rankings
from wanspec.core.speculation.sampling import check_sampling
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, NodeId, SessionId
from wanspec.errors import ConfigError, LocalProtocolError, RemoteProtocolError

STEP_SMOOTHING = 0.2
INITIAL_STEP_S = 0.01
"""Assumed before the first step."""
MAX_UNACKNOWLEDGED_NODES = 2 * MAX_WORKER_NODES
"""Sent for one session and not known to have arrived, beyond which it is not drafted for: 20 kB, so that a link slower than its drafts
holds up no news for long."""


class _Session:
    """One session's tree, and what the controller has yet to hear of it."""

    def __init__(self, message: OpenSession, context_length: int, calibration: Calibration, now: float) -> None:
        self.session_id = message.session_id
        self.opening = message.opening
        self.config = message.drafting
        self.tree = DraftTree(message.tokens, max_position=context_length - 1, max_nodes=MAX_WORKER_NODES)
        reuse_key = str(message.reuse_number) if message.reuse_number != NO_REUSE else None
        self.view = ModelView(message.session_id, message.sampling, message.tokens, reuse_key=reuse_key)
        self.owes_since: float | None = now
        """When the oldest commit came that is not acknowledged."""
        self._based_at = now
        """When the newest commit came."""
        self.rankings = Rankings(calibration if message.drafting.is_calibrated else None)
        """What the draft model has said of the nodes."""
        self._newest_sent = self._newest_arrived = 0
        """Ids of the newest node that was sent, and of the newest that the controller has confirmed."""
        self._frontier = Frontier()
        self._frontier.add(self.tree.head)

    def commit(self, message: Commit, now: float) -> list[Node]:
        """Move the head along the committed tokens that are news. Returns nodes that are worth offering since then."""
        known = self.tree.head.position + 1 - message.position
        if known < 0:
            raise RemoteProtocolError(f"a commit at position {message.position} leaves a gap after {self.tree.head.position}")
        if message.position + len(message.tokens) > MAX_SEQUENCE_TOKENS:  # we could not even acknowledge it
            raise RemoteProtocolError(
                f"a commit of {len(message.tokens)} tokens at position {message.position}, beyond MAX_SEQUENCE_TOKENS"
            )
        if not 0 <= message.newest_node_id <= self._newest_sent:
            raise RemoteProtocolError(f"a commit says that node {message.newest_node_id} has arrived, the newest is {self._newest_sent}")
        self._newest_arrived = max(self._newest_arrived, message.newest_node_id)
        self.owes_since = now if self.owes_since is None else self.owes_since
        news = message.tokens[known:]
        if not news:
            return []
        old_head = self.tree.head
        path = self.tree.commit(news)
        self.tree.prune()
        self.view.committed(path)
        self.tree.advance_root(self.tree.head.position)
        self.rankings.committed(self.tree, old_head, path)
        released = self._frontier.head_moved(self.tree, self.config)
        if not self.view.has_scored(self.tree.head) and self.tree.head not in self._frontier:
            self._frontier.add(self.tree.head)
        self._based_at = now
        return released

    @property
    def _is_too_far_ahead(self) -> bool:
        return self._newest_sent - self._newest_arrived > MAX_UNACKNOWLEDGED_NODES

    def take_leaves(self) -> list[Node]:
        """What to expand next."""
        places = (MAX_WORKER_NODES - len(self.tree.nodes)) // self.config.branch
        if places <= 0 or not self.tree.room or self._is_too_far_ahead:
            return []
        leaves = self._frontier.take(self.tree, self.config)
        self.give_back(leaves[places:])
        return leaves[:places]

    def give_back(self, leaves: list[Node]) -> None:
        """Leaves that were taken and will not be expanded now."""
        for leaf in leaves:
            self._frontier.add(leaf)

    def grow(self, parent: Node, ranking: DraftChoices, log_probs: Sequence[float]) -> list[Node]:
        """Hang the offered children under a node that was scored. Returns the new nodes."""
        self.rankings.note(parent, ranking)
        return self._frontier.offer(self.tree, parent, offered_children(ranking, log_probs, self.config), self.config)

    def messages(self, nodes: list[Node], step_s: float, now: float) -> list[SendMessage]:
        """Offer these nodes, in as many messages as it takes: when the head moves, more than one step's may be wanted at once."""
        starts = range(0, len(nodes), MAX_NODES_PER_FRAME)
        return [self.message(nodes[start : start + MAX_NODES_PER_FRAME], step_s, now) for start in starts]

    def message(self, nodes: list[Node], step_s: float, now: float) -> SendMessage:
        """Offer these nodes, at most MAX_NODES_PER_FRAME, and acknowledge."""
        self.owes_since = None
        if nodes:
            self._newest_sent = nodes[-1].node_id
        # Where we have stopped because too much is under way, an empty one says what should have arrived: it may all be lost.
        next_node_id = min(self._newest_sent + 1, MAX_NODE_ID) if self._is_too_far_ahead else 1
        drafts = Drafts(
            session_id=self.session_id,
            opening=self.opening,
            base_position=self.tree.head.position,
            held_s=min(now - self._based_at, MAX_HELD_S),
            step_s=min(step_s, MAX_STEP_S),
            first_node_id=nodes[0].node_id if nodes else NodeId(next_node_id),
            parent_ids=tuple([self._wire_id(node.parent) for node in nodes]),
            tokens=tuple([node.token for node in nodes]),
            log_probs=tuple([_log_prob(node) for node in nodes]),
        )
        return SendMessage(worker_id=None, message=drafts)

    def _wire_id(self, node: Node | None) -> int:
        return 0 if node is None or node is self.tree.head else node.node_id


def _log_prob(node: Node) -> float:
    """The node's own estimate, within what the wire can carry; a difference of sums may be off by a rounding error."""
    own = node.path_log_prob - (node.parent.path_log_prob if node.parent else 0.0)
    return min(0.0, max(MIN_LOG_PROB, own))


class Worker:
    """See the module's text."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        context_length: int,
        max_sessions: int,
        calibrations: CalibrationBook | None = None,
        connected_at: float | None = None,
    ) -> None:
        """`connected_at`: now, for the heartbeat; None: it begins with the controller's first word."""
        self._vocabulary_size = vocabulary_size
        self._context_length = context_length
        self._max_sessions = max_sessions
        self._sessions: dict[SessionId, _Session] = {}
        self._calibrations = calibrations or CalibrationBook()
        self._pass: list[tuple[_Session, tuple[Node, ...]]] | None = None
        self._pass_tokens: int | None = None
        """See `known_tokens`."""
        self._left_out: set[SessionId] = set()
        """Sessions whose prompts wait for a pass after the one in flight."""
        self._pass_times = PassTimes(INITIAL_STEP_S)
        self._step_s = 0.0
        """Smoothed duration of a pass, as the controller is told; 0: there was none."""
        self._heard_at = connected_at
        """When the controller last said anything; None: nobody watches."""
        self.is_draining = False
        """Whether the controller has said that it wants no more of us."""

    @property
    def num_sessions(self) -> int:
        """Sessions open."""
        return len(self._sessions)

    def handle(self, event: WorkerEvent, *, now: float) -> list[Effect]:
        """Take in what happened at `now` (seconds, any monotonic clock); what is to be done about it."""
        effects = self._apply(event, now)
        effects += self._start_pass()
        effects += self._acknowledge(now)
        return effects

    def next_deadline(self) -> float | None:
        """When to send DeadlineReached: the controller has not been heard, or a commit is to be acknowledged while a pass runs."""
        deadlines = [owes_since + ACKNOWLEDGE_S for s in self._sessions.values() if (owes_since := s.owes_since) is not None]
        if self._heard_at is not None:
            deadlines.append(self._heard_at + CONTROLLER_LOST_S)
        return min(deadlines, default=None)

    def _apply(self, event: WorkerEvent, now: float) -> list[Effect]:
        match event:
            case MessageReceived(message=message):
                return self._message_received(message, now)
            case DraftFinished():
                return self._draft_finished(event, now)
            case DeadlineReached():
                return self._check_pulse(now)
            case _:
                assert_never(event)

    def _message_received(self, message: ControllerMessage, now: float) -> list[Effect]:
        self._heard_at = now
        match message:
            case Ping(number=number):
                return [SendMessage(worker_id=None, message=Pong(number=number))]
            case OpenSession():
                self._open(message, now)
            case Commit():
                self._check_tokens(message.tokens)
                session = self._sessions.get(message.session_id)
                if session is not None and (released := session.commit(message, now)):
                    return [*session.messages(released, self._step_s, now)]
            case CloseSession(session_id=session_id):
                if self._sessions.pop(session_id, None) is not None:
                    return [ReleaseSession(session_id=session_id)]
            case Drain():
                self.is_draining = True
            case Welcome():
                raise RemoteProtocolError("a second welcome")
            case _:
                assert_never(message)
        return []

    def _check_pulse(self, now: float) -> list[Effect]:
        deadline = None if self._heard_at is None else self._heard_at + CONTROLLER_LOST_S
        if deadline is None or now < deadline:
            return []
        self._heard_at = now
        if now > deadline + ASLEEP_S:  # it is we who were away
            return []
        return [LeaveController(reason=f"the controller has not been heard for {CONTROLLER_LOST_S:g} s")]

    def _open(self, message: OpenSession, now: float) -> None:
        self._check_tokens(message.tokens)
        if not message.tokens:
            raise RemoteProtocolError(f"session {message.session_id} has no tokens")
        if message.session_id in self._sessions:
            return  # said twice
        if len(self._sessions) >= 2 * self._max_sessions:  # not once: a close may still be under way when the next open comes
            raise RemoteProtocolError(
                f"session {message.session_id} is far beyond the {self._max_sessions} sessions that this worker offered"
            )
        try:
            check_sampling(message.sampling)
        except ConfigError as error:
            raise RemoteProtocolError(f"session {message.session_id}: {error}") from error
        self._sessions[message.session_id] = _Session(
            message, self._context_length, self._calibrations.at(message.sampling.temperature), now
        )

    def _check_tokens(self, tokens: tuple[int, ...]) -> None:
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary_size:
            raise RemoteProtocolError(f"a token is outside the vocabulary of {self._vocabulary_size}")

    def _draft_finished(self, event: DraftFinished, now: float) -> list[Effect]:
        if self._pass is None:
            raise LocalProtocolError("no draft pass is in flight")
        finished, self._pass = self._pass, None
        if self._pass_tokens is not None:
            self._pass_times.add(self._pass_tokens, event.duration_s)
        self._step_s += STEP_SMOOTHING * (event.duration_s - self._step_s) if self._step_s else event.duration_s
        scored = [
            (session, parent, ranking)
            for (session, rows), ranked in zip(finished, event.choices, strict=True)
            if self._sessions.get(session.session_id) is session
            for parent, ranking in zip(rows, ranked, strict=True)
            if parent in session.tree  # it is still wanted
        ]
        estimates = estimates_of([(ranking, session.rankings.calibration) for session, _, ranking in scored])
        new: defaultdict[_Session, list[Node]] = defaultdict(list)
        for (session, parent, ranking), log_probs in zip(scored, estimates, strict=True):
            new[session] += session.grow(parent, ranking, log_probs)
        return [session.message(nodes, self._step_s, now) for session, nodes in new.items() if nodes]

    def _start_pass(self) -> list[Effect]:
        if self._pass is not None:
            return []
        wanted = self._within_reason([(session, leaves) for session in self._sessions.values() if (leaves := session.take_leaves())])
        allowance, self._left_out = Allowance(MAX_PIECE_TOKENS), set()
        planned: list[tuple[_Session, PlannedItem]] = []
        for session, leaves in wanted:
            plan = allowance.plan(session.view, session.tree, leaves)
            if plan is None or not plan.rows:
                session.give_back(leaves)
            if plan is not None:
                planned.append((session, plan))
            else:
                self._left_out.add(session.session_id)
        if not planned:
            return []
        self._pass = [(session, plan.rows) for session, plan in planned]
        items = tuple(plan.item for _, plan in planned)
        self._pass_tokens = known_tokens(items)
        return [StartDraft(items=items)]

    def _within_reason(self, wanted: list[tuple[_Session, list[Node]]]) -> list[tuple[_Session, list[Node]]]:
        """The leaves to expand in a common step: as many, the most probable first, as are worth the time that all pay for them."""
        probs = [[math.exp(leaf.path_log_prob - session.tree.head.path_log_prob) for leaf in leaves] for session, leaves in wanted]
        candidates = ranked(probs)
        most = best_rate([prob for prob, _ in candidates], self._pass_times)
        counts = counts_of(candidates[:most], len(probs))
        for (session, leaves), count in zip(wanted, counts, strict=True):
            session.give_back(leaves[count:])
        return [(session, leaves[:count]) for (session, leaves), count in zip(wanted, counts, strict=True) if count]

    def _acknowledge(self, now: float) -> list[Effect]:
        """Answer commits that no pass will answer, or not soon: a long prompt may take a minute, and the session must not seem lost."""
        in_pass = {session.session_id for session, _ in self._pass or ()}
        in_pass |= self._left_out
        due = [
            session
            for session in self._sessions.values()
            if session.owes_since is not None and (session.session_id not in in_pass or now >= session.owes_since + ACKNOWLEDGE_S)
        ]
        return [session.message([], self._step_s, now) for session in due]
