"""When a worker's next drafts will be here, as far as can be told from what it has said.

A node that the worker proposed gets its children one draft step later. One that it has not proposed gets them a round trip and REJOIN_STEPS
after the worker was told of the newest token that surprised it, and a step later for each level in between. What is late by more than the
usual deviation of the round trip is not expected any more.
"""

from __future__ import annotations

import math

from msgspec import Struct

from wanspec.core.speculation.tree import Node

REJOIN_STEPS = 1.5
"""Draft steps until a surprised worker answers: on average half a step is still running, then one full step."""
DEVIATIONS = 2.0
"""Mean deviations of the round trip by which drafts may be late before nobody expects them."""
LATE_STEPS = 0.5
"""Draft steps by which they may be late besides."""


class Arrivals(Struct, frozen=True, kw_only=True):
    """What is known about a worker and its link."""

    rtt_s: float
    """Smoothed round trip to the worker."""
    deviation_s: float
    """Mean deviation of the round trip."""
    step_s: float
    """Time of the worker's draft step."""
    told_at: float
    """When the worker was told of the head."""
    rejoin_position: int
    """Position of the newest committed token that was news to the worker when it was told of it."""
    rejoin_told_at: float
    """When the worker was told of that token."""

    @property
    def slack_s(self) -> float:
        """How late drafts may be."""
        return DEVIATIONS * self.deviation_s + LATE_STEPS * self.step_s

    def children_at(self, node: Node, *, now: float) -> float:
        """When the first children of a node that has none are expected; infinity if they are overdue or never come."""
        slack_s = self.slack_s
        if node.arrived_at is not None:
            at = node.arrived_at + self.step_s
            if now <= at + slack_s:
                return max(at, now + slack_s / 2)
            at = self.told_at + self.rtt_s + REJOIN_STEPS * self.step_s
        else:
            steps = REJOIN_STEPS + node.position - self.rejoin_position
            at = self.rejoin_told_at + self.rtt_s + steps * self.step_s
        return max(at, now + slack_s / 2) if now <= at + slack_s else math.inf
