"""What a driver tells a machine. Everything that happens reaches a machine as one of these, through `handle`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wanspec.policy.registry import PolicyConfig
from wanspec.protocol.messages import ControllerMessage, Drafts
from wanspec.speculation.types import DraftChoices, SamplingParams, SessionId, TargetChoice, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """Somebody wants text."""

    session_id: SessionId
    """Above every earlier one."""
    prompt_tokens: tuple[int, ...]
    """At least one."""
    sampling: SamplingParams
    max_tokens: int
    """Tokens to generate, at least 1; prompt and these together fit the target's context."""
    policy: PolicyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """Nobody wants that text any more. An unknown session is no error."""

    session_id: SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker was let in."""

    worker_id: WorkerId
    name: str
    max_sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker's connection is gone."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftsReceived:
    """A worker sent drafts."""

    worker_id: WorkerId
    drafts: Drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """The controller sent something (worker's side)."""

    message: ControllerMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFinished:
    """The target pass in flight is done."""

    choices: tuple[tuple[TargetChoice, ...], ...]
    """For each item of the pass, in order, one choice per row."""
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFinished:
    """The draft pass in flight is done."""

    choices: tuple[tuple[DraftChoices, ...], ...]
    """For each item of the pass, in order, one ranking per row."""
    duration_s: float


class PassKind(StrEnum):
    """What a controller's pass is for."""

    VERIFY = "verify"
    DRAFT = "draft"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFailed:
    """The pass of this kind in flight could not be run; its sessions cannot go on."""

    kind: PassKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached:
    """`next_deadline()` has come."""


ControllerEvent = (
    RequestArrived
    | RequestCancelled
    | WorkerJoined
    | WorkerLost
    | DraftsReceived
    | VerifyFinished
    | DraftFinished
    | PassFailed
    | DeadlineReached
)
WorkerEvent = MessageReceived | DraftFinished
