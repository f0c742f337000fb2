"""A text as the site with the target holds it: what its draft model has seen of it, its policy, and what each round teaches.

A round goes like this. The policy is asked (`look_up` first adds the drafts that cost nothing), a pass is planned by a view, and the tokens
that the target chose are committed (`commit`). What the round teaches is left for later, when the next pass has started (`learn`): the
device waits for the decision, and nobody for the lesson.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from wanspec.core.policy.drafting import offered_children
from wanspec.core.policy.interface import Outcome, Policy
from wanspec.core.policy.lookup import Lookup
from wanspec.core.protocol.effects import FinishReason, RoundFinished
from wanspec.core.protocol.events import RequestArrived
from wanspec.core.protocol.link import SessionLink, proposed_in
from wanspec.core.protocol.messages import OpenSession
from wanspec.core.protocol.placement import Placement
from wanspec.core.speculation.calibration import Calibration
from wanspec.core.speculation.model_view import ModelView
from wanspec.core.speculation.rankings import Rankings
from wanspec.core.speculation.reliability import Reliability
from wanspec.core.speculation.tree import DraftTree, Fork, Node
from wanspec.core.speculation.types import DraftChoices, Position, SamplingParams, SessionId, TargetChoices, WorkerId


class Round(NamedTuple):
    """A round that was committed and has yet to be learned from."""

    finished: RoundFinished
    """What became of it, but for the estimates."""
    path: list[Node]
    """The committed tokens' nodes."""
    verified: Collection[Node]
    """The drafts that the target scored."""
    link: SessionLink | None
    """To the worker that had drafted for it."""
    took_s: float | None
    """How long it took, local passes included; None where that says nothing: of the first, or with somebody's long prompt in it."""
    alone_s: float | None
    """What its tokens would have cost without a worker, in seconds; None: not known."""


