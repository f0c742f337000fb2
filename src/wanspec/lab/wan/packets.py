"""One direction of an emulated WAN, packet by packet: which get lost, and when the others are due.

A packet that arrives first waits its turn behind those before it, as far as the bandwidth is limited and the queue has room (it drops what
comes when it is full), then takes half the RTT and a jitter, and may be lost on the way. Nothing overtakes. What is under way when the link
is cut still arrives. No clock here and no descriptors: `now` comes from the caller, packets go in and out.

Not emulated: reordering, duplication, corruption, and queues that mark or drop early.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from wanspec.lab.wan.emulated_link import Lateness, LinkDirection, LinkSettings

MAX_QUEUE_S: Final = 0.1
"""How long a packet may wait for its turn where the bandwidth is limited: a bottleneck's buffer, sized by the classic rule of one
bandwidth-delay product (Villamizar and Song, 1994) for a path of 100 ms."""
MAX_HELD_BYTES: Final = 64 << 20
"""Under way in one direction: 10 Gbit/s for 50 ms, ten times what this emulator can carry. What comes beyond it is dropped."""


class LossProcess:
    """Which packets are lost: each by itself, or in bursts as in Gilbert's model of two states, in the bad one of which all is lost."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._is_losing = False

    def loses(self, settings: LinkSettings) -> bool:
        """Whether the next packet is lost."""
        if settings.loss_burst == 1.0 or not settings.loss:
            self._is_losing = False
            return self._random.random() < settings.loss
        stays = 1.0 - 1.0 / settings.loss_burst
        begins = settings.loss / ((1.0 - settings.loss) * settings.loss_burst)
        self._is_losing = self._random.random() < (stays if self._is_losing else begins)
        return self._is_losing


@dataclass(slots=True)
class PacketCounts:
    """What became of the packets of one direction."""

    sent: int = 0
    lost: int = 0
    """Packets lost by chance, on the way."""
    overflowed: int = 0
    """At the end of a full queue."""
    cut: int = 0
    """While the link was down."""


class PacketLane:
    """The packets of one direction, in order, each with its due time in seconds."""

    def __init__(self, settings: LinkSettings, *, seed: int, lateness: Lateness) -> None:
        source = random.Random(seed)
        self.link = LinkDirection(settings=settings, random=source, lateness=lateness)
        self.counts = PacketCounts()
        self._loss = LossProcess(source)
        self._packets: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._last_due_s = 0.0

    @property
    def next_due_s(self) -> float | None:
        """When the next packet is due; None without any."""
        return self._packets[0][0] if self._packets else None

    def put(self, packet: bytes, *, now: float) -> None:
        """Take a packet that arrives now, or drop it."""
        settings = self.link.settings
        if settings.down:
            self.counts.cut += 1
            return
        waits_s = self.link.idle_from_s - now if settings.bandwidth_bytes_per_s is not None else 0.0
        if waits_s > MAX_QUEUE_S or self._held_bytes + len(packet) > MAX_HELD_BYTES:
            self.counts.overflowed += 1
            return
        due_s = self.link.due_s(now=now, size=len(packet))
        if self._loss.loses(settings):
            self.counts.lost += 1
            return
        self._last_due_s = max(self._last_due_s, due_s)
        self._packets.append((self._last_due_s, packet))
        self._held_bytes += len(packet)

    def take(self, *, now: float) -> bytes | None:
        """A packet that is due by now; None: there is no more."""
        if not self._packets or self._packets[0][0] > now:
            return None
        due_s, packet = self._packets.popleft()
        self._held_bytes -= len(packet)
        self.link.lateness.add(now - due_s)
        self.link.sent_bytes += len(packet)
        self.counts.sent += 1
        return packet
