"""One direction of a wide-area link: when a message that is sent now arrives, if it does.

Propagation (half the round trip), a random extra delay, serialisation at the link's bandwidth, loss, partitions and slow spells. Loss is
seen as the transport sees it. TCP: nothing is lost for good and the order is kept, so that a lost segment comes late and holds up
everything behind it; the first recovery takes 1.25 round trips (RACK, RFC 8985), further ones a retransmission timeout that doubles from
200 ms to two minutes (RFC 6298; Linux' bounds). Datagrams: what is lost is lost, what is late arrives out of order. Even then only drafts
travel as datagrams; what the controller says is on a stream in any case.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from wanspec.core.protocol.messages import CloseSession, Commit, Drafts, Message, OpenSession, Ping, Pong, frame_bytes

RECOVERY_RTTS = 1.25
MIN_RECOVERY_S = 0.002
MIN_RETRANSMISSION_TIMEOUT_S = 0.2
MAX_RETRANSMISSION_TIMEOUT_S = 120.0
FRAMING_BYTES = 22
"""What gRPC, HTTP/2 and TLS add to a frame (9 + 5 + 8 to 29): only bandwidth cares."""


class Jitter(StrEnum):
    """Shape of the extra one-way delay; its mean is `LinkProfile.jitter_s`."""

    UNIFORM = "uniform"
    EXPONENTIAL = "exponential"
    LOGNORMAL = "lognormal"
    """With sigma 1: mostly small, now and then ten times the mean."""


class Transport(StrEnum):
    """How loss and order show."""

    TCP = "tcp"
    """One stream for all sessions: what is late holds up everything behind it."""
    STREAMS = "streams"
    """A stream for each session, as QUIC has them: it holds up its own session only."""
    DATAGRAM = "datagram"
    """What is lost is lost, and what is late is overtaken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """What a link does to messages."""

    rtt_s: float
    jitter_s: float = 0.0
    """Mean extra delay, one way."""
    jitter: Jitter = Jitter.EXPONENTIAL
    loss: float = 0.0
    """Share of messages lost on the way, in [0, 1)."""
    loss_burst: float = 1.0
    """Mean number of messages lost in a row, at least 1."""
    bandwidth_bytes_per_s: float = float("inf")
    transport: Transport = Transport.TCP


@dataclass(slots=True)
class Troubles:
    """What is wrong with one direction of a way, whichever connection uses it."""

    cuts: list[tuple[float, float]] = field(default_factory=list)
    """Nothing gets through from the one time to the other."""
    spells: list[tuple[float, float, float]] = field(default_factory=list)
    """Delays are so many times as long from the one time to the other."""


class Link:
    """One direction."""

    def __init__(self, profile: LinkProfile, *, seed: int, troubles: Troubles | None = None) -> None:
        """`troubles`: those of the way, where an earlier connection used it."""
        self.troubles = troubles or Troubles()
        self._profile = profile
        self._random = random.Random(seed)
        self._sent_until = 0.0
        self._frame_at, self._frame_content_bytes = -math.inf, 0
        self._arrived_until: defaultdict[object, float] = defaultdict(float)
        """When the newest message of each stream arrives."""
        self._is_losing = False
        self.lost = self.retransmitted = 0
        self.carried_bytes = 0
        """Padded and framed; what is sent again is counted once."""

    def cut(self, begin: float, end: float) -> None:
        """Nothing gets through in this time."""
        self.troubles.cuts.append((begin, end))

    def slow(self, begin: float, end: float, factor: float) -> None:
        """Delays are multiplied by `factor` in this time."""
        self.troubles.spells.append((begin, end, factor))

    def is_cut(self, when: float) -> bool:
        """Whether nothing gets through at that time."""
        return any(begin <= when < end for begin, end in self.troubles.cuts)

    def arrival(self, size_bytes: int, *, now: float, session: object = None) -> float | None:
        """When a message of this session sent now is there; None: never."""
        profile = self._profile
        sent = max(now, self._sent_until) + self._wire_bytes(size_bytes, now) / profile.bandwidth_bytes_per_s
        self._sent_until = sent
        is_lost = self._is_lost(sent)
        if profile.transport is Transport.DATAGRAM:
            self.lost += is_lost
            return None if is_lost else sent + self._delay_s(sent)
        recovery_s = max(MIN_RECOVERY_S, RECOVERY_RTTS * profile.rtt_s)
        while is_lost:
            self.retransmitted += 1
            sent += recovery_s
            recovery_s = min(max(2 * recovery_s, MIN_RETRANSMISSION_TIMEOUT_S), MAX_RETRANSMISSION_TIMEOUT_S)
            is_lost = self.is_cut(sent) or self._random.random() < profile.loss  # the burst is over by then
        stream = session if profile.transport is Transport.STREAMS else None
        self._arrived_until[stream] = max(self._arrived_until[stream], sent + self._delay_s(sent))
        return self._arrived_until[stream]

    def _wire_bytes(self, size_bytes: int, now: float) -> int:
        """What this message adds to what is under way: frames are padded; messages of one moment share one where they share a stream."""
        is_shared = now == self._frame_at and self._profile.transport is Transport.TCP
        content_bytes = self._frame_content_bytes if is_shared else 0
        self._frame_at, self._frame_content_bytes = now, content_bytes + size_bytes
        paid_bytes = frame_bytes(content_bytes) + FRAMING_BYTES if is_shared else 0
        added_bytes = frame_bytes(content_bytes + size_bytes) + FRAMING_BYTES - paid_bytes
        self.carried_bytes += added_bytes
        return added_bytes

    def _is_lost(self, when: float) -> bool:
        if self.troubles.cuts and self.is_cut(when):
            return True
        profile = self._profile
        if not profile.loss:
            return False
        if profile.loss_burst <= 1.0:
            return self._random.random() < profile.loss
        stays = 1.0 - 1.0 / profile.loss_burst  # Gilbert's two states: in the bad one all is lost
        begins = profile.loss / ((1.0 - profile.loss) * profile.loss_burst)
        self._is_losing = self._random.random() < (stays if self._is_losing else begins)
        return self._is_losing

    def _delay_s(self, when: float) -> float:
        profile = self._profile
        delay_s = profile.rtt_s / 2
        if profile.jitter_s:
            delay_s += self._jitter_s()
        for begin, end, factor in self.troubles.spells:
            if begin <= when < end:
                delay_s *= factor
        return delay_s

    def _jitter_s(self) -> float:
        mean_s = self._profile.jitter_s
        match self._profile.jitter:
            case Jitter.UNIFORM:
                return self._random.uniform(0.0, 2 * mean_s)
            case Jitter.EXPONENTIAL:
                return self._random.expovariate(1.0 / mean_s)
            case Jitter.LOGNORMAL:
                return mean_s * self._random.lognormvariate(-0.5, 1.0)


def message_bytes(message: Message) -> int:
    """About what the wire's codec makes of a message; a test holds it to within a quarter of the truth."""
    match message:
        case Drafts():
            return 18 + 5 * len(message.tokens)
        case Commit():
            return 8 + 3 * len(message.tokens)
        case OpenSession():
            return 30 + 3 * len(message.tokens)
        case CloseSession() | Ping() | Pong():
            return 4
        case _:
            return 40
