"""The shapes on the wire, with every bound that a peer is held to. `codec` turns them into messages and back.

A frame is a MessagePack array of messages and, last, of `padding`; a message is an array of its tag and its fields, in the order below.
Positions in the arrays are the contract between versions: Hello and Welcome may grow at the end (an older side skips what it does not know,
so that a version mismatch is refused by name), everything else changes only with `PROTOCOL_VERSION`.
"""

from __future__ import annotations

import sys
from typing import Annotated

from msgspec import Meta, Struct

from wanspec.core.protocol.messages import (
    MAX_HELD_S,
    MAX_NAME_LENGTH,
    MAX_NODE_ID,
    MAX_NODES_PER_FRAME,
    MAX_OPENING,
    MAX_PING,
    MAX_REASON_LENGTH,
    MAX_REUSE_NUMBER,
    MAX_SEQUENCE_TOKENS,
    MAX_SESSIONS,
    MAX_STEP_S,
)
from wanspec.core.protocol.placement import LABEL, MAX_LABEL_LENGTH, MAX_LABELS
from wanspec.core.speculation.types import MAX_VOCABULARY

MAX_SESSION_ID = (1 << 53) - 1
"""More than a controller can ever count to, and exact in every JSON reader of the traces."""
MAX_VERSION = (1 << 16) - 1
MAX_CONTEXT_LENGTH = (1 << 31) - 1
MAX_BRANCH = 8
MAX_LEAVES = 128
MAX_DRAFT_DEPTH = 64
STEPS_PER_S = 1_000_000
"""`held_s` and `step_s` travel as whole microseconds: far below the noise of any clock that reads them, 3 bytes for what is usual."""
LOG_PROB_STEPS_PER_NAT = 16
"""`log_probs` travel as one byte each, in steps of 1/16 nat (6 % in probability)."""
LOG_PROB_STEPS = 256

PRINTABLE = r"\A[^\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]*\Z"
"""Names and reasons end up in logs and on terminals: nothing that ends a line, moves the cursor, turns the direction or does not show."""
FINGERPRINT = r"\A[0-9a-f]{64}\Z"

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=PRINTABLE)]
Reason = Annotated[str, Meta(max_length=MAX_REASON_LENGTH, pattern=PRINTABLE)]
Label = Annotated[str, Meta(max_length=MAX_LABEL_LENGTH, pattern=LABEL)]
Version = Annotated[int, Meta(ge=0, le=MAX_VERSION)]
SessionNumber = Annotated[int, Meta(ge=1, le=MAX_SESSION_ID)]
Opening = Annotated[int, Meta(ge=1, le=MAX_OPENING)]
PingNumber = Annotated[int, Meta(ge=1, le=MAX_PING)]
TokenPosition = Annotated[int, Meta(ge=0, lt=MAX_SEQUENCE_TOKENS)]
Token = Annotated[int, Meta(ge=0, lt=MAX_VOCABULARY)]
FiniteFloat = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


class HelloFrame(Struct, array_like=True, tag=1, frozen=True):
    """messages.Hello, field by field."""

    version: Version
    worker_name: Name
    model_name: Name
    tokenizer_fingerprint: Annotated[str, Meta(pattern=FINGERPRINT)]
    vocabulary_size: Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
    context_length: Annotated[int, Meta(ge=1, le=MAX_CONTEXT_LENGTH)]
    max_sessions: Annotated[int, Meta(ge=1, le=MAX_SESSIONS)]
    labels: Annotated[tuple[Label, ...], Meta(max_length=MAX_LABELS)] = ()


