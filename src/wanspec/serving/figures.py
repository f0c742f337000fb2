"""Counts of drafting over all of an engine's requests, for metrics and the status page. They only grow."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from wanspec.core.protocol.effects import DraftsMerged, RoundFinished
from wanspec.telemetry.reliability import ReliabilityCount

MAX_POSITIONS: Final = 16
"""Positions of a round whose acceptance is counted, each a metric series of its own; acceptance further down is rare."""
ENTROPY_EDGES_NATS: Final = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Edges of the bins of decisions, from certain to open. Large models are mostly below 1, the small bundled one above 2."""
DRAFT_AGE_EDGES_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Edges of the histogram of draft ages, from just in time to several round trips ahead."""


class DecisionKind(StrEnum):
    """A policy's decision before a pass."""

    VERIFY = "verify"
    WAIT = "wait"
    DRAFT_LOCALLY = "draft_locally"


class Histogram:
    """Values counted by size, as in Prometheus: each edge belongs to the bucket below it."""

    def __init__(self, edges: Sequence[float]) -> None:
        """`edges` ascend; a last bucket without an end is added."""
        self.edges = tuple(edges)
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value


class Figures:
    """The counts of one engine."""

    def __init__(self) -> None:
        self.accepted_by_position = [0] * MAX_POSITIONS
        """Rounds that accepted a draft at the first position after the head, at the second, and so on."""
        self.rounds_without_local_drafts = 0
        """Rounds that verified drafts without a local pass since the round before: from a worker, or looked up."""
        self.decisions: Counter[tuple[DecisionKind, int | None]] = Counter()
        """Decisions by kind and by the bin of the target's entropy for the newest token, without prefills, which decide nothing.

        A policy can know that entropy, while a worker's draft entropy is not sent. It also says how likely the worker is to have missed the
        token, which is when redundancy helps. None: the policy does not use it, so it was not computed.
        """
        self.waited_s = 0.0
        """Time spent waiting for workers' drafts, over all sessions."""
        self.fresh_drafts = self.duplicate_drafts = self.late_drafts = self.stale_drafts = self.refused_drafts = 0
        """Nodes that workers sent, by outcome (`DraftsMerged`). Nodes for requests that had ended or moved are in none."""
        self.draft_ages_s = Histogram(DRAFT_AGE_EDGES_S)
        """Ages of accepted drafts, from their arrival to the verify that accepted them."""
        self.reliability = ReliabilityCount()
        """Estimates of verified drafts against their outcome, wherever they were drafted."""

    def add_round(self, finished: RoundFinished) -> None:
        """Count a verify and its outcome."""
        for position in range(min(finished.accepted, MAX_POSITIONS)):
            self.accepted_by_position[position] += 1
        self.rounds_without_local_drafts += finished.drafted > 0 and not finished.local_drafts
        self.waited_s += finished.waited_s
        for age_s in finished.draft_ages_s:
            self.draft_ages_s.add(age_s)
        self.reliability.add(accepted_estimates=finished.accepted_estimates, rejected_estimates=finished.rejected_estimates)
        if not finished.is_prefill:
            entropy_nats = finished.entropy_before_nats
            entropy_bin = None if entropy_nats is None else bisect_right(ENTROPY_EDGES_NATS, entropy_nats)
            self.decisions[DecisionKind.VERIFY, entropy_bin] += 1
            self.decisions[DecisionKind.WAIT, entropy_bin] += finished.waits
            self.decisions[DecisionKind.DRAFT_LOCALLY, entropy_bin] += finished.local_drafts

    def add_drafts(self, merged: DraftsMerged) -> None:
        """Count the outcome of a worker's drafts."""
        self.fresh_drafts += merged.joined - merged.late - merged.duplicates
        self.late_drafts += merged.late
        self.duplicate_drafts += merged.duplicates
        self.stale_drafts += merged.stale
        self.refused_drafts += merged.refused
