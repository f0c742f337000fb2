"""What a machine asks of its driver, in the order in which it is to be done.

The last group asks nothing: it is what the machine alone knows and an operator wants to see; drivers write it to the trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wanspec.protocol.messages import Message
from wanspec.speculation.types import Position, ScoreItem, SessionId, WorkerId


class FinishReason(StrEnum):
    """Why a request ended."""

    END = "end"
    """The target chose its end-of-text token."""
    LENGTH = "length"
    """All tokens that were asked for are there."""
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartVerify:
    """Run one target pass over these sessions; answer with VerifyFinished or PassFailed."""

    items: tuple[ScoreItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDraft:
    """Run one pass of this side's draft model; answer with DraftFinished or PassFailed."""

    items: tuple[ScoreItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendMessage:
    """Send this to a worker, or, from a worker (None), to its controller."""

    worker_id: WorkerId | None
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitTokens:
    """These tokens are final: give them to whoever asked."""

    session_id: SessionId
    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRequest:
    """The request is over."""

    session_id: SessionId
    reason: FinishReason
    message: str = ""
    """What went wrong, where something did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSession:
    """Free every cache of this session, after the pass in flight."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class DropWorker:
    """End the connection to a worker."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    """A verify and its outcome."""

    session_id: SessionId
    drafted: int
    accepted: int
    committed: int
    entropy_nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftsMerged:
    """What became of a worker's drafts."""

    session_id: SessionId
    worker_id: WorkerId
    joined: int
    stale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RttMeasured:
    """A round trip, worked out from an acknowledgement."""

    worker_id: WorkerId
    rtt_s: float


Observation = RoundFinished | DraftsMerged | RttMeasured
Effect = StartVerify | StartDraft | SendMessage | EmitTokens | FinishRequest | ReleaseSession | DropWorker | Observation
