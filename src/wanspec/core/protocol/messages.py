"""What crosses the wire. Plain values; the codec turns them into bytes and refuses what breaks a limit named here.

Every position is absolute and every id counts up, so that a message may come late or twice and do no harm.
"""

from __future__ import annotations

from msgspec import Struct

from wanspec.core.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, SessionId

PROTOCOL_VERSION = 5

MAX_NAME_LENGTH = 128
"""Names of workers, models and reasons: enough for a host name and a sentence."""
MAX_REASON_LENGTH = 512
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
MAX_NODE_ID = (1 << 31) - 1
MAX_OPENING = (1 << 31) - 1
"""Times that one session may be opened: each is a worker lost or rested."""
MAX_REUSE_NUMBER = (1 << 31) - 1
"""Of one connection, as `MAX_PING`."""
MAX_PING = (1 << 31) - 1
"""Of one connection: 68 years of them."""
MAX_HELD_S = 3600.0
"""An acknowledgement older than this says nothing about the link; an older one is said to be this old."""
ACKNOWLEDGE_S = 1.0
"""A worker answers a commit with the drafts of its next pass; where that takes longer than this, it acknowledges without any. So an empty
Drafts that comes so late says that a pass is under way, and one that comes at once says that there is nothing to draft."""
MAX_STEP_S = 60.0
"""Of a worker; a slower one is said to be this slow, and is of no use to anybody."""


class Hello(Struct, frozen=True, kw_only=True):
    """Worker to controller, first: who I am and what I draft with."""

    version: int
    worker_name: str
    model_name: str
    tokenizer_fingerprint: str
    """SHA-256 of the tokenizer's canonical vocabulary, hexadecimal."""
    vocabulary_size: int
    context_length: int
    """Longest sequence, in tokens, that the draft model can hold."""
    max_sessions: int
    """Sessions that the worker is willing to draft for at a time."""
    labels: tuple[str, ...] = ()
    """What the worker says of itself (`placement`): KEY=VALUE, one value for each key."""


class Welcome(Struct, frozen=True, kw_only=True):
    """Controller to worker, the answer to a Hello that fits."""

    version: int
    controller_name: str


class OpenSession(Struct, frozen=True, kw_only=True):
    """Controller to worker: start drafting after these tokens."""

    session_id: SessionId
    opening: int = 1
    """Counts up each time that this session is opened anywhere; Drafts repeat it, so that late ones of an earlier opening are known."""
    tokens: tuple[int, ...]
    """The whole committed sequence: the prompt, and what is generated already when a session moves here in mid-request."""
    sampling: SamplingParams
    drafting: DraftingConfig
    reuse_number: int = 0
    """The model may begin from what it has computed for closed sessions of this connection with this number (`reuse`); 0: it may not."""


class Commit(Struct, frozen=True, kw_only=True):
    """Controller to worker: these tokens are final."""

    session_id: SessionId
    position: Position
    """Position of the first of `tokens`."""
    tokens: tuple[int, ...]
    newest_node_id: int = 0
    """The highest of the worker's node ids that has arrived, or is known to be lost; 0 before the first. What is beyond it is under way."""


class CloseSession(Struct, frozen=True, kw_only=True):
    """Controller to worker: forget this session. Repeating it is harmless."""

    session_id: SessionId


class Drain(Struct, frozen=True, kw_only=True):
    """Controller to worker: no more sessions will come; close the connection when you like, and end, unless others want you."""

    reason: str


class Ping(Struct, frozen=True, kw_only=True):
    """Controller to worker: are you there? While nothing else is said."""

    number: int
    """Counts up from 1 on each connection."""


class Pong(Struct, frozen=True, kw_only=True):
    """Worker to controller, at once: I am."""

    number: int
    """That of the ping."""


class Drafts(Struct, frozen=True, kw_only=True):
    """Worker to controller: the new nodes of one draft step, for one session.

    Node i has the id `first_node_id + i`. An empty one (no nodes) only acknowledges; its `first_node_id` is above 1 where the worker has
    stopped because too much is under way, and says that what came before it and has not arrived is lost.
    """

    session_id: SessionId
    opening: int = 1
    """That of the OpenSession that it answers."""
    base_position: Position
    """Position of the worker's root, the newest committed token it knows; this acknowledges every commit up to it."""
    held_s: float
    """Seconds between the arrival of the commit that set the base and the sending of this message."""
    step_s: float
    """How long the worker's draft steps take at present."""
    first_node_id: NodeId
    parent_ids: tuple[int, ...]
    """Ids of earlier nodes; 0 is the committed token at `base_position`."""
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Acceptance estimate of each node given its parent, natural logarithm, in [-15.9375, 0]; the wire keeps steps of 1/16."""


WorkerMessage = Hello | Drafts | Pong
"""What a worker may send."""
ControllerMessage = Welcome | OpenSession | Commit | CloseSession | Drain | Ping
"""What a controller may send."""
Message = WorkerMessage | ControllerMessage
