"""Rows as columns: for each pair of probe and target, what a report is computed from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from wanspec.errors import ConfigError
from wanspec.lab.measurement.campaign import NAME, ROUTED
from wanspec.lab.measurement.regions import AWS_ZONES
from wanspec.lab.measurement.rows import LATEST_S, Header
from wanspec.lab.records.statistics import Floats

if TYPE_CHECKING:
    from wanspec.lab.measurement.merge import Merged

MAX_PAIRS: Final = 2500
"""Fifty places to fifty: no page shows more."""
MAX_QUOTED_CHARACTERS: Final = 80
"""Of a name that is none, in an error."""
_QUERY: Final = """
SELECT round_at_s, status = 'ok' AND first_token_s IS NOT NULL AS ok, first_token_s AS ttft_s, connect_s, service_latency_s AS service_s,
  first_token_s - coalesce(dns_s, 0) - coalesce(connect_s, 0) - coalesce(tls_s, 0) AS answer_s,
  CASE WHEN len(token_s) > 1 AND (misfit = '' OR streamed_tokens IS NOT NULL)
    THEN (token_s[-1] - token_s[1]) / (greatest(coalesce(streamed_tokens, output_tokens, 0), len(token_s)) - 1) END AS itl_s
FROM requests ORDER BY probe, target, due_at_s, id
"""
_TIMES: Final = ("ttft_s", "connect_s", "answer_s", "itl_s", "service_s")
"""Columns of that query, and fields of a pair."""
_COUNTS: Final = """
SELECT probe, target, any_value(probe_region), any_value(target_region), any_value(model), bool_or(routed), count(*),
  count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'throttled'), count(*) FILTER (status = 'failed'),
  count(*) FILTER (status = 'interrupted'), count(DISTINCT model) FROM requests GROUP BY probe, target ORDER BY probe, target
"""
_COUNTED: Final = (
    "probe", "target", "probe_region", "target_region", "model", "routed", "requests", "ok", "throttled", "failed", "interrupted",
)  # fmt: skip
"""What the first columns of that query are in a pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One probe and one target. Arrays are those of the answered requests; what a request does not have is not a number."""

    probe: str
    target: str
    probe_region: str
    target_region: str
    model: str
    routed: bool
    requests: int
    ok: int
    throttled: int
    failed: int
    interrupted: int
    round_of: NDArray[np.intp]
    ttft_s: Floats
    """From the first step, the name's resolution, to the first token."""
    connect_s: Floats
    answer_s: Floats
    """TTFT without resolving, connecting and TLS: one round trip, the queue, and prefill."""
    itl_s: Floats
    """Of the tokens that came in the stream; where the server does not count, of the events. Not a number where counts do not fit."""
    service_s: Floats

    @property
    def model_family(self) -> str:
        """The model, whichever way it is routed."""
        return ROUTED.sub("", self.model, count=1) if self.routed and not self.model.startswith("arn:") else self.model

    @property
    def is_home(self) -> bool:
        return self.probe_region == self.target_region


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The pairs of a study, and when its rounds began."""

    campaigns: tuple[str, ...]
    probes: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: dict[tuple[str, str], Pair]
    round_at_s: Floats
    zones: dict[str, str]
    """The time zone of each target."""

    def local_hours(self, target: str) -> Floats:
        """Of each round, in the target's region."""
        zone = ZoneInfo(self.zones[target])
        moments = [datetime.fromtimestamp(at_s, zone) for at_s in self.round_at_s]
        return np.array([moment.hour + moment.minute / 60 + moment.second / 3600 for moment in moments])


def read_samples(found: Merged) -> Samples:
    """Raises ConfigError where there is nothing to report, or names that no campaign has."""
    database = found.database
    counts = database.execute(_COUNTS).fetchall()
    if not counts:
        raise ConfigError("these files have no requests; give files that `wanspec measure run` wrote")
    if len(counts) > MAX_PAIRS:
        raise ConfigError(f"{len(counts)} pairs of probe and target are too many for one report; {MAX_PAIRS} is the most")
    for row in counts:
        _check_names(row)
    columns = {name: np.ma.filled(column.astype(float), np.nan) for name, column in database.execute(_QUERY).fetchnumpy().items()}
    rounds, round_of = np.unique(columns["round_at_s"], return_inverse=True)
    if not (rounds[0] >= 0.0 and rounds[-1] <= LATEST_S):  # of Parquet; lines have been checked one by one
        raise ConfigError("these files have rounds at times that no calendar has; give files that `wanspec measure run` wrote")
    edges = np.cumsum([0, *[row[6] for row in counts]])
    pairs = {
        (row[0], row[1]): _pair(row, {name: column[edges[index] : edges[index + 1]] for name, column in columns.items()},
                                round_of[edges[index] : edges[index + 1]])
        for index, row in enumerate(counts)
    }  # fmt: skip
    campaigns = tuple(str(name) for (name,) in database.execute("SELECT DISTINCT campaign FROM requests ORDER BY 1").fetchall())
    targets = tuple(dict.fromkeys(target for _, target in sorted(pairs, key=lambda pair: pair[1])))
    return Samples(
        campaigns=campaigns,
        probes=tuple(dict.fromkeys(probe for probe, _ in pairs)),
        targets=targets,
        pairs=pairs,
        round_at_s=rounds,
        zones={target: _zone(target, pairs, found.headers) for target in targets},
    )


def _pair(row: tuple[Any, ...], columns: dict[str, Floats], round_of: NDArray[np.intp]) -> Pair:
    answered = columns["ok"] == 1
    times = {name: columns[name][answered] for name in _TIMES}
    return Pair(**dict(zip(_COUNTED, row, strict=False)), **times, round_of=round_of[answered])


def _check_names(row: tuple[object, ...]) -> None:
    """They become parts of file names and of pictures."""
    bad = next((name for name in row[:4] if not re.fullmatch(NAME, str(name))), None)
    if bad is not None:
        raise ConfigError(
            f"the name {str(bad)[:MAX_QUOTED_CHARACTERS]!r} is none that a campaign has; give files that `wanspec measure` wrote"
        )
    if row[11] != 1:
        raise ConfigError(f"target {row[1]!r} has had {row[11]} models; files of two campaigns are mixed up")


def _zone(target: str, pairs: dict[tuple[str, str], Pair], headers: list[Header]) -> str:
    """By what the runners wrote; else by the region's name; else UTC."""
    known = next((header.places[f"target:{target}"][1] for header in headers if f"target:{target}" in header.places), "")
    region = next(pair.target_region for (_, name), pair in pairs.items() if name == target)
    try:
        return ZoneInfo(known or AWS_ZONES.get(region, "UTC")).key
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ConfigError(
            f"target {target!r} has the time zone {known[:MAX_QUOTED_CHARACTERS]!r}, which this host does not know; pip install tzdata"
        ) from error
