"""A fleet's day with and without offloading, side by side: figures, a table, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from rich.table import Table

from wanspec.lab.planning.fleet import NOBODY, Served
from wanspec.lab.planning.fleet_file import Fleet
from wanspec.lab.planning.site_tables import HOURS
from wanspec.lab.records.plots import GREEN, LIGHT_GREY, RED, draw_line, name_axes, new_picture, save_picture
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
"""Each row is a pair: a site drafting at home, and the same site with lent devices."""


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


def plot_fleet(home: Sequence[SiteFigures], lent: Sequence[SiteFigures], path: Path, *, title: str) -> None:
    """A column for each site: requests by hour above, with those drafted for elsewhere; p95 of TTFT below, in both ways."""
    hours = range(HOURS)
    figure = new_picture(1.0 + 3.4 * len(home), 5.6)
    above, below = figure.subplots(2, len(home), sharex=True, sharey="row", squeeze=False)
    for column, (before, after) in enumerate(zip(home, lent, strict=True)):
        load, ttft = above[column], below[column]
        load.bar(hours, before.requests_by_hour, color=LIGHT_GREY, label="requests")
        load.bar(hours, after.away_by_hour, color=GREEN, alpha=0.6, label="drafted for elsewhere")
        draw_line(ttft, [(hour, s, None) for hour, s in enumerate(before.ttft_s_p95_by_hour)], color=RED, label="drafting at home")
        draw_line(ttft, [(hour, s, None) for hour, s in enumerate(after.ttft_s_p95_by_hour)], color=GREEN, label="with lent draft devices")
        ttft.set_yscale("log")
        name_axes(load, y="" if column else "requests in the hour", title=before.site)
        name_axes(ttft, "hour (UTC)", "" if column else "time to first token, p95 (s)")
    above[0].legend(fontsize=7)
    below[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    save_picture(figure, path)


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