class DraftsFrame(Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """messages.Drafts, packed into as few bytes as plain MessagePack allows."""

    session_id: SessionNumber
    opening: Opening
    base_position: TokenPosition
    held_s: Annotated[int, Meta(ge=0, le=int(MAX_HELD_S * STEPS_PER_S))]
    """In steps of 1 / STEPS_PER_S."""
    step_s: Annotated[int, Meta(ge=0, le=int(MAX_STEP_S * STEPS_PER_S))]
    """Likewise."""
    first_node_id: Annotated[int, Meta(ge=1, le=MAX_NODE_ID)]
    parent_ids: Annotated[tuple[Annotated[int, Meta(ge=0, lt=MAX_NODE_ID)], ...], Meta(max_length=MAX_NODES_PER_FRAME)]
    """How far back each parent is (own id minus parent's id); 0 is the base."""
    tokens: Annotated[tuple[Token, ...], Meta(max_length=MAX_NODES_PER_FRAME)]
    log_probs: Annotated[bytes, Meta(max_length=MAX_NODES_PER_FRAME)]
    """One byte each: -log_prob in steps of 1 / LOG_PROB_STEPS_PER_NAT."""


class WelcomeFrame(Struct, array_like=True, tag=3, frozen=True):
    """messages.Welcome, field by field."""

    version: Version
    controller_name: Name


class SamplingFields(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """types.SamplingParams, field by field."""

    temperature: Annotated[float, Meta(ge=0.0, le=sys.float_info.max)]
    top_k: Annotated[int, Meta(ge=0, le=MAX_VOCABULARY)]
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)]
    seed: Annotated[int, Meta(ge=0)]
    """MessagePack itself ends at 2**64 - 1."""


class DraftingFields(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """types.DraftingConfig, field by field."""

    branch: Annotated[int, Meta(ge=1, le=MAX_BRANCH)]
    leaves: Annotated[int, Meta(ge=1, le=MAX_LEAVES)]
    entropy_threshold_nats: FiniteFloat
    max_depth: Annotated[int, Meta(ge=1, le=MAX_DRAFT_DEPTH)]
    path_prob_min: Annotated[float, Meta(ge=0.0, lt=1.0)]
    is_calibrated: bool


class OpenSessionFrame(Struct, array_like=True, tag=4, frozen=True, forbid_unknown_fields=True):
    """messages.OpenSession, field by field."""

    session_id: SessionNumber
    opening: Opening
    tokens: Annotated[tuple[Token, ...], Meta(min_length=1, max_length=MAX_SEQUENCE_TOKENS)]
    sampling: SamplingFields
    drafting: DraftingFields
    reuse_number: Annotated[int, Meta(ge=0, le=MAX_REUSE_NUMBER)]


class CommitFrame(Struct, array_like=True, tag=5, frozen=True, forbid_unknown_fields=True):
    """messages.Commit, field by field."""

    session_id: SessionNumber
    position: TokenPosition
    tokens: Annotated[tuple[Token, ...], Meta(max_length=MAX_SEQUENCE_TOKENS)]
    newest_node_id: Annotated[int, Meta(ge=0, le=MAX_NODE_ID)]


class CloseSessionFrame(Struct, array_like=True, tag=6, frozen=True, forbid_unknown_fields=True):
    """messages.CloseSession, field by field."""

    session_id: SessionNumber


class DrainFrame(Struct, array_like=True, tag=7, frozen=True, forbid_unknown_fields=True):
    """messages.Drain, field by field."""

    reason: Reason


class GoodbyeFrame(Struct, array_like=True, tag=8, frozen=True, forbid_unknown_fields=True):
    """The wire's own last word, either way; always alone in its frame. Machines never see it."""

    reason: Reason
    permanent: bool


class PingFrame(Struct, array_like=True, tag=9, frozen=True, forbid_unknown_fields=True):
    """messages.Ping, field by field."""

    number: PingNumber


class PongFrame(Struct, array_like=True, tag=10, frozen=True, forbid_unknown_fields=True):
    """messages.Pong, field by field."""

    number: PingNumber


WorkerFrame = HelloFrame | DraftsFrame | PongFrame
ControllerFrame = WelcomeFrame | OpenSessionFrame | CommitFrame | CloseSessionFrame | DrainFrame | PingFrame
MessageFrame = WorkerFrame | ControllerFrame
