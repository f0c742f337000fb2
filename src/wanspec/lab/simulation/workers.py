"""A worker of a scenario: a process that keeps its controller, connection after connection, as the real one does; and its faults.

It dials again after the same waits (`protocol/redial.py`). While its way is cut a dial comes to nothing. Where the controller dropped it
for what it did, it is turned away for ten seconds, and for twice as long each further time. What is wrong with it, and with its way, stays
when it comes again; only a crash ends it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from wanspec.core.protocol.effects import DropWorker
from wanspec.core.protocol.messages import Drafts
from wanspec.core.protocol.redial import FIRST_REDIAL_S, Redial, shortened
from wanspec.core.speculation.types import Position
from wanspec.lab.simulation.cluster import Cluster, WorkerSite
from wanspec.lab.simulation.scenario import Fault

if TYPE_CHECKING:
    from wanspec.lab.simulation.run import Stage

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


def inject(fault: Fault, stage: Stage) -> None:
    """Let a fault begin now. What happens to a worker that is not there, or has crashed, is nothing."""
    if fault.kind == "join":
        stage.faults["join"] += 1
        stage.add_worker()
    elif fault.worker <= len(stage.workers) and stage.workers[fault.worker - 1].is_running:
        stage.faults[fault.kind] += 1
        _befall(stage.workers[fault.worker - 1], fault, now=stage.cluster.queue.now)


def _befall(worker: SimulatedWorker, fault: Fault, *, now: float) -> None:
    site, end = worker.site, now + fault.duration_ms / 1e3
    match fault.kind:
        case "crash":
            worker.crash()
        case "stall":
            site.stalled_until = max(site.stalled_until, end)
        case "garbage":
            site.mangle = nonsense if fault.is_subtle else impossible
        case "partition":
            site.down.cut(now, end)
            site.up.cut(now, end)
        case "slow":
            site.down.slow(now, end, fault.factor)
            site.up.slow(now, end, fault.factor)


def nonsense(drafts: Drafts) -> Drafts:
    """Plausible and useless: every token another, every estimate certain."""
    return replace(drafts, tokens=tuple((token * 31 + 7) % 97 for token in drafts.tokens), log_probs=(0.0,) * len(drafts.tokens))


def impossible(drafts: Drafts) -> Drafts:
    """What no honest worker says: it knows a commit that was never made."""
    return replace(drafts, base_position=Position(drafts.base_position + 10_000))
