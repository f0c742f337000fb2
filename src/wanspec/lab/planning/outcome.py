"""What a simulated run means for a placement: pace, throughput, and what both sites and the link paid for it, for each token."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from wanspec.core.protocol.messages import frame_bytes
from wanspec.errors import WanspecError
from wanspec.lab.planning.prices import Cost
from wanspec.lab.simulation.run import simulate_traced
from wanspec.lab.simulation.scenario import Scenario
from wanspec.telemetry.records import MessageSent, PassFinished, Record, RequestFinished, TokensEmitted


class Outcome(Struct, frozen=True, kw_only=True):
    """Of one run."""

    itl_ms: float
    ttft_ms: float
    token_s: float
    """Of the clock, for each token of all users together, while all of them have requests in progress,"""
    controller_busy_s: float
    """and so of the controller's device,"""
    worker_busy_s: float
    """and of the worker's."""
    controller_draft_passes: float
    """For each token."""
    down_bytes: float
    """From the controller to the worker for each token, padded as the wire pads frames,"""
    up_bytes: float
    """and back."""

    def cost(self, *, has_worker: bool) -> Cost:
        """What a token takes, devices being paid for whether they are busy or wait."""
        return Cost(seconds=self.token_s, has_worker=has_worker, down_bytes=self.down_bytes, up_bytes=self.up_bytes)


def play_out(scenario: Scenario) -> Outcome:
    """Simulate a scenario of sequential requests with two tokens or more. Raises WanspecError where a text is not the target's."""
    run, records = simulate_traced(scenario)
    metrics = run.metrics
    if not run.is_exact:
        raise WanspecError(f"{scenario.policy.name}, seed {scenario.seed}: other tokens than plain target decoding; this is a bug")
    assert metrics.itl_ms is not None
    assert metrics.ttft_ms is not None
    until_s, tokens = _all_at_work(records, users=scenario.load.users)
    passes = [record for record in records if isinstance(record, PassFinished) and record.t <= until_s]
    sent = [record for record in records if isinstance(record, MessageSent)]
    return Outcome(
        itl_ms=metrics.itl_ms,
        ttft_ms=metrics.ttft_ms,
        token_s=until_s / tokens,
        controller_busy_s=sum(record.duration_s for record in passes if record.site == "controller") / tokens,
        worker_busy_s=sum(record.duration_s for record in passes if record.site == "worker") / tokens,
        controller_draft_passes=metrics.controller_draft_passes / metrics.tokens,
        down_bytes=_bytes(sent, "controller") / metrics.tokens,
        up_bytes=_bytes(sent, "worker") / metrics.tokens,
    )


def _bytes(sent: Sequence[MessageSent], site: str) -> int:
    return sum(frame_bytes(record.size_bytes) for record in sent if record.site == site)


def _all_at_work(records: Sequence[Record], *, users: int) -> tuple[float, int]:
    """Until when all users have requests in progress, and the tokens until then: what comes later are passes for fewer and fewer."""
    finished = sorted(record.t for record in records if isinstance(record, RequestFinished))
    until_s = finished[-min(users, len(finished))]
    return until_s, sum(len(record.tokens) for record in records if isinstance(record, TokensEmitted) and record.t <= until_s)
