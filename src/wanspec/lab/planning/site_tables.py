"""What a person knows of sites, from tables: round trips between them, their prices, how busy they are.

A table is CSV with a line of headings, or JSON with a list of objects. Lines of CSV that begin with # are remarks. Other columns than those
below are left alone, so that a file may say more than is needed here. What is wrong is named with its line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct

from wanspec.core.protocol.messages import PRINTABLE
from wanspec.errors import ConfigError
from wanspec.files import read_text
from wanspec.lab.records.conversion import converted

MAX_TABLE_BYTES = 16 << 20
"""A matrix of a hundred sites with its quantiles has one."""
AWS = "aws"
"""The name of the matrix that is shipped."""
AWS_FILE = resources.files("wanspec.lab.planning") / "aws_rtt.csv"
MAX_SITES = 256
"""65,000 placements; more is a mistake in a column."""
SHOWN_HOLES = 5
ELSEWHERE = "*"
"""The row of all sites that have none of their own."""
HOURS = 24
QUIET = 0.5
"""Load below which a site has a draft device to spare. A site that is half busy at the hour has bursts that need all of it."""
SiteName = Annotated[str, Meta(min_length=1, pattern=PRINTABLE)]
Rtt = Annotated[float, Meta(ge=0.0, le=2000.0)]
"""Milliseconds. No path on Earth takes longer; whoever writes more means microseconds."""
HourPrice = Annotated[float, Meta(ge=0.0, le=100_000.0)]
"""Nobody sells dearer; a number in the wrong unit is."""
DayLoad = tuple[float, ...]
"""A share for each hour, 0 to 1."""
T = TypeVar("T", bound=Struct)


class RttRow(Struct, frozen=True, kw_only=True):
    """A round trip."""

    source: SiteName
    target: SiteName
    rtt_ms: Rtt | None = None
    rtt_ms_p50: Rtt | None = None
    """The median, where other quantiles stand beside it."""


class PriceRow(Struct, frozen=True, kw_only=True):
    """What a site costs, in whatever currency the file is in."""

    site: SiteName
    target_hour: HourPrice
    """An hour of all that one copy of the target model runs on."""
    draft_hour: HourPrice
    """An hour of what a worker's draft model runs on."""
    gb: Annotated[float, Meta(ge=0.0, le=1000.0)]
    """A gigabyte that leaves the site."""


class LoadRow(Struct, frozen=True, kw_only=True):
    """How busy a site is in an hour of the day."""

    site: SiteName
    hour_utc: Annotated[int, Meta(ge=0, lt=HOURS)]
    load: Annotated[float, Meta(ge=0.0, le=1.0)]
    """As a share of what it can do."""


