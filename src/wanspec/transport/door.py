"""What all connections of one door may cost together, and who waits where they would cost more.

Each connection has an allowance of its own (`limits`), which bounds one peer and not sixty-four. So a door has one for all of them. Where
it is spent, peers wait for their turn; nobody is dropped. Whose turn it is, start-time fair queueing says (Goyal, Vin and Cheng, 1996):
the peer's that has taken least. A hostile peer that asks for all there is gets what the others leave, and delays each by one message.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import Final

from wanspec.transport.limits import Allowance, WireLimits

MESSAGE_NODES: Final = 32
"""A message costs what so many draft nodes do, besides those that it carries."""


class Door:
    """See the module's text."""

    def __init__(self, limits: WireLimits) -> None:
        self._allowance = Allowance(limits.max_door_nodes_per_s, limits.max_door_nodes_burst)
        self._virtual = 0.0
        """What a peer that always wants more has taken so far."""
        self._waiting: list[tuple[float, int, int, asyncio.Future[None]]] = []
        """(where the peer stands, order of arrival, what it asks for, its turn)"""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def turns(self) -> Turns:
        """A new connection's place at the door."""
        return Turns(self)

    def ask(self, stands_at: float, amount: int) -> tuple[float, asyncio.Future[None]]:
        """Queue a peer. Returns where it stands afterwards, and its turn, which may have come already."""
        turn = asyncio.get_running_loop().create_future()
        start = max(self._virtual, stands_at)
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
    """One connection's."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._stands_at = 0.0

    async def take(self, *, messages: int, nodes: int) -> None:
        """Return when it is this connection's turn to have so much looked at."""
        self._stands_at, turn = self._door.ask(self._stands_at, nodes + MESSAGE_NODES * messages)
        await turn
