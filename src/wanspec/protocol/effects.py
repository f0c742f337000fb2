"""What a machine asks of its driver, in the order in which it is to be done.

The last group asks nothing: it is what the machine alone knows and an operator wants to see; drivers write it to the trace.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from wanspec.protocol.messages import Message
from wanspec.speculation.types import LogProbs, Position, ScoreItem, SessionId, WorkerId


class FinishReason(StrEnum):
    """Why a request ended."""

    END = "end"
    """The target chose its end-of-text token."""
    LENGTH = "length"
    """All tokens that were asked for are there."""
    CANCELLED = "cancelled"
    ERROR = "error"


class StartVerify(Struct, frozen=True, kw_only=True):
    """Run one target pass over these sessions; answer with VerifyFinished or PassFailed."""

    items: tuple[ScoreItem, ...]


class StartDraft(Struct, frozen=True, kw_only=True):
    """Run one pass of this side's draft model; answer with DraftFinished or PassFailed."""

    items: tuple[ScoreItem, ...]


class SendMessage(Struct, frozen=True, kw_only=True):
    """Send this to a worker, or, from a worker (None), to its controller."""

    worker_id: WorkerId | None
    message: Message


class EmitTokens(Struct, frozen=True, kw_only=True):
    """These tokens are final: give them to whoever asked."""

    session_id: SessionId
    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]
    log_probs: tuple[LogProbs, ...] = ()
    """For each of `tokens`, where the request asked for them."""


class FinishRequest(Struct, frozen=True, kw_only=True):
    """The request is over."""

    session_id: SessionId
    reason: FinishReason
    message: str = ""
    """What went wrong, where something did."""


class ReleaseSession(Struct, frozen=True, kw_only=True):
    """Free every cache of this session, after the pass in flight."""

    session_id: SessionId


class DropWorker(Struct, frozen=True, kw_only=True):
    """End the connection to a worker."""

    worker_id: WorkerId
    reason: str
    is_at_fault: bool = True
    """Whether it broke the rules or lags, and should not come back at once."""


class LeaveController(Struct, frozen=True, kw_only=True):
    """End the connection to the controller, and dial again (worker's side)."""

    reason: str


class RoundFinished(Struct, frozen=True, kw_only=True):
    """A verify and its outcome."""

    session_id: SessionId
    drafted: int
    accepted: int
    accepted_from_worker: int
    """Of these, those that the session's worker had proposed, whether or not this side had as well."""
    committed: int
    entropy_nats: float
    accepted_estimates: tuple[float, ...] = ()
    rejected_estimates: tuple[float, ...] = ()


class DraftsMerged(Struct, frozen=True, kw_only=True):
    """What became of a worker's drafts."""

    session_id: SessionId
    worker_id: WorkerId
    joined: int
    stale: int


class RttMeasured(Struct, frozen=True, kw_only=True):
    """A round trip, worked out from an acknowledgement."""

    worker_id: WorkerId
    rtt_s: float


Observation = RoundFinished | DraftsMerged | RttMeasured
Effect = StartVerify | StartDraft | SendMessage | EmitTokens | FinishRequest | ReleaseSession | DropWorker | LeaveController | Observation
