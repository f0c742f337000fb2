"""Where a region's day begins: the time zones of cloud regions, for load follows the clock of the people nearby."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from wanspec.errors import ConfigError

AWS_ZONES: Final[dict[str, str]] = tomllib.loads((resources.files("wanspec.lab.measurement") / "aws_zones.toml").read_text("utf-8"))
"""The time zone of each region."""


def zone_of(region: str, timezone: str, *, where: str) -> ZoneInfo:
    """The zone that `timezone` names, or else the region's. `where`: for a message. Raises ConfigError."""
    if not timezone and region not in AWS_ZONES:
        close = get_close_matches(region, AWS_ZONES, n=1)
        raise ConfigError(
            f"{where}: {region!r} is no AWS region that we know"
            + (f" (did you mean {close[0]!r}?)" if close else "")
            + '; for any other place add its time zone, such as timezone = "Europe/London"'
        )
    name = timezone or AWS_ZONES[region]
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f'{where}: there is no time zone {name!r}; write it as in "Europe/London", '
            "and where this host has no zones at all, pip install tzdata"
        ) from error
