"""The places of one door, and how many of them one peer may have.

A peer may have three times as many places as are free: alone three quarters of them, and whoever comes next finds some. However many take
all that they can, a few places stay free until nearly as many peers are there as places. Choudhury and Hahne (1998) divide the buffer of a
switch so ("dynamic thresholds").

A peer is known here by what it cannot choose: its certificate's subject, or else the host that it dials from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PER_FREE_PLACE: Final = 3
"""Places that one peer may have for each one that is free."""


class Places:
    """See the module's text."""

    def __init__(self, limit: int, *, name: str) -> None:
        """`name`: of the limit, for those who are told."""
        self._limit = limit
        self._name = name
        self._taken: Counter[str] = Counter()

    def refusal(self, peer: str) -> str:
        """Why there is no place for a peer now; empty when there is one."""
        taken, own = self._taken.total(), self._taken[peer]
        if taken >= self._limit:
            return f"{taken} places are taken already ({self._name})"
        if own >= PER_FREE_PLACE * (self._limit - taken):
            return f"{own} of {self._limit} places are taken by {peer} already; the others are for other peers ({self._name})"
        return ""

    @contextmanager
    def taken_by(self, peer: str) -> Iterator[None]:
        """Hold a place, which is the caller's to have asked for."""
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


def host_of(address: str) -> str:
    """An address without its port, if it has one."""
    return address.rpartition(":")[0] or address
