"""What runs on a site's devices, and what runs next: the common passes of many sessions.

Those that want to verify make one batched target pass, those that want to draft one batched draft pass. Where both models share a device
and both are wanted, the more valuable pass runs first; optional nodes are dropped where they would make it too slow. Where the local draft
model has a device of its own, the two passes run side by side, for different sessions.

All sessions in a pass wait for all of it. So no pass computes more than MAX_PIECE_TOKENS of texts that the model has not seen: a long
prompt is computed in pieces, pass by pass, beside the other sessions' rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wanspec.core.policy.interface import Decision, DraftLocally, Verify
from wanspec.core.policy.pass_times import PassTimes
from wanspec.core.policy.sharing import best_size, counts_of, ranked
from wanspec.core.protocol.effects import Effect, StartDraft, StartVerify
from wanspec.core.protocol.events import PassKind
from wanspec.core.protocol.session import Session
from wanspec.core.speculation.model_view import MAX_PIECE_TOKENS, NEAR_TOKENS, Allowance, ModelView, known_tokens
from wanspec.core.speculation.tree import Node
from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.errors import LocalProtocolError

INITIAL_DRAFT_STEP_S = 0.001
"""Of the local draft model: low, so that it is tried and measured."""
INITIAL_TARGET_STEP_S = 0.03
NO_DRAFT_MODEL_S = 1e9
"""How long a pass takes of a draft model that is not there."""
TRIAL_SHARE = 0.01
"""Of the time, how much may go into finding out whether a draft model that seemed useless still is."""

_Rows = list[tuple[Session, tuple[Node, ...]]]
"""Sessions, and the nodes of each that a pass is about."""


@dataclass(frozen=True, slots=True)
class _Pass:
    rows: _Rows
    """For each row of the answer the node that it belongs to; no rows: a piece of a text."""
    tokens: int | None
    """See `known_tokens`."""
    computes_prompts: bool
    """Whether it computes a part of a long text, which is no sign of how long rounds take."""


class Passes:
    """See the module's text."""

    def __init__(self, *, has_draft_device: bool, has_draft_model: bool) -> None:
        """`has_draft_device`: the local draft model does not share the target's device. `has_draft_model`: there is one."""
        self._has_draft_device, self.has_draft_model = has_draft_device, has_draft_model
        self._in_flight: dict[PassKind, _Pass] = {}
        self._last_was_verify = False
        """Whether the newest pass was the target's."""
        self._last_caught_up = False
        """Whether the newest pass was the draft model's, with a part of a long text in it."""
        self.disturbed_at = -math.inf
        """When the newest pass that computed a part of a long text ended: rounds that began before took longer for it."""
        self._drafted_at = -math.inf
        """When the newest draft pass ended; minus infinity: there was none."""
        self._drafted_s = 0.0
        """How long the newest draft pass took."""
        # How long passes take, by their tokens.
        self.target_times = PassTimes(INITIAL_TARGET_STEP_S, tries_less=True)
        self.draft_times = PassTimes(INITIAL_DRAFT_STEP_S if has_draft_model else NO_DRAFT_MODEL_S, tries_less=True)

    @property
    def is_idle(self) -> bool:
        """Whether every device is free."""
        return not self._in_flight

    @property
    def has_room(self) -> bool:
        """Whether any device is free."""
        return len(self._in_flight) < 1 + self._has_draft_device

    @property
    def sessions(self) -> list[Session]:
        """Sessions that are in a pass."""
        return [session for running in self._in_flight.values() for session, _ in running.rows]

    @property
    def session_ids(self) -> set[SessionId]:
        """Ids of the sessions that are in a pass."""
        return {session.session_id for session in self.sessions}

    def start(self, decisions: Sequence[tuple[Session, Decision]]) -> list[Effect]:
        """Start what most need, where its device is free."""
        drafts = self.drafting(decisions)
        drafts_first = self._has_draft_device or self.are_drafts_first([decision for _, decision in decisions])
        if self._last_caught_up and not self._has_draft_device:  # a draft model that catches up in pieces takes turns with the target
            drafts_first = drafts_first and not any(isinstance(decision, Verify) for _, decision in decisions)
        effects: list[Effect] = []
        if PassKind.VERIFY not in self._in_flight and (self._has_draft_device or not drafts_first):
            verifies = self.nodes_to_verify(decisions, instead_of_drafts=not drafts_first)
            if items := self._begin(PassKind.VERIFY, verifies, lambda session: session.target_view):
                effects.append(StartVerify(items=items))
        if drafts and drafts_first:
            effects += self.start_draft(drafts)
        return effects

    def drafting(self, decisions: Sequence[tuple[Session, Decision]]) -> _Rows:
        """Who takes part in a local pass, if there is one: all who have anything of it."""
        drafting = [(session, decision) for session, decision in decisions if isinstance(decision, DraftLocally)]
        if self._has_draft_device:  # where nobody waits for it: all who are repaid its time
            drafting = [(session, decision) for session, decision in drafting if decision.gain_s > 0.0]
        if not self.draft_times.is_measured and all(decision.gain_s < math.inf for _, decision in drafting):
            # Nobody knows how long a pass takes: one session finds out. (A pass that may begin from a kept prefix says nothing, so that
            # there may be several such.) Policies that cannot say what drafts gain them draft at any price.
            drafting = drafting[:1]
        return [(session, decision.nodes) for session, decision in drafting]

    def start_draft(self, wanted: _Rows) -> list[Effect]:
        """Start a draft pass, where its device is free."""
        if PassKind.DRAFT in self._in_flight:
            return []
        items = self._begin(PassKind.DRAFT, wanted, lambda session: session.draft_view)
        return [StartDraft(items=items)] if items else []

    def is_draft_due(self, session: Session, now: float, *, num_sessions: int) -> bool:
        """Whether the local draft model was asked so long ago that its last pass, and the coming one, are next to nothing since then.

        The coming one is for `num_sessions` like this. Both may take TRIAL_SHARE of the time.
        """
        tokens = num_sessions * max(1, session.draft_tokens([session.tree.head]))
        if session.draft_view.num_unseen > NEAR_TOKENS:
            tokens = min(tokens, MAX_PIECE_TOKENS)
        coming_s = self.draft_times.expected_s(tokens)
        return now >= self._drafted_at + max(self._drafted_s, coming_s) / TRIAL_SHARE

    def end(self, kind: PassKind, duration_s: float | None = None, *, now: float) -> _Rows:
        """The pass in flight is over: its sessions, and the nodes that its rows are about. `duration_s`: None where it failed."""
        if kind not in self._in_flight:
            raise LocalProtocolError(f"no {kind.value} pass is in flight")
        ended = self._in_flight.pop(kind)
        if duration_s is not None and ended.tokens is not None:
            (self.target_times if kind is PassKind.VERIFY else self.draft_times).add(ended.tokens, duration_s)
        if duration_s is not None and kind is PassKind.DRAFT:
            self._drafted_at, self._drafted_s = now, duration_s
        if ended.computes_prompts:
            self.disturbed_at = now
        return ended.rows

    def are_drafts_first(self, decisions: Sequence[Decision], *, bystanders: int = 0) -> bool:
        """Whether the one device is to draft next.

        It is where that gains those who could do with it more than the others lose, who wait meanwhile, `bystanders` among them. Sessions
        that cannot say what it gains them take turns with those that want to verify.
        """
        drafters = [decision for decision in decisions if isinstance(decision, DraftLocally)]
        others = bystanders + sum(isinstance(decision, Verify) for decision in decisions)
        if not drafters:
            return False
        gain_s = math.fsum(decision.gain_s for decision in drafters)
        if gain_s == math.inf:
            return self._last_was_verify or not others
        return gain_s > others * self.draft_times.expected_s(sum(len(decision.nodes) for decision in drafters))

    def nodes_to_verify(self, decisions: Sequence[tuple[Session, Decision]], *, instead_of_drafts: bool) -> _Rows:
        """The nodes to verify in a common pass: of those that may give way, as many as are worth the time that all pay for them."""
        if instead_of_drafts:
            decisions = [(s, d.otherwise if isinstance(d, DraftLocally) and d.gain_s < math.inf else d) for s, d in decisions]
        verifies = [(session, decision) for session, decision in decisions if isinstance(decision, Verify)]
        sure_tokens = len(verifies) + sum(len(decision.nodes) for _, decision in verifies if not decision.gives_way)
        candidates = ranked([_gains_s(session, decision) if decision.gives_way else [] for session, decision in verifies])
        gains_s = [gain_s for gain_s, _ in candidates]
        most, _ = best_size(gains_s, self.target_times, sure_tokens=sure_tokens, waiting=len(verifies))
        counts = counts_of(candidates[:most], len(verifies))
        return [
            (session, decision.nodes[:count] if decision.gives_way else decision.nodes)
            for (session, decision), count in zip(verifies, counts, strict=True)
        ]

    def _begin(self, kind: PassKind, wanted: _Rows, view: Callable[[Session], ModelView]) -> tuple[ScoreItem, ...]:
        allowance = Allowance(MAX_PIECE_TOKENS)
        planned = [(session, allowance.plan(view(session), session.tree, nodes)) for session, nodes in wanted]
        parts = [(session, plan) for session, plan in planned if plan is not None]
        items = tuple([plan.item for _, plan in parts])
        if items:
            rows = [(session, plan.rows) for session, plan in parts]
            self._in_flight[kind] = _Pass(rows, known_tokens(items), computes_prompts=allowance.is_used)
            self._last_was_verify = kind is PassKind.VERIFY
            self._last_caught_up = allowance.is_used and not self._last_was_verify
        return items


def _gains_s(session: Session, decision: Verify) -> list[float]:
    """What verifying each of the nodes is worth, in seconds."""
    base = session.tree.head.path_log_prob
    return [decision.token_s * math.exp(node.path_log_prob - base) for node in decision.nodes]
