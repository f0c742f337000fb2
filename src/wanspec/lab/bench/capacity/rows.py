"""A line of the table, from what was recorded of a run.

A closed loop: each user sends the next request when the last one ends. Throughput and the device's time are of the time in which all users
have requests in progress; latencies and local passes are of all tokens of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct, to_builtins

from wanspec.lab.bench.capacity.cells import ONE_SITE, Cell, requests_each
from wanspec.lab.records.metrics import RunMetrics
from wanspec.lab.records.throughput import all_at_work, emissions_of, token_gaps_s
from wanspec.lab.simulation.scenario import Policy, Scenario
from wanspec.telemetry.records import PassFinished, Record


class CapacityRow(Struct, frozen=True, kw_only=True):
    """One policy with so many users; the field names are the keys of its JSON."""

    policy: str
    """autoregressive, chain, tree, alone, adaptive-10 or adaptive-inf."""
    preset: str
    """Of step times; empty: measured ones."""
    users: int
    workers: int
    """0: it has none."""
    rtt_ms: float | None
    """None: it has no worker."""
    tokens_per_s: float
    """Over all users, while all of them have requests in progress."""
    itl_ms_p50: float
    """Inter-token latency, median over all tokens: tokens that come together share the gap before them equally."""
    itl_ms_p95: float
    """Inter-token latency, 95th percentile over all tokens."""
    ttft_ms: float
    """Time to first token, mean over the requests."""
    local_passes_per_token: float
    """Draft passes at the controller for each token; one over many users counts once."""
    device_s_per_token: float
    """Time that the controller's device is busy for each token, while all users have requests in progress."""
    settings: Policy
    """How the policy was set: the best of those that were tried."""
    clock: Literal["virtual", "real"]
    own_code: bool
    """Whether our own code takes time: on the virtual clock as it was measured (`lab/simulation/own_code.py`)."""
    tokens: int
    """Of each request."""
    requests: int
    """Of each user."""
    seed: int
    late_share: float | None = None
    """Of the controller's passes in a real run, those that could not keep the preset's pace; None: on the virtual clock none is late."""

    @property
    def cell(self) -> Cell:
        """What it is a row of."""
        return Cell(policy=self.policy, users=self.users, workers=self.workers, rtt_ms=self.rtt_ms)


def row_of(cell: Cell, scenario: Scenario, records: Sequence[Record], metrics: RunMetrics, **more: Any) -> CapacityRow:  # noqa: ANN401  # fields
    """From what was recorded. `more`: the fields that say how it was run."""
    at_work = all_at_work(records, users=cell.users)
    gaps_ms = [1e3 * gap_s for times in emissions_of(records).values() for gap_s in token_gaps_s(times)]
    p50, p95 = np.percentile(gaps_ms, (50, 95))
    passes = [each for each in records if isinstance(each, PassFinished) and each.site == "controller" and each.t <= at_work.until_s]
    assert metrics.ttft_ms is not None
    assert metrics.local_draft_passes_per_token is not None
    return CapacityRow(
        **to_builtins(cell),
        preset=scenario.compute.preset if scenario.compute.target_ms is None else "",
        tokens_per_s=at_work.tokens_per_s,
        itl_ms_p50=float(p50),
        itl_ms_p95=float(p95),
        ttft_ms=metrics.ttft_ms,
        local_passes_per_token=metrics.local_draft_passes_per_token,
        device_s_per_token=sum(each.duration_s for each in passes) / at_work.tokens,
        settings=scenario.policy,
        tokens=scenario.load.tokens,
        requests=requests_each(cell.users),
        seed=scenario.seed,
        **more,
    )


def best_rows(rows: Sequence[CapacityRow]) -> list[CapacityRow]:
    """Of each cell the row with the most tokens a second, in the order in which cells came."""
    best: dict[Cell, CapacityRow] = {}
    for row in rows:
        best[row.cell] = max(best.get(row.cell, row), row, key=lambda one: one.tokens_per_s)
    return list(best.values())


def best_of_site(rows: Sequence[CapacityRow], users: int) -> CapacityRow | None:
    """What serves so many users best without a worker; None: nothing has been run."""
    own = [row for row in rows if row.users == users and row.policy in ONE_SITE]
    return max(own, key=lambda row: row.tokens_per_s, default=None)


def of_best(row: CapacityRow, rows: Sequence[CapacityRow]) -> float | None:
    """Throughput, as a share of the best that a site does without a worker for as many users."""
    best = best_of_site(rows, row.users)
    return None if best is None else row.tokens_per_s / best.tokens_per_s


def as_json(rows: Sequence[CapacityRow]) -> list[dict[str, Any]]:
    """Rows as JSON has them, with their throughput as a share of the best that a site does without a worker."""
    return [to_builtins(row) | {"of_best": of_best(row, rows)} for row in rows]
