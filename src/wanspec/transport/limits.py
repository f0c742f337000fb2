"""Limits on what a peer may cost. Every wire takes these; a test or an operator may tighten them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """Bounds on time, memory and rate, per connection unless it says otherwise."""

    handshake_timeout_s: float = 10.0
    """From connecting to a Welcome, both sides: 4 RTT of TCP and TLS over the worst link, with room for a lost packet or two."""
    close_timeout_s: float = 2.0
    """How long a closing side waits for its last frames to leave before it cuts the connection."""
    max_workers: int = 64
    """Connections a listener lets in or greets at a time, over all peers; `door.Places` divides them between peers."""
    max_handshakes: int = 64
    """Connections a listener is still greeting at a time, over all peers: a whole fleet may come back at once."""
    max_unsent_bytes: int = 8 << 20
    """Queued here for a slow reader: a dozen of the longest prompts. Beyond it the peer is too slow to be of use."""
    max_unread_bytes: int = 4 << 20
    """Received and not yet taken by our own caller; beyond it we stop reading and the wire pushes back on the peer."""
    max_frames_per_s: float = 4000.0
    """Above what gRPC in Python can carry on one core; an honest peer coalesces long before."""
    max_frames_burst: int = 8000
    """Frames at once: what an honest peer sends in the two seconds for which a lossy link may hold everything back."""
    max_messages_per_s: float = 20_000.0
    """One step's drafts for each of some hundred sessions, every 5 ms; a frame could hold a thousand messages that say nothing."""
    max_messages_burst: int = 40_000
    """Messages at once: two seconds' worth, as with frames."""
    max_nodes_per_s: float = 200_000.0
    """Draft nodes, at about a microsecond each. The widest tree of a fast draft model, 32 leaves x 8 branches every 2.5 ms, has 100,000."""
    max_nodes_burst: int = 400_000
    """Draft nodes at once: two seconds' worth, as with frames."""
    max_door_nodes_per_s: float = 400_000.0
    """Draft nodes over all connections of a listener, half of a core's time; beyond it peers wait for their turn (`door`)."""
    max_door_nodes_burst: int = 800_000
    """Draft nodes at once over all connections of a listener: two seconds' worth, as with frames."""


@dataclass(slots=True)
class Allowance:
    """A token bucket, which is full at first."""

    per_s: float
    """Inflow per second."""
    burst: int
    """Content when full."""
    left: float = field(init=False)
    """Present content; below 0 after more was taken than there was."""
    updated_s: float | None = None
    """When `left` was last brought up to date."""

    def __post_init__(self) -> None:
        self.left = float(self.burst)

    def take(self, amount: int = 1, *, now: float) -> bool:
        """Take this much, even when there is less; then False."""
        if self.updated_s is not None:
            self.left = min(self.left + (now - self.updated_s) * self.per_s, self.burst)
        self.updated_s = now
        self.left -= amount
        return self.left >= 0.0

    def wait_s(self, amount: int = 1, *, now: float) -> float:
        """Seconds until there is this much; 0: there is. Takes nothing."""
        self.take(0, now=now)
        return max(0.0, (amount - self.left) / self.per_s)