class RttMatrix(Struct, frozen=True, kw_only=True):
    """Sites, and the round trips between them as far as they are known."""

    sites: tuple[str, ...]
    usual_sites: tuple[str, ...]
    """Sites to plan for where nobody names any."""
    sources: frozenset[str] = frozenset()
    """Sites that round trips were measured from."""
    rtt_ms: dict[tuple[str, str], float]
    """By controller's and worker's site; where one direction was measured, it stands for both."""

    def known(self, site: str) -> str:
        """The site itself. Raises ConfigError where the matrix does not have it."""
        if site not in self.sites:
            close = get_close_matches(site, self.sites, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(self.sites)}"
            raise ConfigError(f"there is no site {site!r} in the matrix of round trips; {hint}")
        return site

    def pairs(self, controllers: Sequence[str] = (), workers: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Every pair of two different sites, of the usual or of the named ones. Raises ConfigError for unknown sites and for holes.

        Where no controller is named, a site that nobody measured from is none, unless its round trips are known all the same.
        """
        ends = [self.known(site) for site in workers] or self.usual_sites
        starts = [self.known(site) for site in controllers] or [site for site in self.usual_sites if self._may_start(site, ends)]
        chosen = [(controller, worker) for controller in starts for worker in ends if controller != worker]
        holes = [pair for pair in chosen if pair not in self.rtt_ms]
        if holes:
            shown = ", ".join(f"{source} to {target}" for source, target in holes[:SHOWN_HOLES])
            more = f" and {len(holes) - SHOWN_HOLES} more" if len(holes) > SHOWN_HOLES else ""
            raise ConfigError(f"the matrix has no round trip for {shown}{more}; measure it, or name the sites to plan for")
        if not chosen:
            raise ConfigError("there are no two different sites to plan for; name another controller's or worker's site")
        return chosen

    def _may_start(self, site: str, ends: Sequence[str]) -> bool:
        return site in self.sources or all((site, end) in self.rtt_ms for end in ends if end != site)


def read_rtts(name: str) -> RttMatrix:
    """The matrix of a file, or the shipped one by its name. Raises ConfigError."""
    if name != AWS:
        return _read_rtts(Path(name), has_usual_sources=False)
    with resources.as_file(AWS_FILE) as path:
        return _read_rtts(path, has_usual_sources=True)


def _read_rtts(path: Path, *, has_usual_sources: bool) -> RttMatrix:
    """`has_usual_sources`: the usual sites are those that round trips were measured from, not all."""
    measured: dict[tuple[str, str], float] = {}
    for where, row in read_rows(path, RttRow, what="a matrix of round trips (CSV or JSON)"):
        rtt_ms, pair = row.rtt_ms if row.rtt_ms is not None else row.rtt_ms_p50, (row.source, row.target)
        if rtt_ms is None:
            raise ConfigError(f"{where}: rtt_ms is empty; give the round trip in ms")
        if pair in measured:
            raise ConfigError(f"{where}: {row.source} to {row.target} stands in the matrix twice; keep one of them")
        measured[pair] = rtt_ms
    sites = tuple(dict.fromkeys(site for pair in measured for site in pair))
    if len(sites) > MAX_SITES:
        raise ConfigError(f"{path} has {len(sites)} sites; a matrix has up to {MAX_SITES} (MAX_SITES)")
    sources = dict.fromkeys(source for source, _ in measured)
    back = {(target, source): rtt_ms for (source, target), rtt_ms in measured.items()}
    usual_sites = tuple(sources) if has_usual_sources else sites
    return RttMatrix(sites=sites, usual_sites=usual_sites, sources=frozenset(sources), rtt_ms=back | measured)


def read_prices(path: Path, sites: Iterable[str]) -> dict[str, PriceRow]:
    """The prices of every one of `sites`. Raises ConfigError where one is missing or makes no sense."""
    prices = {row.site: row for _, row in read_rows(path, PriceRow, what="a table of prices (CSV or JSON)")}
    wanted = list(dict.fromkeys(sites))
    missing = [site for site in wanted if site not in prices and ELSEWHERE not in prices]
    if missing:
        raise ConfigError(f"{path} has no prices for {', '.join(missing)}; add a line for each, or one for site {ELSEWHERE}")
    return {site: prices.get(site) or prices[ELSEWHERE] for site in wanted}


def read_load(path: Path, sites: Iterable[str]) -> dict[str, DayLoad]:
    """The load of every one of `sites`. Raises ConfigError where an hour is missing, doubled or makes no sense."""
    read: dict[str, dict[int, float]] = {}
    for where, row in read_rows(path, LoadRow, what="a table of loads (CSV or JSON)"):
        hours = read.setdefault(row.site, {})
        if row.hour_utc in hours:
            raise ConfigError(f"{where}: hour_utc {row.hour_utc} of {row.site} stands there twice; keep one of them")
        hours[row.hour_utc] = row.load
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


def read_rows(path: Path, kind: type[T], *, what: str) -> list[tuple[str, T]]:
    """Each row of a file that ends with .json, or else of CSV, and where it stands. `what` it should be is named with its article.

    Raises ConfigError where it cannot be read, or a row is not of this kind.
    """
    text = read_text(path, max_bytes=MAX_TABLE_BYTES, what=what)
    rows = []
    for where, cells in _json_rows(text, path, what) if path.suffix == ".json" else _csv_rows(text, path):
        try:
            row = converted(cells, kind, patterns={PRINTABLE: "leave out what cannot be printed"}, strict=False)
        except ConfigError as error:
            columns = f"; name {what}, with columns {', '.join(kind.__struct_fields__)}" if str(error).endswith("is missing") else ""
            raise ConfigError(f"{where}: {error}{columns}") from error
        rows.append((where, row))
    if not rows:
        raise ConfigError(f"{path} has no rows; name {what}, with columns {', '.join(kind.__struct_fields__)}")
    return rows


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Empty cells are left out."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    try:
        rows = list(csv.DictReader((line for _, line in lines), skipinitialspace=True))
    except csv.Error as error:
        raise ConfigError(f"{path} is no CSV: {error}") from error
    for (number, _), row in zip(lines[1:], rows, strict=False):
        yield f"{path}, line {number}", {name: value.strip() for name, value in row.items() if isinstance(value, str) and value.strip()}


def _json_rows(text: str, path: Path, what: str) -> Iterator[tuple[str, Any]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    items = document.get("rows") if isinstance(document, dict) else document
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{path} holds no list of objects; name {what}")
    yield from ((f"{path}, row {number}", item) for number, item in enumerate(items, 1))
