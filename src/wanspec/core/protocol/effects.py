"""What a machine asks of its driver, in the order in which it is to be done.

The last group asks nothing: it is what the machine alone knows and an operator wants to see; drivers write it to the trace.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from wanspec.core.protocol.messages import Message
from wanspec.core.speculation.types import LogProbs, Position, ScoreItem, SessionId, WorkerId


class FinishReason(StrEnum):
    """Why a request ended."""

    END = "end"
    """The target chose its end-of-text token."""
    LENGTH = "length"
    """All tokens that were asked for are there."""
    CANCELLED = "cancelled"
    """Nobody wanted the text any more."""
    ERROR = "error"
    """A model pass failed."""


class LossCause(StrEnum):
    """Why a worker is no longer connected."""

    PROTOCOL = "protocol"
    """It broke a rule of the protocol or one of its limits."""
    UNANSWERED = "unanswered"
    """It left a commit unanswered for too long, though it lives."""
    SILENT = "silent"
    """It gave no sign of life."""
    SLOW = "slow"
    """It did not read what it was sent; a driver sees that."""
    DISCONNECTED = "disconnected"
    """It went, or its machine or the network died; a driver sees that."""
    CLOSED = "closed"
    """It was sent home."""


class StartVerify(Struct, frozen=True, kw_only=True):
    """Run one target pass over these sessions; answer with VerifyFinished or PassFailed."""

    items: tuple[ScoreItem, ...]
    """Each session's part of the pass."""


class StartDraft(Struct, frozen=True, kw_only=True):
    """Run one pass of this side's draft model; answer with DraftFinished or PassFailed."""

    items: tuple[ScoreItem, ...]
    """Each session's part of the pass."""


class SendMessage(Struct, frozen=True, kw_only=True):
    """Send this to a worker, or, from a worker (None), to its controller."""

    worker_id: WorkerId | None
    """The worker that gets it; None: the controller does."""
    message: Message
    """What to send."""


class DraftsProposed(Struct, frozen=True, kw_only=True):
    """What may follow the rows of an engine's step."""

    chains: tuple[tuple[int, ...], ...]
    """For each row, in order, tokens one after the other; none where nothing is worth its verification."""
    local_drafts: int = 0
    """Local draft passes in this step; one over several texts counts for each of them."""
    local_draft_tokens: int = 0
    """Draft tokens that these passes gave."""


class EmitTokens(Struct, frozen=True, kw_only=True):
    """These tokens are final: give them to whoever asked."""

    session_id: SessionId
    """The session that they belong to."""
    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]
    """The final tokens, in order."""
    log_probs: tuple[LogProbs, ...] = ()
    """For each of `tokens`, where the request asked for them."""


class FinishRequest(Struct, frozen=True, kw_only=True):
    """The request is over."""

    session_id: SessionId
    """The session that is over."""
    reason: FinishReason
    """Why it is over."""
    message: str = ""
    """What went wrong, where something did."""


class ReleaseSession(Struct, frozen=True, kw_only=True):
    """Free every cache of this session, after the pass in flight."""

    session_id: SessionId
    """The session whose caches to free."""


class DropWorker(Struct, frozen=True, kw_only=True):
    """End the connection to a worker."""

    worker_id: WorkerId
    """The worker to hang up on."""
    reason: str
    """Why, for people and for the worker."""
    cause: LossCause = LossCause.PROTOCOL
    """Why, for counting."""
    is_at_fault: bool = True
    """Whether it broke the rules or lags, and should not come back at once."""


class LeaveController(Struct, frozen=True, kw_only=True):
    """End the connection to the controller, and dial again (worker's side)."""

    reason: str
    """Why, for the log."""


class RoundFinished(Struct, frozen=True, kw_only=True):
    """A verify and its outcome."""

    session_id: SessionId
    """The session that the round was of."""
    drafted: int
    """Draft tokens verified."""
    accepted: int
    """Draft tokens committed."""
    committed: int
    """Tokens committed, the target's own among them."""
    is_prefill: bool = False
    """Whether it is the request's first round, which decides nothing."""
    entropy_nats: float | None = None
    """Of the target's distribution for the last token that it chose; None unless the request's policy uses it."""
    entropy_before_nats: float | None = None
    """The same of the round before."""
    accepted_estimates: tuple[float, ...] = ()
    """The probabilities at which verified drafts that came true had been estimated, given their parents."""
    rejected_estimates: tuple[float, ...] = ()
    """The same of verified drafts beside them, which did not come true."""
    worker_id: WorkerId | None = None
    """The worker that drafts for the session; None: nobody does."""
    proposed: int = 0
    """Committed tokens that this worker had proposed in time, verified or not."""
    draft_ages_s: tuple[float, ...] = ()
    """How long before the verify the accepted drafts had arrived, those that the session's worker had proposed."""
    local_drafts: int = 0
    """Local draft passes that the session took part in since the round before."""
    waits: int = 0
    """Times that its policy chose to wait for the worker since the round before."""
    waited_s: float = 0.0
    """How long it waited in all since the round before, in seconds."""


class DraftsMerged(Struct, frozen=True, kw_only=True):
    """What became of a worker's drafts."""

    session_id: SessionId
    """The session that they were for."""
    worker_id: WorkerId
    """The worker that sent them."""
    joined: int
    """Those that entered the tree or met a node that was there already: the next two are among them."""
    late: int = 0
    """Those whose token had been committed before they came."""
    duplicates: int = 0
    """Those that had been drafted here, looked up or proposed before."""
    stale: int
    """Those built on a prefix that is no longer committed or open, and those sent a second time."""
    refused: int = 0
    """Those beyond a limit of the tree or of its depth, of which an honest worker sends none."""


class RttMeasured(Struct, frozen=True, kw_only=True):
    """A round trip, worked out from an acknowledgement."""

    worker_id: WorkerId
    """The worker that answered."""
    rtt_s: float
    """The round trip, without the time that the worker held its answer."""


Observation = RoundFinished | DraftsMerged | RttMeasured
Effect = (
    StartVerify
    | StartDraft
    | SendMessage
    | DraftsProposed
    | EmitTokens
    | FinishRequest
    | ReleaseSession
    | DropWorker
    | LeaveController
    | Observation
)
