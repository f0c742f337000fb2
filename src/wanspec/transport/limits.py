"""What one peer may cost us. Every wire takes these; a test or an operator may tighten them."""

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
    """Connections a listener lets in or greets at a time, over all peers; `places` says how many of them may be one peer's."""
    max_handshakes: int = 64
    """Connections a listener is still greeting at a time, over all peers: a whole fleet may come back at once."""
    max_unsent_bytes: int = 8 << 20
    """Queued here for a slow reader: a dozen of the longest prompts. Beyond it the peer is too slow to be of use."""
    max_unread_bytes: int = 4 << 20
    """Received and not yet taken by our own caller; beyond it we stop reading and the wire pushes back on the peer."""
    max_frames_per_s: float = 4000.0
    """Above what gRPC in Python can carry on one core; a sane peer coalesces long before."""
    max_frames_burst: int = 8000
    """Frames at once: what a sane peer had under way while a lossy link held everything back for two seconds."""
    max_messages_per_s: float = 20_000.0
    """One step's drafts for each of some hundred sessions, every 5 ms; a frame could hold a thousand messages that say nothing."""
    max_messages_burst: int = 40_000
    """Messages at once: two seconds' worth, as with frames."""
    max_nodes_per_s: float = 200_000.0
    """Draft nodes, each of which costs us about a microsecond; 32 leaves x 8 branches every 2.5 ms, the widest tree of a fast draft model,
    are 100,000."""
    max_nodes_burst: int = 400_000
    """Draft nodes at once: two seconds' worth, as with frames."""
    max_door_nodes_per_s: float = 400_000.0
    """Draft nodes over all connections of a listener, half of a core's time; beyond it peers wait for their turn (`door`)."""
    max_door_nodes_burst: int = 800_000
    """Of these at once: two seconds' worth, as with frames."""


@dataclass(slots=True)
class Allowance:
    """A token bucket: `per_s` for ever, `burst` at once."""

    per_s: float
    burst: int
    left: float = field(init=False)
    updated_s: float | None = None

    def __post_init__(self) -> None:
        self.left = float(self.burst)

    def take(self, amount: int = 1, *, now: float) -> bool:
        """Account for what came; False when the peer has sent too much."""
        if self.updated_s is not None:
            self.left = min(self.left + (now - self.updated_s) * self.per_s, self.burst)
        self.updated_s = now
        self.left -= amount
        return self.left >= 0.0
