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
    """Connections a listener lets in at a time, over all peers."""
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


@dataclass(slots=True)
class FrameAllowance:
    """A token bucket: `max_frames_per_s` for ever, `max_frames_burst` at once."""

    limits: WireLimits
    left: float = field(init=False)
    updated_s: float | None = None

    def __post_init__(self) -> None:
        self.left = float(self.limits.max_frames_burst)

    def take(self, *, now: float) -> bool:
        """Account for one frame; False when the peer has sent too many."""
        if self.updated_s is not None:
            self.left = min(self.left + (now - self.updated_s) * self.limits.max_frames_per_s, self.limits.max_frames_burst)
        self.updated_s = now
        self.left -= 1.0
        return self.left >= 0.0
