"""The trace schema: one class for each kind of record of a run.

A trace is a set of records. In a file each is one line of JSON whose `kind` is the class's name in snake case:

    {"kind":"pass_started","t":12.5,"site":"worker","model":"draft","sessions":[7],"tokens":3}

Real and simulated drivers write them; `trace` stores them and reads them back; figures are computed from them. Rules:

1. A record is an event, never a figure: figures are computed later.
2. Every record stands alone, in any order, so that traces of several processes are merged by concatenation. Their clocks must agree; on one
   machine the monotonic clock does. Two kinds, which are in files only, are an exception: a machine's settings and its events, in their
   order, for `replay`. No figure is computed from them.
3. Reading checks every field; a trace that reads without an error is well-formed.

Protocol events have some of the same names, so import this module as a whole: `records.PassStarted(...)`.

They are msgspec structs because a tagged union of structs is encoded, decoded and checked in one step.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from wanspec.core.speculation.types import Position, SessionId, WorkerId

Site = Literal["controller", "worker", "link"]
"""Where it happened; `link` is a relay between the two."""
Model = Literal["target", "draft"]
"""The model of a pass."""
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


def _kind_of(class_name: str) -> str:
    """The `kind` of a record class: its name in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class _Record(Struct, frozen=True, kw_only=True, tag=_kind_of, tag_field="kind", forbid_unknown_fields=True):
    """The fields of all records."""

    t: float
    """When, in seconds; the origin is the driver's own."""
    site: Site
    """Where."""


class _SessionRecord(_Record, frozen=True, kw_only=True):
    """The fields of all records of one session."""

    session: SessionId
    """Its id."""


class RequestArrived(_SessionRecord, frozen=True, kw_only=True):
    """A request begins."""

    prompt_tokens: Count
    """Length of the prompt."""
    policy: str
    """Name of the policy that decides for it."""


class TokensEmitted(_SessionRecord, frozen=True, kw_only=True):
    """Committed tokens were handed to the user."""

    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]
    """The tokens, in order."""


class RequestFinished(_SessionRecord, frozen=True, kw_only=True):
    """A request ends."""

    reason: str
    """Why: end of text, length, cancelled and the like."""


class PassStarted(_Record, frozen=True, kw_only=True):
    """A batched forward pass was handed to a model; a batch over many sessions is one pass."""

    model: Model
    """The model that computes it."""
    sessions: tuple[SessionId, ...]
    """Sessions in the pass."""
    tokens: Count
    """Tokens that the pass computes, over all sessions."""


class PassFinished(_Record, frozen=True, kw_only=True):
    """A batched forward pass came back."""

    model: Model
    """The model that computed it."""
    sessions: tuple[SessionId, ...]
    """Sessions in the pass."""
    tokens: Count
    """Tokens that the pass computed, over all sessions."""
    duration_s: Seconds
    """From start to finish, including pacing and the handling of the event that led to it."""


class RoundOverhead(_Record, frozen=True, kw_only=True):
    """The cost of a round in the deciding thread (`ControllerEngine` says what it includes). One for each target pass."""

    sessions: tuple[SessionId, ...]
    """Sessions whose round it was."""
    cpu_s: Seconds
    """CPU time of the event loop's thread since the round before, or since the request arrived where it was the only one."""


class Verified(_SessionRecord, frozen=True, kw_only=True):
    """One round of one session."""

    drafted: Count
    """Draft tokens that the target scored; 0 in an ordinary decode step."""
    accepted: Count
    """Draft tokens that the target accepted."""
    committed: Count
    """Tokens appended for good: the accepted ones and the bonus or correction token."""
    entropy_nats: float | None = None
    """Entropy of the target's distribution for its last choice, before the noise; None unless the policy uses it, as `paper` does."""
    accepted_estimates: tuple[float, ...] = ()
    """Estimated acceptance, given their parents, of the accepted drafts."""
    rejected_estimates: tuple[float, ...] = ()
    """Estimated acceptance of verified drafts that were rejected although their parents were accepted."""


class DraftsReceived(_SessionRecord, frozen=True, kw_only=True):
    """A worker's nodes reached the controller's tree."""

    worker: WorkerId
    """The worker that sent them."""
    nodes: Count
    """Nodes in the message."""
    joined: Count
    """Nodes that entered the tree or met one already there."""
    stale: Count
    """Nodes built on a prefix that is no longer committed or open."""
    refused: Count = 0
    """Nodes beyond a limit, of which an honest worker sends none."""


class _MessageRecord(_Record, frozen=True, kw_only=True):
    """The fields of a message's record at either end."""

    worker: WorkerId | None
    """The worker at the other end; None: the other end is the controller."""
    message: str
    """Its kind, such as `Commit` or `Drafts`."""
    session: SessionId | None
    """Its session; None: it concerns the connection."""
    size_bytes: Count
    """Its encoded size, without framing and encryption."""


class MessageSent(_MessageRecord, frozen=True, kw_only=True):
    """A message left this site."""


class MessageReceived(_MessageRecord, frozen=True, kw_only=True):
    """A message reached this site."""


class WorkerJoined(_Record, frozen=True, kw_only=True):
    """A worker was let in."""

    worker: WorkerId
    """The controller's id of it."""
    name: str
    """The name that it gave itself."""


class WorkerLost(_Record, frozen=True, kw_only=True):
    """A worker left or was dropped."""

    worker: WorkerId
    """The controller's id of it."""
    name: str
    """The name that it gave itself."""
    reason: str
    """Why, in words."""


class RttSample(_Record, frozen=True, kw_only=True):
    """The protocol measured a round trip."""

    worker: WorkerId
    """The worker at the other end."""
    rtt_s: Seconds
    """The round trip."""


class LinkBytes(_Record, frozen=True, kw_only=True):
    """Bytes that a relay carried since its last such record, including framing and encryption."""

    to_worker_bytes: Count
    """From the controller to the worker."""
    to_controller_bytes: Count
    """From the worker to the controller."""


class _MachineRecord(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of all records of one machine."""

    machine: str
    """Its name, unique over all processes."""


class MachineBegan(_MachineRecord, frozen=True, kw_only=True):
    """A machine was made."""

    settings: dict[str, Any]
    """Its settings as facts (`facts`)."""
    version: str
    """WANSpec's version."""


class PassAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pass that an event is the result of; the result fits no other pass."""

    sessions: tuple[SessionId, ...]
    """Sessions in the pass."""
    rows: tuple[Count, ...]
    """Rows of the answer for each session."""
    digest: Count
    """Checksum of all tokens and nodes of the question."""


class EventHandled(_MachineRecord, frozen=True, kw_only=True):
    """A machine handled an event; `t` is exactly the time that it was given."""

    event: dict[str, Any]
    """The event as facts (`facts`)."""
    asked: PassAsked | None = None
    """The pass that it is the result of; None: it is the result of none."""


Record = (
    RequestArrived
    | TokensEmitted
    | RequestFinished
    | PassStarted
    | PassFinished
    | RoundOverhead
    | Verified
    | DraftsReceived
    | MessageSent
    | MessageReceived
    | WorkerJoined
    | WorkerLost
    | RttSample
    | LinkBytes
    | MachineBegan
    | EventHandled
)
"""Any record of a trace."""
