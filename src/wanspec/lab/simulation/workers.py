"""A worker of a scenario: a process that keeps its controller, connection after connection, as the real one does.

It dials again after the same waits (`protocol/redial.py`). While its way is cut a dial comes to nothing. Where the controller dropped it
for what it did, it is turned away for ten seconds, and for twice as long each further time. What is wrong with it, and with its way, stays
when it comes again; only a crash ends it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from wanspec.core.protocol.effects import DropWorker
from wanspec.core.protocol.redial import FIRST_REDIAL_S, Redial, shortened
from wanspec.lab.simulation.cluster import Cluster, WorkerSite

HANDSHAKE_RTTS = 3
"""Until a worker that dials again is there: TCP, TLS, and its Hello."""
TURNED_AWAY_S = 10.0
"""By `transport/quarantine.py`, of which a test takes the figure."""
PARTING_BYTES = 4
"""Of the news that a connection is closed."""

Connect = Callable[[WorkerSite | None], WorkerSite]
"""Joins the cluster, over the way of the connection before, if there was one."""


class SimulatedWorker:
    """One worker, and the newest of its connections."""

    def __init__(self, cluster: Cluster, connect: Connect, *, rtt_s: float, seed: int) -> None:
        """Dials in now."""
        self._cluster, self._connect, self._rtt_s = cluster, connect, rtt_s
        self._random = random.Random(seed)
        self._redial = Redial(now=cluster.queue.now)
        self._turned_away_s, self._let_in_at = TURNED_AWAY_S, -math.inf
        self._is_let_in = True
        """Whether the newest dial came to a connection."""
        self._dialled_at = self.connected_at = cluster.queue.now
        """`connected_at`: when the newest connection was made."""
        self.is_running = True
        self.redials = 0
        """Connections beyond the first."""
        self.site = connect(None)

    def crash(self) -> None:
        """The process ends for good."""
        self.is_running = False
        if self.site.is_alive:
            self._cluster.crash(self.site)

    def dropped(self, drop: DropWorker) -> None:
        """The controller has ended the connection. The worker hears of it over its way, or finds that it hears nothing any more."""
        now = self._cluster.queue.now
        if drop.is_at_fault:
            self._let_in_at = now + self._turned_away_s
            self._turned_away_s *= 2
        news_at, gives_up_at = self.site.down.arrival(PARTING_BYTES, now=now), self.site.machine.next_deadline()
        self._dial_later(max(now, min(when for when in (news_at, gives_up_at, math.inf) if when is not None)))

    def left(self) -> None:
        """The worker has ended the connection, since it heard nothing any more."""
        self._dial_later(self._cluster.queue.now)

    def _dial_later(self, over_at: float) -> None:
        """The connection, or the try to make one, is over then."""
        wait_s = self._redial.delay_s(began=self._dialled_at, was_let_in=self._is_let_in, least_s=FIRST_REDIAL_S, now=over_at)
        self._cluster.later(over_at + shortened(wait_s, self._random.random()), self._dial)

    def _dial(self) -> None:
        if not self.is_running:
            return
        now = self._dialled_at = self._cluster.queue.now
        self._is_let_in = False
        if now < self._let_in_at or self.site.down.is_cut(now):
            self._dial_later(now)
        else:
            self._cluster.later(now + HANDSHAKE_RTTS * self._rtt_s, self._come_again)

    def _come_again(self) -> None:
        if self.is_running:
            before, self.redials, self._is_let_in = self.site, self.redials + 1, True
            self.site, self.connected_at = self._connect(before), self._cluster.queue.now
            self.site.mangle, self.site.stalled_until = before.mangle, before.stalled_until
