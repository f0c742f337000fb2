"""What crosses the wire, with the bounds that a peer is held to.

A frame is a MessagePack array of messages, followed by padding; a message is an array of its tag and its fields, in the order below.
`transport.codec` turns frames into messages and back and checks the bounds while it decodes. Drafts, the many and small ones, are packed by
`transport.packed_drafts`, which has their tag (2) and their bounds.

The order of the fields is the contract between versions. Hello and Welcome may grow at the end (an older side skips what it does not know,
so that a version mismatch is refused by name), everything else changes only with PROTOCOL_VERSION. Last fields with a default may be left
out. Positions are absolute and ids count up, so a message may arrive late or twice and do no harm.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from wanspec.core.protocol.placement import LABEL, MAX_LABEL_LENGTH, MAX_LABELS
from wanspec.core.speculation.types import MAX_VOCABULARY, DraftingConfig, NodeId, Position, SamplingParams, SessionId

PROTOCOL_VERSION = 6

MAX_NAME_LENGTH = 128
"""Characters of a worker's, controller's or model's name: enough for a host name and a few words."""
MAX_REASON_LENGTH = 512
"""Characters of a reason: a few sentences for a log."""
MAX_SEQUENCE_TOKENS = 1 << 17
"""Prompt and commit lengths; bounds what one message can ask for: half a MiB on the wire, 5 MB once its tokens are Python's integers."""
MAX_WORKER_NODES = 2048
"""Nodes of one session that a worker holds at a time, the committed token at the root among them; it drafts no further ahead.

A controller counts what this worker has proposed and is still in the tree. It has then applied every commit that the worker had, and has
dropped what these removed; so the nodes that it counts are among those that the worker held when it sent its message, whatever is under
way, and an honest worker never meets the limit."""
MAX_NODES_PER_FRAME = 1024
"""Nodes of one session in one Drafts message: a worker step offers at most 128 leaves x 8 branches."""
MAX_SESSIONS = 1024
"""Sessions that one worker may offer to hold."""
MAX_SESSION_ID = (1 << 53) - 1
"""More than a controller can ever count to, and exact in every JSON reader of the traces."""
MAX_COUNT = (1 << 31) - 1
"""Openings of a session, pings and reuse numbers of a connection, and tokens of a context; one a second takes 68 years."""
MAX_NODE_ID = MAX_COUNT
MAX_VERSION = (1 << 16) - 1
MAX_HELD_S = 3600.0
"""Longest `Drafts.held_s`; a worker that held a commit for longer says this, as so old an acknowledgement shows nothing of the link."""
ACKNOWLEDGE_S = 1.0
"""A worker answers a commit with the drafts of its next pass; where that takes longer than this, it acknowledges without any. So an empty
Drafts that comes so late says that a pass is under way, and one that comes at once says that there is nothing to draft."""
MAX_STEP_S = 60.0
"""Longest `Drafts.step_s`; a slower worker says this, and is of no use."""

SMALLEST_FRAME_BYTES: Final = 512
"""Half of the bundled pair's Drafts under `adaptive` have up to 171 bytes, nine in ten up to 480, the longest 850; Commits have 8 to 30."""
MIN_PADDING_BYTES: Final = 2
"""An empty MessagePack binary: its type and its length."""

PRINTABLE = r"\A[^\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]*\Z"
"""Names and reasons end up in logs and on terminals: nothing that ends a line, moves the cursor, turns the direction or does not show."""
FINGERPRINT = r"\A[0-9a-f]{64}\Z"

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=PRINTABLE)]
Reason = Annotated[str, Meta(max_length=MAX_REASON_LENGTH, pattern=PRINTABLE)]
Label = Annotated[str, Meta(max_length=MAX_LABEL_LENGTH, pattern=LABEL)]
Version = Annotated[int, Meta(ge=0, le=MAX_VERSION)]
SessionNumber = Annotated[SessionId, Meta(ge=1, le=MAX_SESSION_ID)]
Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
TokenPosition = Annotated[Position, Meta(ge=0, lt=MAX_SEQUENCE_TOKENS)]
TokenId = Annotated[int, Meta(ge=0, lt=MAX_VOCABULARY)]


class Hello(Struct, array_like=True, tag=1, frozen=True, kw_only=True):
    """Worker to controller, first: who I am and what I draft with."""

    version: Version
    """PROTOCOL_VERSION of the worker."""
    worker_name: Name
    """The name that logs and metrics show; workers may share one."""
    model_name: Name
    """The draft model's name, for people."""
    tokenizer_fingerprint: Annotated[str, Meta(pattern=FINGERPRINT)]
    """SHA-256 of the tokenizer's canonical vocabulary, hexadecimal."""
    vocabulary_size: Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
    """Tokens of the draft model's vocabulary."""
    context_length: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    """Longest sequence, in tokens, that the draft model can hold."""
    max_sessions: Annotated[int, Meta(ge=1, le=MAX_SESSIONS)]
    """Sessions that the worker is willing to draft for at a time."""
    labels: Annotated[tuple[Label, ...], Meta(max_length=MAX_LABELS)] = ()
    """The worker's own labels (`placement`): KEY=VALUE, one value for each key."""


