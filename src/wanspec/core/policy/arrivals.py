"""When a worker's next drafts will be here, as far as can be told from what it has said."""

from __future__ import annotations

import math

from msgspec import Struct

from wanspec.core.speculation.tree import Node

REJOIN_STEPS = 1.5
"""Draft steps between a worker's hearing of an unexpected token and its first drafts after it: the rest of one and a whole one."""
DEVIATIONS = 2.0
"""How many mean deviations of the round trip drafts may be late before they are not expected any more."""
LATE_STEPS = 0.5
"""And how many draft steps."""


class Arrivals(Struct, frozen=True, kw_only=True):
    """What is known about a worker and its link."""

    rtt_s: float
    deviation_s: float
    """Mean deviation of the round trip."""
    step_s: float
    """Time of the worker's draft step."""
    told_at: float
    """When the worker was told of the head."""
    rejoin_position: int
    """Newest committed token that was news to the worker, when it was told of it,"""
    rejoin_told_at: float
    """and when that was."""

    @property
    def slack_s(self) -> float:
        """How late drafts may be."""
        return DEVIATIONS * self.deviation_s + LATE_STEPS * self.step_s

    def children_at(self, node: Node, *, now: float) -> float:
        """When the first children of a node that has none are expected; infinity if they are overdue or never come."""
        if node.arrived_at is not None:
            at = node.arrived_at + self.step_s
            if now <= at + self.slack_s:
                return max(at, now + self.slack_s / 2)
            at = self.told_at + self.rtt_s + REJOIN_STEPS * self.step_s
        else:
            steps = REJOIN_STEPS + node.position - self.rejoin_position
            at = self.rejoin_told_at + self.rtt_s + steps * self.step_s
        return max(at, now + self.slack_s / 2) if now <= at + self.slack_s else math.inf
