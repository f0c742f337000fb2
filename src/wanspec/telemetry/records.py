"""The trace schema: everything that can happen in a run, one class for each kind of record.

A trace is a set of records. In a file each is one line of JSON whose `kind` is the class's name in snake case:

    {"kind":"pass_started","t":12.5,"site":"worker","model":"draft","sessions":[7],"tokens":3}

The drivers write them, real and simulated alike; `trace` stores them and reads them back, `metrics` computes from them. Rules:

1. A record says what happened, never what it means: figures are computed later.
2. Every record stands alone and none depends on the order, so that traces of several processes are merged by putting them together.
   Their clocks must agree; on one machine the monotonic clock does. Two kinds are an exception, in a file only: what a machine was made
   with and told, in its order, for `replay` to do it all again. No figure is computed from them.
3. Reading checks every field; a trace that reads without an error is well-formed.

Protocol events bear some of the same names, so import this module as a whole: `records.PassStarted(...)`.

They are msgspec structs and not dataclasses, because a tagged union of structs is encoded, decoded and checked in one go.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from wanspec.core.speculation.types import Position, SessionId, WorkerId

Site = Literal["controller", "worker", "link"]
"""Where it happened; `link` is a relay between the two."""
Model = Literal["target", "draft"]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


def _kind_of(class_name: str) -> str:
    """The `kind` of a record class: its name in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class _Record(Struct, frozen=True, kw_only=True, tag=_kind_of, tag_field="kind", forbid_unknown_fields=True):
    """What all records share."""

    t: float
    """When, in seconds; the origin is the driver's own."""
    site: Site


class _SessionRecord(_Record, frozen=True, kw_only=True):
    """What all records of one session share."""

    session: SessionId


class RequestArrived(_SessionRecord, frozen=True, kw_only=True):
    """A request begins."""

    prompt_tokens: Count
    policy: str
    """Name of the policy that decides for it."""


class TokensEmitted(_SessionRecord, frozen=True, kw_only=True):
    """Committed tokens were handed to the user."""

    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]


class RequestFinished(_SessionRecord, frozen=True, kw_only=True):
    """A request ends."""

    reason: str
    """Why: end of text, length, cancelled and the like."""


class PassStarted(_Record, frozen=True, kw_only=True):
    """A batched forward pass was handed to a model; a batch over many sessions is one pass."""

    model: Model
    sessions: tuple[SessionId, ...]
    tokens: Count
    """Tokens that the pass computes, over all sessions."""


class PassFinished(_Record, frozen=True, kw_only=True):
    """That pass came back."""

    model: Model
    sessions: tuple[SessionId, ...]
    tokens: Count
    duration_s: Seconds
    """From start to finish, pacing included, and the handling of the event that led to it."""


class RoundOverhead(_Record, frozen=True, kw_only=True):
    """What a round cost the thread that decides: see `ControllerEngine` for what is in it. One for each target pass."""

    sessions: tuple[SessionId, ...]
    """Those whose round it was."""
    cpu_s: Seconds
    """CPU time of the event loop's thread since the round before, or since the request arrived where it was the only one."""


class Verified(_SessionRecord, frozen=True, kw_only=True):
    """One round of one session."""

    drafted: Count
    """Draft tokens that the target scored; 0 in an ordinary decode step."""
    accepted: Count
    """Those of them that it accepted."""
    committed: Count
    """Tokens that were appended for good: the accepted ones and the bonus or correction token."""
    entropy_nats: float | None = None
    """Entropy of the target's distribution for its last choice, before the noise; None unless the policy uses it, as `paper` does."""
    accepted_estimates: tuple[float, ...] = ()
    """Probabilities given their parents at which the accepted drafts had been estimated,"""
    rejected_estimates: tuple[float, ...] = ()
    """and those of verified drafts that were not accepted though their parents were: what a calibration is judged by."""


class DraftsReceived(_SessionRecord, frozen=True, kw_only=True):
    """A worker's nodes reached the controller's tree."""

    worker: WorkerId
    nodes: Count
    """Nodes in the message."""
    joined: Count
    """Those that entered the tree or met one already there."""
    stale: Count
    """Those built on a prefix that is no longer committed or open."""
    refused: Count = 0
    """Those beyond a limit, of which an honest worker sends none."""


class _MessageRecord(_Record, frozen=True, kw_only=True):
    """What both ends record of a message."""

    worker: WorkerId | None
    """The worker at the other end; None: the other end is the controller."""
    message: str
    """Its kind, such as `Commit` or `Drafts`."""
    session: SessionId | None
    """None: it concerns the connection."""
    size_bytes: Count
    """Its encoded size, without framing and encryption."""


class MessageSent(_MessageRecord, frozen=True, kw_only=True):
    """A message left this site."""


class MessageReceived(_MessageRecord, frozen=True, kw_only=True):
    """A message reached this site."""


class WorkerJoined(_Record, frozen=True, kw_only=True):
    """A worker was let in."""

    worker: WorkerId
    name: str


class WorkerLost(_Record, frozen=True, kw_only=True):
    """A worker went away or was dropped."""

    worker: WorkerId
    name: str
    reason: str


class RttSample(_Record, frozen=True, kw_only=True):
    """The protocol measured a round trip."""

    worker: WorkerId
    rtt_s: Seconds


class LinkBytes(_Record, frozen=True, kw_only=True):
    """What a relay carried since its last such record: true bytes on the wire, framing and encryption included."""

    to_worker_bytes: Count
    to_controller_bytes: Count


class _MachineRecord(_Record, frozen=True, kw_only=True, omit_defaults=True):
    """What the records of one machine share."""

    machine: str
    """Its name, unlike that of any other machine of this or another process."""


class MachineBegan(_MachineRecord, frozen=True, kw_only=True):
    """A machine was made."""

    settings: dict[str, Any]
    """What it was made with, as `facts` has it."""
    version: str
    """WANSpec's."""


class PassAsked(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pass whose result an event is: the result fits no other."""

    sessions: tuple[SessionId, ...]
    rows: tuple[Count, ...]
    """In the answer for each of these."""
    digest: Count
    """Of all tokens and nodes of the question."""


class EventHandled(_MachineRecord, frozen=True, kw_only=True):
    """A machine was told of an event; `t` is the very time that it was given."""

    event: dict[str, Any]
    """As `facts` has it."""
    asked: PassAsked | None = None


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
