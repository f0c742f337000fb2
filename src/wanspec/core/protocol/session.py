"""A request as the controller holds it: the tree, what each model has seen of it, its policy, its worker."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from wanspec.core.policy.drafting import estimates_of, offered_children
from wanspec.core.policy.interface import Outcome, Policy
from wanspec.core.policy.lookup import Lookup
from wanspec.core.protocol.effects import FinishReason, RoundFinished
from wanspec.core.protocol.events import RequestArrived
from wanspec.core.protocol.link import SessionLink, proposed_in
from wanspec.core.protocol.messages import OpenSession
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.model_view import ModelView
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree, Node
from wanspec.core.speculation.types import DraftChoices, NodeId, Position, TargetChoices, WorkerId


class Session:
    """One request in progress."""

    def __init__(self, request: RequestArrived, policy: Policy, calibration: Calibration) -> None:
        self.session_id = session_id = request.session_id
        self.placement = request.placement
        self.sampling = sampling = request.sampling
        self.ignores_end = request.ignores_end
        self.policy = policy
        self.reuse_key = reuse_key = request.reuse_key
        prompt_tokens = request.prompt_tokens
        self.tokens = list(prompt_tokens)
        """Prompt and committed tokens."""
        self.num_prompt_tokens = len(prompt_tokens)
        self._end_position = len(prompt_tokens) + request.max_tokens
        # The last token is chosen by the row before it, so a draft in its place would never be verified.
        self.tree = DraftTree(prompt_tokens, max_position=self._end_position - 2)
        self.target_view = ModelView(
            session_id,
            sampling,
            prompt_tokens,
            reuse_key=reuse_key,
            num_log_probs=request.num_log_probs,
            wants_entropy=policy.uses_entropy,
        )
        self.draft_view = ModelView(session_id, sampling, prompt_tokens, reuse_key=reuse_key)
        self._calibration = calibration
        self._lookup = Lookup(prompt_tokens) if policy.uses_lookup else None
        self._choices: dict[NodeId, DraftChoices] = {}
        """What the local draft model said after nodes that are still in the tree."""
        self.link: SessionLink | None = None
        self._openings = 0
        """Times that it was opened at a worker."""
        self.wait_until: float | None = None
        """When the policy's patience ends, while it waits."""
        self._waiting_since = 0.0
        self._round_began_at: float | None = None
        self.round_s: float | None = None
        """How long the newest round took, waits and local passes included; None for the first, which is the prefill."""
        self.waited_in_vain_s = 0.0
        """Spent waiting since a worker's draft was last accepted."""
        self._entropy_nats: float | None = None
        """Of the target's distribution for its last choice; None before the first round, and where the policy has no use for it."""
        self._was_waiting = False
        self._local_drafts, self._waits, self._waited_s = 0, 0, 0.0
        """What was done since the round before."""

    @property
    def end(self) -> Position:
        """Position of the next token to be committed."""
        return Position(len(self.tokens))

    @property
    def lacks_worker(self) -> bool:
        """Whether it could do with a worker, may have one, and has none."""
        return self.link is None and self.policy.drafting is not None and self.placement.offload

    def attach(self, worker_id: WorkerId, reliability: Reliability, *, reuse_number: int, now: float) -> OpenSession:
        """Tie the session to a worker; the message that opens it there."""
        drafting = self.policy.drafting
        assert drafting is not None, "a policy without a worker cannot be attached to one"
        self.tree.disown()
        self._openings += 1
        self.link = SessionLink(worker_id, self.tree, reliability, opening=self._openings, now=now, max_depth=drafting.max_depth)
        self.policy.opened(now=now)
        return OpenSession(
            session_id=self.session_id,
            opening=self._openings,
            tokens=tuple(self.tokens),
            sampling=self.sampling,
            drafting=drafting,
            reuse_number=reuse_number,
        )

    def wait(self, until: float, *, now: float) -> None:
        """The policy waits for the worker."""
        self.wait_until, self._waiting_since = until, now
        self._waits += not self._was_waiting

    def end_wait(self, *, now: float) -> None:
        """The policy, if it waits, is about to be asked again."""
        self._was_waiting = self.wait_until is not None
        if self.wait_until is not None:
            waited_s = min(now, self.wait_until) - self._waiting_since
            self.waited_in_vain_s += waited_s
            self._waited_s += waited_s
        self.wait_until = None

    def look_up(self) -> None:
        """Add the drafts that cost nothing."""
        if self._lookup is not None:
            self._lookup.grow(self.tree, path_prob_min=self.policy.local_drafting.path_prob_min)

    def draft_tokens(self, nodes: Sequence[Node]) -> int:
        """How many tokens the local draft model computes to expand these nodes; a prompt that it may have seen counts for nothing."""
        tokens = self.draft_view.num_to_compute(self.tree, nodes)
        return tokens - self.num_prompt_tokens if self.draft_view.is_empty and self.reuse_key is not None else tokens

    def merge_local(self, rows: tuple[Node, ...], choices: tuple[DraftChoices, ...]) -> None:
        """Add children to every node that the local draft model has scored."""
        self._local_drafts += 1
        self.policy.drafted()
        config = self.policy.local_drafting
        least = self.tree.head.path_log_prob + (math.log(config.path_prob_min) if config.path_prob_min else -math.inf)
        calibration = self._calibration if config.is_calibrated else None
        estimates = estimates_of([(ranking, calibration) for ranking in choices])
        for node, ranking, log_probs in zip(rows, choices, estimates, strict=True):
            if config.is_calibrated:
                self._choices[node.node_id] = ranking
            for token, log_prob in offered_children(ranking, log_probs, config):
                path_log_prob = node.path_log_prob + log_prob
                existing = node.children.get(token)
                if existing is None and path_log_prob >= least:
                    self.tree.add(node, token, log_prob=log_prob)
                elif existing is not None and (existing.arrived_at is not None or path_log_prob > existing.path_log_prob):
                    self.tree.reestimate(existing, path_log_prob)  # a worker may say anything

    def commit(
        self, rows: tuple[Node, ...], choices: TargetChoices, end_tokens: Collection[int], *, now: float
    ) -> tuple[Outcome, FinishReason | None, list[Node]]:
        """Commit what the target has chosen. Returns the round's outcome, why the request ends, if it does, and the new tokens' nodes."""
        accepted, rejected = self._judge({row.node_id for row in rows}, choices.tokens)
        tokens = list(choices.tokens[: self._end_position - self.end])
        reason = FinishReason.LENGTH if self.end + len(tokens) == self._end_position else None
        end = next((index for index, token in enumerate(tokens) if token in end_tokens), None)
        if end is not None:
            tokens = tokens[: end + 1]
            reason = FinishReason.END
        outcome = Outcome(
            drafted=len(rows) - 1,
            accepted=min(len(choices.tokens) - 1, len(tokens)),  # what the target accepted beyond the end is in no text
            entropy_nats=choices.entropy_nats,
            accepted_estimates=accepted,
            rejected_estimates=rejected,
        )
        self.tokens += tokens
        old_head = self.tree.head
        path = self.tree.commit(tokens)
        self._learn([old_head, *path], path)
        if self._lookup is not None:
            outcome = replace(outcome, num_free=self._lookup.committed(old_head, path))
        if any(node.arrived_at is not None for node in path[: outcome.accepted]):
            self.waited_in_vain_s = 0.0
        self.target_view.committed(path)
        self.draft_view.committed(path)
        if self.link is None:
            self.tree.advance_root(self.tree.head.position)
        self.round_s = None if self._round_began_at is None else now - self._round_began_at
        self._round_began_at = now
        self.policy.committed(outcome, now=now)
        return outcome, reason, path

    def finished_round(self, outcome: Outcome, path: Sequence[Node], *, verified_at: float) -> RoundFinished:
        """What there is to tell of the round that has just been committed; the next one begins. `verified_at`: when its pass began."""
        finished = RoundFinished(
            session_id=self.session_id,
            drafted=outcome.drafted,
            accepted=outcome.accepted,
            committed=len(path),
            is_prefill=self.round_s is None,
            entropy_nats=outcome.entropy_nats,
            entropy_before_nats=self._entropy_nats,
            accepted_estimates=outcome.accepted_estimates,
            rejected_estimates=outcome.rejected_estimates,
            worker_id=self.link.worker_id if self.link is not None else None,
            proposed=proposed_in(path) if self.link is not None else 0,
            draft_ages_s=tuple([max(0.0, verified_at - at) for node in path[: outcome.accepted] if (at := node.arrived_at) is not None]),
            local_drafts=self._local_drafts,
            waits=self._waits,
            waited_s=self._waited_s,
        )
        self._entropy_nats = outcome.entropy_nats
        self._local_drafts, self._waits, self._waited_s = 0, 0, 0.0
        return finished

    def _judge(self, verified: Collection[NodeId], tokens: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Estimates (probabilities) of the children that were put to the test and came true, and of those that did not."""
        accepted: list[float] = []
        rejected: list[float] = []
        node: Node | None = self.tree.head
        for token in tokens:
            assert node is not None, "the target went on after a token of its own"
            assert node.node_id in verified, "the target went on after a token that it did not verify"
            for child in node.children.values():
                if child.node_id not in verified:
                    continue
                came_true = child.token == token
                (accepted if came_true else rejected).append(math.exp(child.path_log_prob - node.path_log_prob))
                if self.link is not None and child.arrived_at is not None:
                    self.link.reliability.observe(child.claim, came_true=came_true)
            node = node.children.get(token)
        return tuple(accepted), tuple(rejected)

    def _learn(self, parents: Sequence[Node], path: Sequence[Node]) -> None:
        """What the target chose, for the calibration of the local draft model."""
        if not self._choices:
            return
        for parent, node in zip(parents, path, strict=False):
            choices = self._choices.get(parent.node_id)
            if choices is not None:
                self._calibration.observe(choices, node.token)
        self._choices = {node_id: choices for node_id, choices in self._choices.items() if node_id in self.tree.nodes}
