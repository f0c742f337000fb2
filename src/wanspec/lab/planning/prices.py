"""What sites cost: money per GPU hour and per gigabyte, in whatever currency the file is in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.lab.planning.tables import read_rows

ELSEWHERE = "*"
"""The row of all sites that have none of their own."""
MAX_HOUR_PRICE = 100_000.0
MAX_GB_PRICE = 1_000.0
"""Nobody sells so dear; a number in the wrong unit does."""
BYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePrices:
    """Of one site."""

    target_hour: float
    """An hour of all that one copy of the target model runs on."""
    draft_hour: float
    """An hour of what a worker's draft model runs on."""
    gb: float
    """A gigabyte that leaves the site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a placement takes: devices at both sites for a time, and bytes."""

    seconds: float
    has_worker: bool
    down_bytes: float
    """From the controller to the worker,"""
    up_bytes: float
    """and back."""

    def money(self, controller: SitePrices, worker: SitePrices) -> float:
        """At these prices."""
        hours = self.seconds / 3600.0
        return (
            hours * (controller.target_hour + self.has_worker * worker.draft_hour)
            + (self.down_bytes * controller.gb + self.up_bytes * worker.gb) / BYTES_PER_GB
        )


def read_prices(path: Path, sites: Iterable[str]) -> dict[str, SitePrices]:
    """Of every one of `sites`. Raises ConfigError where a price is missing or makes no sense."""
    prices = {}
    for row in read_rows(path, columns=("site", "target_hour", "draft_hour", "gb"), what="a table of prices (CSV or JSON)"):
        prices[row.text("site")] = SitePrices(
            target_hour=row.number("target_hour", at_most=MAX_HOUR_PRICE),
            draft_hour=row.number("draft_hour", at_most=MAX_HOUR_PRICE),
            gb=row.number("gb", at_most=MAX_GB_PRICE),
        )
    wanted = list(dict.fromkeys(sites))
    missing = [site for site in wanted if site not in prices and ELSEWHERE not in prices]
    if missing:
        raise ConfigError(f"{path} has no prices for {', '.join(missing)}; add a line for each, or one for site {ELSEWHERE}")
    return {site: prices.get(site) or prices[ELSEWHERE] for site in wanted}
