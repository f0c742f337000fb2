"""When each request is due: rounds at even intervals, the runs of a round spread over it at random.

Nothing here is drawn anew: a request's moment follows from its id, and its id from campaign, probe, target, round and run. So a runner
that was killed finds the same plan again, and knows by the ids what it has done.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from wanspec.lab.measurement.campaign import Campaign, Prompt, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A request that is to be sent."""

    id: str
    target: Target
    prompt: Prompt
    round_at_s: float
    """The start of its round; times are Unix time."""
    run: int
    due_at_s: float


def first_round_s(campaign: Campaign, now_s: float) -> float:
    """The start of the next round. Rounds begin at whole multiples of the interval, so that all hosts are in step without a word."""
    return math.ceil(now_s / campaign.schedule.interval_s) * campaign.schedule.interval_s


def plan_round(campaign: Campaign, probe: str, round_at_s: float) -> list[Due]:
    """The requests of one probe in one round, in the order in which they are due."""
    schedule = campaign.schedule
    width_s = schedule.interval_s * schedule.spread / schedule.runs
    plan = []
    for target in campaign.targets:
        for run in range(schedule.runs):
            name = f"{campaign.name}/{probe}/{target.name}/{round(1000 * round_at_s)}/{run}"
            plan.append(
                Due(
                    id=name,
                    target=target,
                    prompt=campaign.prompts[run % len(campaign.prompts)],
                    round_at_s=round_at_s,
                    run=run,
                    due_at_s=round_at_s + (run + _fraction(name)) * width_s,
                )
            )
    return sorted(plan, key=lambda due: due.due_at_s)


def _fraction(name: str) -> float:
    """In [0, 1): as good as random, and the same every time."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48