class Session:
    """One text in progress: its tokens, its draft tree, its policy, and the worker that drafts for it."""

    target_view: ModelView
    """What the target has seen, where this site runs its passes."""

    def __init__(
        self,
        session_id: SessionId,
        tokens: Sequence[int],
        *,
        max_length: int,
        sampling: SamplingParams,
        policy: Policy,
        calibration: Calibration,
        placement: Placement,
        reuse_key: str | None = None,
    ) -> None:
        """`max_length`: tokens of the longest text. `calibration`: of the local draft model at the text's temperature."""
        self.session_id, self.sampling, self.placement, self.reuse_key = session_id, sampling, placement, reuse_key
        self.policy = policy
        self.tokens = list(tokens)
        """Prompt and committed tokens."""
        self.num_prompt_tokens = len(tokens)
        # The last token is chosen by the row before it, so a draft in its place would never be verified.
        self.tree = DraftTree(tokens, max_position=max_length - 2)
        self.link: SessionLink | None = None
        """Its tie to the worker that drafts for it; None: nobody does."""
        self._openings = 0
        """Times that it was opened at a worker."""
        self.draft_view = ModelView(session_id, sampling, tokens, reuse_key=reuse_key)
        self.rankings = Rankings(calibration if policy.local_drafting.is_calibrated else None)
        self._lookup = Lookup(tokens) if policy.uses_lookup else None
        self.wait_until: float | None = None
        """When the policy's patience ends, while it waits."""
        self._was_waiting, self._waiting_since = False, 0.0
        self.waited_in_vain_s = 0.0
        """Spent waiting since a worker's draft was last accepted."""
        self._local_drafts, self._waits, self._waited_s = 0, 0, 0.0
        """Since the newest round: local passes that it took part in, times that the policy chose to wait, and for how long."""
        self._round_began_at: float | None = None
        self._entropy_nats: float | None = None
        """Of the target's distribution for its last choice; None before the first round, and where the policy has no use for it."""
        self.round: Round | None = None
        """What has been committed and not been learned from."""

    @property
    def end(self) -> Position:
        """Position of the next token to be committed."""
        return Position(len(self.tokens))

    @property
    def lacks_worker(self) -> bool:
        """Whether it could do with a worker, may have one, and has none."""
        return self.link is None and self.policy.drafting is not None and self.placement.offload

    @property
    def is_prefilling(self) -> bool:
        """Whether the target has yet to compute all of the prompt; of an engine's row nobody says, and it counts as done."""
        return False

    @property
    def num_undrafted(self) -> int:
        """Newest tokens, written here, that the local draft model has not seen."""
        return min(self.draft_view.num_unseen, self.end - self.num_prompt_tokens)

    def attach(self, worker_id: WorkerId, reliability: Reliability, *, reuse_number: int, now: float) -> OpenSession:
        """Tie it to a worker; the message that opens it there."""
        drafting = self.policy.drafting
        assert drafting is not None, "a policy without a worker cannot be attached to one"
        self.policy.opened(now=now)
        self.tree.disown()
        self._openings += 1
        self.link = SessionLink(worker_id, self.tree, reliability, opening=self._openings, now=now, max_depth=drafting.max_depth)
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
            self._waited_s += waited_s
            self.waited_in_vain_s += waited_s
        self.wait_until = None

    def look_up(self) -> None:
        """Add the drafts that cost nothing."""
        if self._lookup is not None:
            self._lookup.grow(self.tree, path_prob_min=self.policy.local_drafting.path_prob_min)

    def draft_tokens(self, nodes: Sequence[Node]) -> int:
        """How many tokens the local draft model computes to expand these nodes; a prompt that it may have seen counts for nothing."""
        tokens = self.draft_view.num_to_compute(self.tree, nodes)
        kept = self.num_prompt_tokens - self.draft_view.num_seen if self.draft_view.may_have_kept else 0
        return tokens - max(0, kept)

    def merge_local(self, rows: Sequence[Node], choices: Sequence[DraftChoices], estimates: Sequence[Sequence[float]]) -> None:
        """Add children to every node that the local draft model has scored.

        `estimates`: for each row, log probabilities of its guesses, best first.
        """
        self._local_drafts += 1
        config = self.policy.local_drafting
        least = self.tree.head.path_log_prob + (math.log(config.path_prob_min) if config.path_prob_min else -math.inf)
        for node, ranking, log_probs in zip(rows, choices, estimates, strict=True):
            self.rankings.note(node, ranking)
            if self._lookup is not None and ranking.tokens:
                self._lookup.ranked(self.tree, node, ranking.tokens[0])
            for token, log_prob in offered_children(ranking, log_probs, config):
                path_log_prob = node.path_log_prob + log_prob
                existing = node.children.get(token)
                if existing is None and path_log_prob >= least:
                    self.tree.add(node, token, log_prob=log_prob)
                elif existing is not None and (existing.arrived_at is not None or path_log_prob > existing.path_log_prob):
                    self.tree.reestimate(existing, path_log_prob)  # a worker may say anything

    def commit(
        self, tokens: Sequence[int], outcome: Outcome, verified: Collection[Node], *, verified_at: float, disturbed_at: float, now: float
    ) -> list[Node]:
        """Commit tokens that the target chose. Returns their nodes; `round` then has what there is to learn.

        `verified`: the drafts that the target has scored from `verified_at` on; `outcome`: what it made of them. A round that began before
        `disturbed_at` is not timed: somebody's long prompt was computed in it.
        """
        old_head = self.tree.head
        self.tokens += tokens
        path = self.tree.commit(tokens)
        if self.link is None:
            self.tree.advance_root(self.tree.head.position)
        if self._lookup is not None:
            outcome = replace(outcome, num_free=self._lookup.committed(old_head, path))
        if any(node.arrived_at is not None for node in path[: outcome.accepted]):
            self.waited_in_vain_s = 0.0
        self.draft_view.committed(path)
        self.policy.committed(outcome, now=now)
        began_at = self._round_began_at
        took_s = None if began_at is None or began_at < disturbed_at else now - began_at
        alone_s = None if self.policy.alone_token_s is None else self.policy.alone_token_s * len(path)
        finished = self._finished(outcome, path, verified_at=verified_at)
        self.round = Round(finished, path, verified, self.link, took_s, alone_s)
        self._round_began_at = now
        return path

    def learn(self) -> Round:
        """Learn from `round`; returns it, complete."""
        assert self.round is not None, "there is a round to learn from"
        done, self.round = self.round, None
        forks = self.tree.prune()
        self.rankings.committed(self.tree, forks[0].parent, done.path)
        if self.link is not None and done.link is self.link:
            check_claims(forks, self.link.reliability)
        accepted, rejected = tested_estimates(forks, done.verified)
        return done._replace(finished=replace(done.finished, accepted_estimates=accepted, rejected_estimates=rejected))

    def _finished(self, outcome: Outcome, path: Sequence[Node], *, verified_at: float) -> RoundFinished:
        """What is known of the newest round at once; the next one begins."""
        finished = RoundFinished(
            session_id=self.session_id,
            drafted=outcome.drafted,
            accepted=outcome.accepted,
            committed=len(path),
            is_prefill=self.is_prefilling,
            entropy_nats=outcome.entropy_nats,
            entropy_before_nats=self._entropy_nats,
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


class RequestSession(Session):
    """A request's text, which this site's target writes."""

    def __init__(self, request: RequestArrived, policy: Policy, calibration: Calibration) -> None:
        self._end_position = len(request.prompt_tokens) + request.max_tokens
        super().__init__(
            request.session_id,
            request.prompt_tokens,
            max_length=self._end_position,
            sampling=request.sampling,
            policy=policy,
            calibration=calibration,
            placement=request.placement,
            reuse_key=request.reuse_key,
        )
        self.ignores_end = request.ignores_end
        self.target_view = ModelView(
            self.session_id,
            request.sampling,
            request.prompt_tokens,
            reuse_key=request.reuse_key,
            num_log_probs=request.num_log_probs,
            wants_entropy=policy.uses_entropy,
        )

    @property
    def is_prefilling(self) -> bool:
        return self._round_began_at is None

    def verified(
        self,
        rows: tuple[Node, ...],
        choices: TargetChoices,
        end_tokens: Collection[int],
        *,
        verified_at: float,
        disturbed_at: float,
        now: float,
    ) -> tuple[list[Node], FinishReason | None]:
        """Commit what the target has chosen after these rows, the head's first. The new nodes, and why the request ends, if it does."""
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
        )
        path = self.commit(tokens, outcome, rows[1:], verified_at=verified_at, disturbed_at=disturbed_at, now=now)
        self.target_view.committed(path)
        return path, reason


def tested_estimates(forks: Sequence[Fork], verified: Collection[Node]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How probable verified drafts had been estimated, given their parents: those that came true, and those beside them that did not."""
    ids = {node.node_id for node in verified}
    accepted: list[float] = []
    rejected: list[float] = []
    for fork in forks:
        for child in fork.children.values():
            if child.node_id in ids:
                prob = math.exp(child.path_log_prob - fork.parent.path_log_prob)
                (accepted if child is fork.chosen else rejected).append(prob)
    return tuple(accepted), tuple(rejected)


def check_claims(forks: Sequence[Fork], reliability: Reliability) -> None:
    """Compare what a worker has claimed with what was committed in these places, verified or not."""
    for fork in forks:
        for child in fork.children.values():
            if child.arrived_at is not None:
                reliability.observe(child.claim, came_true=child is fork.chosen)
