"""What a driver tells a machine. Everything that happens reaches a machine as one of these, through `handle`."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.messages import MAX_SEQUENCE_TOKENS, ControllerMessage, Drafts
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.core.speculation.types import DraftChoices, SamplingParams, SessionId, TargetChoices, WorkerId


class RequestArrived(Struct, frozen=True, kw_only=True):
    """Somebody wants text."""

    session_id: SessionId
    """Above every earlier one."""
    prompt_tokens: tuple[int, ...]
    """At least one."""
    sampling: SamplingParams
    """How the target chooses."""
    max_tokens: int
    """Tokens to generate, at least 1; prompt and these together fit the target's context."""
    policy: PolicyConfig
    """When to be redundant."""
    placement: Placement = ANYWHERE
    """Which workers may draft for it."""
    reuse_key: str | None = None
    """This site's models may begin from what they have computed for finished requests with this key; None: they may not."""
    num_log_probs: int | None = None
    """Of how many tokens, the most probable ones, the log probabilities are wanted besides that of each token; None: of none at all."""
    ignores_end: bool = False
    """Whether the text goes on behind the model's end tokens, to `max_tokens`: benchmarks ask for that."""


class RequestCancelled(Struct, frozen=True, kw_only=True):
    """Nobody wants that text any more. An unknown session is no error."""

    session_id: SessionId
    """The session that nobody wants."""


class WorkerJoined(Struct, frozen=True, kw_only=True):
    """A worker was let in."""

    worker_id: WorkerId
    """The id of this connection."""
    name: str
    """How an operator knows it."""
    max_sessions: int
    """Sessions that it is willing to draft for at a time."""
    labels: tuple[str, ...] = ()
    """What it says it is, as KEY=VALUE."""
    context_length: int = MAX_SEQUENCE_TOKENS
    """Longest sequence, in tokens, that its draft model can hold."""
    identity: str = ""
    """The same each time that it connects, so that its record is kept; empty: it is new each time."""
    model_name: str = ""
    """What it calls its draft model; empty: not known."""


class WorkerLost(Struct, frozen=True, kw_only=True):
    """A worker's connection is gone."""

    worker_id: WorkerId
    """The worker that is gone."""


class DraftsReceived(Struct, frozen=True, kw_only=True):
    """A worker sent drafts."""

    worker_id: WorkerId
    """The worker that sent them."""
    drafts: Drafts
    """What it sent."""


class PongReceived(Struct, frozen=True, kw_only=True):
    """A worker answered a ping."""

    worker_id: WorkerId
    """The worker that answered."""
    number: int
    """The number of the ping that it answers."""


class MessageReceived(Struct, frozen=True, kw_only=True):
    """The controller sent something (worker's side)."""

    message: ControllerMessage
    """What it said."""


class VerifyFinished(Struct, frozen=True, kw_only=True):
    """The target pass in flight is done."""

    choices: tuple[TargetChoices, ...]
    """For each item of the pass, in order."""
    duration_s: float
    """How long the pass took, in seconds."""


class DraftFinished(Struct, frozen=True, kw_only=True):
    """The draft pass in flight is done."""

    choices: tuple[tuple[DraftChoices, ...], ...]
    """For each item of the pass, in order, one ranking per row."""
    duration_s: float
    """How long the pass took, in seconds."""


class PassKind(StrEnum):
    """What a controller's pass is for."""

    VERIFY = "verify"
    """A pass of the target."""
    DRAFT = "draft"
    """A pass of the local draft model."""


class PassFailed(Struct, frozen=True, kw_only=True):
    """The pass of this kind in flight could not be run; its sessions cannot go on."""

    kind: PassKind
    """Which pass it was."""
    reason: str
    """What went wrong, for people."""


class DeadlineReached(Struct, frozen=True, kw_only=True):
    """`next_deadline()` has come."""


class RowTokens(Protocol):
    """The tokens of a row, which may be long: what is wanted of them is copied."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> tuple[int, ...]:
        """Those from `start` up to, and without, `stop`."""
        ...

    def packed(self, start: int, stop: int) -> bytes:
        """The same as bytes, alike for the same tokens: much cheaper to make and to look up."""
        ...


class Row(Struct, frozen=True, kw_only=True):
    """A request in an engine's step."""

    tokens: RowTokens
    """Prompt and committed tokens, at least one; to be read at once, for the engine changes them."""
    num_new: int
    """How many of them this step has committed; 0: its prompt is still being computed, and it is not drafted for."""


class StepFinished(Struct, frozen=True, kw_only=True):
    """An engine that verifies by itself has finished a step, and asks what may follow each row.

    Answered by DraftsProposed: at once, or after passes of the draft model beside the engine (StartDraft).
    """

    rows: tuple[Row, ...]
    """Every request in the engine's step."""


LinkEvent = WorkerJoined | WorkerLost | DraftsReceived | PongReceived
"""What workers do."""
ProposerEvent = StepFinished | LinkEvent | DraftFinished | PassFailed | DeadlineReached
ControllerEvent = RequestArrived | RequestCancelled | LinkEvent | VerifyFinished | DraftFinished | PassFailed | DeadlineReached
WorkerEvent = MessageReceived | DraftFinished | DeadlineReached
