"""Figures of a fleet's day, with and without offloading, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from rich.table import Table

from wanspec.lab.planning.fleet import NOBODY, Served
from wanspec.lab.planning.fleet_file import Fleet
from wanspec.lab.planning.load import HOURS
from wanspec.lab.records.table import Column, table_of

QUANTILES = (0.5, 0.95, 0.99)
LEGEND = (
    "TTFT: seconds to the first token, waiting for a place included, p50 / p95 / p99 over the day. ITL: ms between tokens, mean over "
    "requests. waited: share of requests that found no place at once. home: all drafting is done at the target's site; lent: on draft "
    "devices that other sites lend, for the share of requests in the last column."
)

COLUMNS = (
    Column("site", lambda pair: pair[0].site, side="left"),
    Column("requests", lambda pair: pair[0].requests),
    Column("TTFT s\nhome", lambda pair: " / ".join(f"{value:.2f}" for value in pair[0].ttft_s)),
    Column("TTFT s\nlent", lambda pair: " / ".join(f"{value:.2f}" for value in pair[1].ttft_s)),
    Column("ITL ms\nhome", lambda pair: pair[0].itl_ms, ".1f"),
    Column("ITL ms\nlent", lambda pair: pair[1].itl_ms, ".1f"),
    Column("waited\nhome", lambda pair: pair[0].waited, ".1%"),
    Column("waited\nlent", lambda pair: pair[1].waited, ".1%"),
    Column("drafted\naway", lambda pair: pair[1].drafted_away, ".0%"),
)
"""Of the pair of both ways."""


class SiteFigures(Struct, frozen=True, kw_only=True):
    """Of the requests of one site in one way of running the fleet."""

    site: str
    requests: int
    ttft_s: tuple[float, ...]
    """At each of QUANTILES."""
    itl_ms: float
    """Mean over requests of (end - beginning) / tokens."""
    drafted_away: float
    """Share of the requests."""
    waited: float
    """Share of the requests that found no place at once."""
    ttft_s_p95_by_hour: tuple[float | None, ...]
    """By hour of the day (UTC); None: no requests."""
    requests_by_hour: tuple[int, ...]
    away_by_hour: tuple[int, ...]
    """Those of them that were drafted for elsewhere."""


def figures_of(fleet: Fleet, requests: Sequence[Served]) -> list[SiteFigures]:
    """For each site to which requests came."""
    own = [[request for request in requests if request.site == number] for number in range(len(fleet.sites))]
    return [_figures(site.name, served) for site, served in zip(fleet.sites, own, strict=True) if served]


def fleet_table(home: Sequence[SiteFigures], lent: Sequence[SiteFigures], *, title: str) -> Table:
    """A line for each site."""
    return table_of(zip(home, lent, strict=True), COLUMNS, title=title, padding=1)


def _figures(name: str, served: Sequence[Served]) -> SiteFigures:
    ttfts = np.array([request.ttft_s for request in served])
    hours = np.array([int(request.arrived_s // 3600) % HOURS for request in served])
    away = np.array([request.lender != NOBODY for request in served])
    return SiteFigures(
        site=name,
        requests=len(served),
        ttft_s=tuple(float(value) for value in np.quantile(ttfts, QUANTILES)),
        itl_ms=1e3 * float(np.mean([(request.ended_s - request.begun_s) / request.tokens for request in served])),
        drafted_away=float(away.mean()),
        waited=float(np.mean([not math.isclose(request.begun_s, request.arrived_s) for request in served])),
        ttft_s_p95_by_hour=tuple(
            float(np.quantile(ttfts[hours == hour], 0.95)) if (hours == hour).any() else None for hour in range(HOURS)
        ),
        requests_by_hour=tuple(int((hours == hour).sum()) for hour in range(HOURS)),
        away_by_hour=tuple(int((away & (hours == hour)).sum()) for hour in range(HOURS)),
    )
