"""How busy sites are, by hour of the day (UTC), as a share of what they can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.lab.planning.tables import read_rows

HOURS = 24
QUIET = 0.5
"""Load below which a site has a draft device to spare. A site that is half busy at the hour has bursts that need all of it."""
DayLoad = tuple[float, ...]
"""A share for each hour, 0 to 1."""


def read_load(path: Path, sites: Iterable[str]) -> dict[str, DayLoad]:
    """Of every one of `sites`. Raises ConfigError where an hour is missing, doubled or makes no sense."""
    read: dict[str, dict[int, float]] = {}
    for row in read_rows(path, columns=("site", "hour_utc", "load"), what="a table of loads (CSV or JSON)"):
        site, hour = row.text("site"), row.number("hour_utc", at_most=HOURS - 1)
        if hour % 1:
            raise ConfigError(f"{row.where}: hour_utc is {hour}; give a whole hour from 0 to {HOURS - 1}")
        hours = read.setdefault(site, {})
        if int(hour) in hours:
            raise ConfigError(f"{row.where}: hour_utc {hour:g} of {site} stands there twice; keep one of them")
        hours[int(hour)] = row.number("load", at_most=1.0)
    for site in sites:
        missing = [hour for hour in range(HOURS) if hour not in read.get(site, {})]
        if missing:
            raise ConfigError(f"{path} has no load of {site} for hour_utc {', '.join(map(str, missing))}; give all {HOURS} hours")
    return {site: tuple(hours[hour] for hour in range(HOURS)) for site, hours in read.items() if len(hours) == HOURS}


def open_hours(load: Mapping[str, DayLoad], worker: str) -> tuple[int, ...]:
    """The hours (UTC) at which the worker's site has something to spare."""
    return tuple(hour for hour, share in enumerate(load[worker]) if share < QUIET)


def share_of_day(load: DayLoad, hours: Iterable[int]) -> float:
    """How much of a site's daily work falls into these hours, 0 to 1; all hours weigh the same where it has none."""
    total = sum(load)
    chosen = list(hours)
    return sum(load[hour] for hour in chosen) / total if total else len(chosen) / HOURS
