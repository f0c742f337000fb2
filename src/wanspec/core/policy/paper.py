"""The paper's controller (arXiv 2602.18931, Algorithm 1), as printed and as described in prose.

Verify a chain of k as soon as the tree is that deep. Whenever a round corrects the drafts, or commits a bonus token that the target was
undecided about (entropy above phi), note the time: the worker cannot have sent anything useful before a round trip has passed since.
Until then draft locally; after it, wait for the worker.

Departures, none of which a healthy worker meets: without a live worker the controller drafts locally, and it waits at most
`patience_s`. The paper leaves open which branch of a wide tree is verified; here it is the most probable one.
"""

from __future__ import annotations

from enum import StrEnum

from wanspec.core.policy.chain import patience_s
from wanspec.core.policy.interface import Decision, DraftLocally, Outcome, Policy, Situation, Verify, Wait
from wanspec.core.speculation.types import DraftingConfig


class StalenessRule(StrEnum):
    """When the worker counts as out of date."""

    PRINTED = "printed"
    """t_update + R > now, as in the listing."""
    PROSE = "prose"
    """t_update + R > now + T_draft, as in the text: only if a local draft step would be done before the worker's news is here."""


class Paper(Policy):
    """Algorithm 1. The worker's half, Algorithm 2, is `DraftingConfig` (b, s, theta)."""

    uses_entropy = True
    needs_draft_model = True

    def __init__(self, *, num_draft_tokens: int, entropy_threshold_nats: float, staleness: StalenessRule, drafting: DraftingConfig) -> None:
        self.drafting = drafting
        self._num_draft_tokens = num_draft_tokens
        self._entropy_threshold_nats = entropy_threshold_nats
        self._staleness = staleness
        self._updated_at = 0.0
        self._waiting_since = 0.0

    def decide(self, situation: Situation, *, now: float) -> Decision:
        tree = situation.tree
        path = tree.best_path(self._num_draft_tokens)
        if len(path) >= min(self._num_draft_tokens, tree.room):
            return Verify(tuple(path))
        until = max(self._waiting_since, self._updated_at + situation.rtt_s) + patience_s(situation, self._num_draft_tokens)
        if not situation.worker_is_live or self._is_stale(situation, now) or now >= until:
            return DraftLocally((path[-1] if path else tree.head,))
        return Wait(until)

    def opened(self, *, now: float) -> None:
        self._updated_at = now

    def committed(self, outcome: Outcome, *, now: float) -> None:
        self._waiting_since = now
        was_corrected = outcome.accepted < self._num_draft_tokens
        assert outcome.entropy_nats is not None, "it is asked for"
        if was_corrected or outcome.entropy_nats > self._entropy_threshold_nats:
            self._updated_at = now

    def _is_stale(self, situation: Situation, now: float) -> bool:
        ahead_s = situation.draft_step_s if self._staleness is StalenessRule.PROSE else 0.0
        return self._updated_at + situation.rtt_s > now + ahead_s
