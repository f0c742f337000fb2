"""Many users at a time, from a trace: how long all of them had requests in progress, and the time between tokens.

A closed loop is meant: so many users, each of whom sends the next request when the last one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from wanspec.core.speculation.types import SessionId
from wanspec.telemetry.records import Record, RequestArrived, RequestFinished, TokensEmitted


class AtWork(NamedTuple):
    """The time in which all users have requests in progress: what comes later are passes for fewer and fewer."""

    began_s: float
    """When the first request arrived, on the trace's clock."""
    until_s: float
    """When the first user had no request left to send, on the trace's clock."""
    tokens: int
    """Handed to all users meanwhile."""

    @property
    def duration_s(self) -> float:
        """How long that is."""
        return self.until_s - self.began_s

    @property
    def tokens_per_s(self) -> float:
        """Throughput over all users."""
        return self.tokens / self.duration_s


def all_at_work(records: Sequence[Record], *, users: int) -> AtWork:
    """How long all users were at work, in the trace of a closed loop, and what they got."""
    finished = sorted(record.t for record in records if isinstance(record, RequestFinished))
    until_s = finished[-min(users, len(finished))]
    return AtWork(
        began_s=min(record.t for record in records if isinstance(record, RequestArrived)),
        until_s=until_s,
        tokens=sum(len(record.tokens) for record in records if isinstance(record, TokensEmitted) and record.t <= until_s),
    )


def emissions_of(records: Iterable[Record]) -> dict[SessionId, list[tuple[float, int]]]:
    """When each session's tokens came, and how many at a time, in order."""
    found: dict[SessionId, list[tuple[float, int]]] = {}
    for record in records:
        if isinstance(record, TokensEmitted) and record.tokens:
            found.setdefault(record.session, []).append((record.t, len(record.tokens)))
    return {session: sorted(own) for session, own in found.items()}


def token_gaps_s(times: Sequence[tuple[float, int]]) -> list[float]:
    """The inter-token latency of each token of a text but those that came first: tokens that come together share the gap before them.

    `times`: when tokens came, and how many at a time, in order.
    """
    return [gap_s for (before, _), (now, number) in pairwise(times) for gap_s in [(now - before) / number] * number]
