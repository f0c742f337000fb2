"""The baselines that verify a chain: plain decoding, drafting on the spot, and drafting only far away."""

from __future__ import annotations

import math

from wanspec.core.policy.interface import Decision, DraftLocally, Outcome, Policy, Situation, Verify, Wait
from wanspec.core.speculation.types import DraftingConfig


class Autoregressive(Policy):
    """Plain target decoding: one token a pass."""

    def decide(self, situation: Situation, *, now: float) -> Decision:
        del situation, now
        return Verify()


class Colocated(Policy):
    """Standard speculative decoding: draft a chain of depth `num_draft_tokens` locally, then verify it."""

    needs_draft_model = True

    def __init__(self, *, num_draft_tokens: int) -> None:
        self._num_draft_tokens = num_draft_tokens

    def decide(self, situation: Situation, *, now: float) -> Decision:
        del now
        tree = situation.tree
        path = tree.best_path(self._num_draft_tokens)
        if len(path) < min(self._num_draft_tokens, tree.room):
            return DraftLocally((path[-1] if path else tree.head,))
        return Verify(tuple(path))


class ColocatedTree(Policy):
    """Speculative decoding with a tree drafted on the spot: `levels` batched local passes, then a pass over the most probable nodes."""

    needs_draft_model = True

    def __init__(self, *, levels: int, verify_width: int, local_drafting: DraftingConfig, uses_lookup: bool) -> None:
        self.local_drafting = local_drafting
        self.uses_lookup = uses_lookup
        self._levels = levels
        self._verify_width = verify_width
        self._drafted = 0

    def decide(self, situation: Situation, *, now: float) -> Decision:
        del now
        tree = situation.tree
        if self._drafted < min(self._levels, tree.room):
            nodes = (tree.head, *tree.most_probable(tree.size, min_log_prob=-math.inf))
            fresh = [node for node in nodes if node.position < tree.max_position and not situation.has_drafted(node)][
                : self.local_drafting.leaves
            ]
            if fresh:
                self._drafted += 1
                return DraftLocally(tuple(fresh))
        return Verify(tuple(tree.most_probable(self._verify_width, min_log_prob=-math.inf)))

    def committed(self, outcome: Outcome, *, now: float) -> None:
        self._drafted = 0


class Remote(Policy):
    """Verify what the worker has drafted, `num_draft_tokens` at a time; never draft locally.

    Waits for the worker as long as its drafts may reasonably take, then decodes with what is there, so that nothing hangs on it.
    """

    def __init__(self, *, num_draft_tokens: int, drafting: DraftingConfig) -> None:
        self.drafting = drafting
        self._num_draft_tokens = num_draft_tokens
        self._waiting_since = 0.0

    def decide(self, situation: Situation, *, now: float) -> Decision:
        path = situation.tree.best_path(self._num_draft_tokens)
        if len(path) >= min(self._num_draft_tokens, situation.tree.room):
            return Verify(tuple(path))
        until = self._waiting_since + patience_s(situation, self._num_draft_tokens)
        if situation.worker_is_live and now < until:
            return Wait(until)
        return Verify(tuple(path))

    def opened(self, *, now: float) -> None:
        self._waiting_since = now

    def committed(self, outcome: Outcome, *, now: float) -> None:
        self._waiting_since = now


def patience_s(situation: Situation, num_draft_tokens: int) -> float:
    """How long a healthy worker may take to answer a correction: a round trip and its draft steps, and as much again for jitter."""
    return 2 * (situation.rtt_s + (num_draft_tokens + 1) * situation.draft_step_s)
