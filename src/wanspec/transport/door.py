"""How the connections of one listener share its places and its time.

`Places` limits how many connections one peer holds. `Door` bounds what all connections cost together: each has an allowance of its own
(`limits`), which bounds one peer and not sixty-four. Where the common one is spent, peers wait for their turn; nobody is dropped. Turns
follow start-time fair queueing (Goyal, Vin and Cheng, 1996): the peer that has taken least comes first. A hostile peer that asks for all
there is gets what the others leave, and delays each by one message.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from wanspec.transport.limits import Allowance, WireLimits

MESSAGE_NODES: Final = 32
"""A message costs as much as this many draft nodes, besides those that it carries."""
PER_FREE_PLACE: Final = 3
"""Places that one peer may have for each one that is free."""


class Door:
    """The allowance that all connections of a listener share, and the queue for it."""

    def __init__(self, limits: WireLimits) -> None:
        self._allowance = Allowance(limits.max_door_nodes_per_s, limits.max_door_nodes_burst)
        self._virtual = 0.0
        """Virtual time: what a peer that always wants more has taken so far."""
        self._waiting: list[tuple[float, int, int, asyncio.Future[None]]] = []
        """(the peer's virtual time, order of arrival, amount asked for, its turn)"""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def turns(self) -> Turns:
        """The turns of a new connection."""
        return Turns(self)

    def ask(self, taken: float, amount: int) -> tuple[float, asyncio.Future[None]]:
        """Queue a peer at its virtual time `taken`. Returns its virtual time afterwards, and its turn, which may have come already."""
        turn = asyncio.get_running_loop().create_future()
        start = max(self._virtual, taken)
        heapq.heappush(self._waiting, (start, next(self._numbers), amount, turn))
        if self._timer is None:
            self._serve()
        return start + amount, turn

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._waiting:
            if not self._allowance.take(0, now=loop.time()):
                self._timer = loop.call_later(-self._allowance.left / self._allowance.per_s, self._serve)
                return
            start, _, amount, turn = heapq.heappop(self._waiting)
            if not turn.done():  # or it has gone
                self._virtual = start
                self._allowance.take(amount, now=loop.time())
                turn.set_result(None)


class Turns:
    """The turns of one connection."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._taken = 0.0

    async def take(self, *, messages: int, nodes: int) -> None:
        """Return when it is this connection's turn to have this much processed."""
        self._taken, turn = self._door.ask(self._taken, nodes + MESSAGE_NODES * messages)
        await turn


class Places:
    """The places of one door, and how many of them one peer may have.

    A peer may have three times as many places as are free: alone it gets three quarters of them, and the next peer still finds some. A few
    places stay free until there are nearly as many peers as places. Choudhury and Hahne (1998) divide the buffer of a switch in this way
    ("dynamic thresholds"). A peer is known by what it cannot choose: its certificate's subject, or else the host that it dials from.
    """

    def __init__(self, limit: int, *, name: str) -> None:
        """`name`: the limit's name in refusals."""
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
        """Hold a place; ask `refusal` first."""
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
