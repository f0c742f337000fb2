"""Whether the other end still lives: pings while a link is quiet, and a deadline for the answer.

A dead machine or a cut link says nothing, and TCP may take minutes to notice. So when the controller has told a worker nothing for a
while, or has had no answer for as long, it sends a Ping, which the worker answers at once with a Pong. Whatever the worker sends is a sign
of life. A worker that was told something and has sent nothing at all since, for some round trips, is lost; it is at no fault. A worker
hears from its controller at least as often as there are pings, and gives up a controller after several missed ones.

A deadline that is noticed far too late says more about us (a stopped process, a laptop that slept) than about the other end, and starts
anew.
"""

from __future__ import annotations

from wanspec.core.protocol.rtt import RttEstimate

PING_PERIOD_S = 1.0
"""Of silence one way or the other, after which a worker is pinged: 1 kB a second, both ways together and padded, without the wire's own."""
LOST_MIN_S = 3.0
"""Without any sign of life, after which a worker is lost: TCP recovers from three losses in a row in that time."""
LOST_RTTS = 8.0
CONTROLLER_LOST_S = 6.0
"""Without a word from the controller, after which a worker dials again: six pings, of which the last may be three seconds late."""
ASLEEP_S = 0.5
"""Late by so much, a deadline is not held against the other end."""


class Heartbeat:
    """A controller's view of one worker's life."""

    def __init__(self, *, now: float) -> None:
        self.rtt = RttEstimate()
        """Of pings: unlike that of acknowledgements it depends on nothing that the worker says."""
        self._told_at = now
        self._waiting_since: float | None = None
        """When the first thing was said that the worker has not answered with anything at all."""
        self._newest_ping = self._newest_pong = 0
        self._pinged_at = float("-inf")

    @property
    def ping_due(self) -> float:
        """When the next ping is due."""
        since = self._told_at if self._waiting_since is None else self._waiting_since
        return max(since, self._pinged_at) + PING_PERIOD_S

    @property
    def lost_at(self) -> float | None:
        """When the worker counts as lost unless it gives a sign of life; None while nothing is asked of it."""
        if self._waiting_since is None:
            return None
        return self._waiting_since + max(LOST_MIN_S, LOST_RTTS * self.rtt.smoothed_s)

    def told(self, *, now: float) -> None:
        """The worker was told something; if it has no answer to that, it will have one to the next ping."""
        self._told_at = now
        if self._waiting_since is None:
            self._waiting_since = now

    def heard(self) -> None:
        """The worker has given a sign of life."""
        self._waiting_since = None

    def ping(self, *, now: float) -> int:
        """The number of a ping that is sent now."""
        self.told(now=now)
        self._newest_ping += 1
        self._pinged_at = now
        return self._newest_ping

    def ponged(self, number: int, *, now: float) -> bool:
        """The worker has answered a ping. False when there was no such ping."""
        self.heard()
        if self._newest_pong < number == self._newest_ping:
            self.rtt.add(now - self._pinged_at)
            self._newest_pong = number
        return number <= self._newest_ping

    def is_lost(self, *, now: float) -> bool:
        """Whether the worker has been silent for too long; where we slept over the deadline it has another chance."""
        lost_at = self.lost_at
        if lost_at is None or now < lost_at:
            return False
        if now > lost_at + ASLEEP_S:
            self._waiting_since = now
            return False
        return True
