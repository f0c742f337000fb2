"""A fleet: sites with their devices and how their load goes through the day; from a TOML file, or the shipped example."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from wanspec.errors import ConfigError
from wanspec.files import read_toml
from wanspec.lab.planning.site_tables import HOURS
from wanspec.lab.records.conversion import converted

EXAMPLE_FILE = resources.files("wanspec.lab.planning") / "example_fleet.toml"
MAX_FILE_BYTES = 1 << 20
"""A page, in truth."""
BUSIEST_HOUR = 15.0
"""Local time, of a site that does not give its hours: the early afternoon, where the WANSpec paper's measurements and others have it."""
Share = Annotated[float, Meta(ge=0.0, le=1.0)]


class FleetSite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place."""

    name: str
    """As the matrix of round trips has it."""
    utc_offset_h: Annotated[float, Meta(ge=-14.0, le=14.0)] = 0.0
    target_devices: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Copies of the target model; requests come to sites that have some."""
    draft_devices: Annotated[int, Meta(ge=0, le=1000)] = 1
    """Lent to other sites, as far as the site's own load leaves them."""
    peak_load: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.5
    """At the busiest hour, as a share of what the target devices can do alone."""
    night_share: Share = 0.3
    """Load at the quietest hour, as a share of the busiest."""
    hours: tuple[Share, ...] | None = None
    """Load in each of 24 local hours as a share of the busiest; none: a wave between BUSIEST_HOUR and the night."""

    def load(self, at_s: float) -> float:
        """At a time of the day (UTC), as a share of the busiest hour's."""
        local_h = (at_s / 3600.0 + self.utc_offset_h) % HOURS
        if self.hours is not None:
            return self.hours[int(local_h)]
        wave = 0.5 + 0.5 * math.cos(2.0 * math.pi * (local_h - BUSIEST_HOUR) / HOURS)
        return self.night_share + (1.0 - self.night_share) * wave


class Fleet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sites, and what all requests have in common."""

    sites: Annotated[tuple[FleetSite, ...], Meta(min_length=2, max_length=64)]
    request_tokens: Annotated[float, Meta(ge=2.0, le=100_000.0)] = 300.0
    """Generated per request, on average."""
    slots: Annotated[int, Meta(ge=1, le=64)] = 16
    """Requests in progress at a time on a copy of the target; sessions of a draft device."""


def read_fleet(path: Path | None) -> Fleet:
    """Of a file, or the shipped example. Raises ConfigError naming the field and what is allowed."""
    if path is None:
        with resources.as_file(EXAMPLE_FILE) as example:
            return read_fleet(example)
    document = read_toml(path, max_bytes=MAX_FILE_BYTES, what="a fleet file (TOML)")
    try:
        fleet = converted(document, Fleet)
        _check(fleet)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return fleet


def _check(fleet: Fleet) -> None:
    names = [site.name for site in fleet.sites]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise ConfigError(f"site {doubled[0]} stands there twice; keep one of them")
    for site in fleet.sites:
        if site.hours is not None and len(site.hours) != HOURS:
            raise ConfigError(f"{site.name} has {len(site.hours)} hours; give all {HOURS}")
    if not any(site.target_devices for site in fleet.sites):
        raise ConfigError("no site has target_devices; give one at least one")