class Welcome(Struct, array_like=True, tag=3, frozen=True, kw_only=True):
    """Controller to worker, the answer to a Hello that fits."""

    version: Version
    """PROTOCOL_VERSION of the controller."""
    controller_name: Name
    """The name that the worker's log shows."""


class OpenSession(Struct, array_like=True, tag=4, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Controller to worker: start drafting after these tokens."""

    session_id: SessionNumber
    """The controller's id of the session."""
    opening: Count = 1
    """Counts up each time that this session is opened anywhere; Drafts repeat it, so that late ones of an earlier opening are known."""
    tokens: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_SEQUENCE_TOKENS)]
    """The whole committed sequence: the prompt, and what is generated already when a session moves here in mid-request."""
    sampling: SamplingParams
    """How the target chooses, with the seed of the common noise."""
    drafting: DraftingConfig
    """How to grow the tree."""
    reuse_number: Annotated[int, Meta(ge=0, le=MAX_COUNT)] = 0
    """The model may begin from what it has computed for closed sessions of this connection with this number (`reuse`); 0: it may not."""


class Commit(Struct, array_like=True, tag=5, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Controller to worker: these tokens are final."""

    session_id: SessionNumber
    """The session that they belong to."""
    position: TokenPosition
    """Position of the first of `tokens`."""
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_SEQUENCE_TOKENS)]
    """The committed tokens, in order."""
    newest_node_id: Annotated[int, Meta(ge=0, le=MAX_NODE_ID)] = 0
    """The highest of the worker's node ids that has arrived or is known to be lost, 0 before the first; higher ones are under way."""


class CloseSession(Struct, array_like=True, tag=6, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Controller to worker: forget this session. Repeating it is harmless."""

    session_id: SessionNumber
    """The session to forget."""


class Drain(Struct, array_like=True, tag=7, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Controller to worker: no more sessions will come; close the connection when you like, and end, unless others want you."""

    reason: Reason
    """Why, for the worker's log."""


class Ping(Struct, array_like=True, tag=9, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Controller to worker: are you there? While nothing else is said."""

    number: Count
    """Counts up from 1 on each connection."""


class Pong(Struct, array_like=True, tag=10, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Worker to controller, at once: I am."""

    number: Count
    """The number of the ping."""


class Drafts(Struct, frozen=True, kw_only=True):
    """Worker to controller: the new nodes of one draft step, for one session.

    Node i has the id `first_node_id + i`. An empty one (no nodes) only acknowledges; its `first_node_id` is above 1 where the worker has
    stopped because too much is under way, and says that what came before it and has not arrived is lost.
    """

    session_id: SessionId
    """The session that they belong to."""
    opening: int = 1
    """`OpenSession.opening`, repeated."""
    base_position: Position
    """Position of the worker's root, the newest committed token it knows; this acknowledges every commit up to it."""
    held_s: float
    """Seconds between the arrival of the commit that set the base and the sending of this message, up to MAX_HELD_S."""
    step_s: float
    """How long the worker's draft steps take at present, in seconds, up to MAX_STEP_S."""
    first_node_id: NodeId
    """The id of the first node; the others count up from it."""
    parent_ids: tuple[int, ...]
    """Ids of earlier nodes; 0 is the committed token at `base_position`."""
    tokens: tuple[int, ...]
    """The draft token of each node."""
    log_probs: tuple[float, ...]
    """Acceptance estimate of each node given its parent, natural logarithm, in [-15.9375, 0]; the wire keeps steps of 1/16."""


WorkerMessage = Hello | Drafts | Pong
"""Messages of a worker."""
ControllerMessage = Welcome | OpenSession | Commit | CloseSession | Drain | Ping
"""Messages of a controller."""
Message = WorkerMessage | ControllerMessage


def frame_bytes(content_bytes: int) -> int:
    """Length of a padded frame around this much content. Every frame has some padding (`transport.codec` says why)."""
    return next_length(content_bytes + MIN_PADDING_BYTES, smallest=SMALLEST_FRAME_BYTES)


def next_length(size_bytes: int, *, smallest: int) -> int:
    """The least of `smallest` and the powers of two above it that holds `size_bytes`."""
    return max(smallest, 1 << (size_bytes - 1).bit_length())
