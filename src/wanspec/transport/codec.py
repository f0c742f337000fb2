"""Between messages and bytes. A frame is a list of messages; its layout is `wire_format`'s.

What goes out is held to the same bounds as what comes in, and by the same code: a message is encoded, then validated as its receiver
would. `log_probs` come back rounded to 1/16 nat and `held_s` and `step_s` to a microsecond.

Sizes in bytes, before they are padded, for session 7 at position 300, held for 20 ms, steps of 7.5 ms, node ids near 900 and tokens near
1500: Drafts of 0 / 1 / 8 / 32 / 256 nodes 21 / 26 / 61 / 185 / 1438, a Commit of three tokens 20, a CloseSession or Ping 4; with large ids
and times throughout, Drafts of one node take 52.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar, assert_never

import msgspec
from msgspec import Meta

from wanspec.core.protocol.frame_length import MIN_PADDING_BYTES
from wanspec.core.protocol.messages import (
    MAX_NODE_ID,
    MAX_REASON_LENGTH,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    Hello,
    Message,
    OpenSession,
    Ping,
    Pong,
    Welcome,
    WorkerMessage,
)
from wanspec.core.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, SessionId
from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.transport.padding import check_padding, padding_after
from wanspec.transport.wire_format import (
    LOG_PROB_STEPS,
    LOG_PROB_STEPS_PER_NAT,
    STEPS_PER_S,
    CloseSessionFrame,
    CommitFrame,
    ControllerFrame,
    DraftingFields,
    DraftsFrame,
    DrainFrame,
    GoodbyeFrame,
    HelloFrame,
    MessageFrame,
    OpenSessionFrame,
    PingFrame,
    PongFrame,
    SamplingFields,
    WelcomeFrame,
    WorkerFrame,
)

MAX_FRAME_BYTES: Final = 1 << 20
"""Holds the longest prompt (2**17 tokens of 5 bytes) and bounds what one read can cost."""
MAX_MESSAGES_PER_FRAME: Final = 1024
"""One for each session that a worker may hold; padding counts for one."""
MAX_FRAMING_BYTES: Final = 3 + MIN_PADDING_BYTES
"""MessagePack's array header for up to MAX_MESSAGES_PER_FRAME elements, and the least padding."""

_LOG_PROBS: Final = tuple(0.0 - step / LOG_PROB_STEPS_PER_NAT for step in range(LOG_PROB_STEPS))
_SMALL_ARRAY: Final = 16
"""Array lengths below this share a byte with MessagePack's type."""

_Decoded = TypeVar("_Decoded")
_Shape = TypeVar("_Shape", bound=msgspec.Struct)
_from_worker: msgspec.msgpack.Decoder[list[WorkerFrame | bytes]] = msgspec.msgpack.Decoder(
    Annotated[list[WorkerFrame | bytes], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
)
_from_controller: msgspec.msgpack.Decoder[list[ControllerFrame | bytes]] = msgspec.msgpack.Decoder(
    Annotated[list[ControllerFrame | bytes], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
)
_from_anybody = msgspec.msgpack.Decoder(list[MessageFrame])
_split = msgspec.msgpack.Decoder(list[msgspec.Raw])
_goodbye: msgspec.msgpack.Decoder[list[GoodbyeFrame]] = msgspec.msgpack.Decoder(
    Annotated[list[GoodbyeFrame], Meta(min_length=1, max_length=1)]
)
_encode = msgspec.msgpack.Encoder().encode
_GOODBYE_START: Final = _encode([GoodbyeFrame(reason="", permanent=False)])[:3]
_DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""All that msgspec was seen to raise on fuzzed bytes: invalid UTF-8 is a ValueError, deep nesting a RecursionError."""
_WHERE: Final = re.compile(r"(?P<what>.*) - at `\$(?P<path>.*)`", re.DOTALL)
_STEP: Final = re.compile(r"\[(\d+)\]")
_SHAPES: Final[dict[object, type[msgspec.Struct]]] = {
    shape.__struct_config__.tag: shape
    for shape in (
        HelloFrame,
        DraftsFrame,
        WelcomeFrame,
        OpenSessionFrame,
        CommitFrame,
        CloseSessionFrame,
        DrainFrame,
        GoodbyeFrame,
        PingFrame,
        PongFrame,
    )
}
_NESTED: Final = {"sampling": SamplingFields.__struct_fields__, "drafting": DraftingFields.__struct_fields__}


def encode_message(message: Message) -> bytes:
    """One message's bytes, to be joined into a frame. Raises LocalProtocolError where the message breaks a bound."""
    try:
        data = _encode(_to_frame(message))
        frame = join_frame([data])
        _from_anybody.decode(frame)
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"cannot send {_explain(str(error), frame)}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send {type(message).__name__}: {error}") from error
    return data


def encoded_size(message: Message) -> int:
    """Bytes of one message, without checking it: for a trace."""
    return len(_encode(_to_frame(message)))


def join_frame(parts: Sequence[bytes]) -> bytes:
    """A frame of messages that are encoded already. Raises LocalProtocolError beyond the limits of a frame."""
    count = len(parts)
    if count > MAX_MESSAGES_PER_FRAME:
        raise LocalProtocolError(f"frame of {count} messages, at most {MAX_MESSAGES_PER_FRAME} (MAX_MESSAGES_PER_FRAME)")
    frame = _header(count) + b"".join(parts)
    if len(frame) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES} (MAX_FRAME_BYTES)")
    return frame


def join_padded_frame(parts: Sequence[bytes]) -> bytes:
    """The same, filled up to one of few lengths."""
    return join_frame([*parts, padding_after(len(_header(len(parts) + 1)) + sum(map(len, parts)))])


def encode_frame(messages: Sequence[Message]) -> bytes:
    """One frame of messages. Raises LocalProtocolError where a message or the whole breaks a bound."""
    return join_frame([encode_message(message) for message in messages])


def decode_worker_frame(data: bytes) -> list[WorkerMessage]:
    """What a worker sent. Raises RemoteProtocolError, and nothing else, on anything that a worker may not send."""
    parts = _decode(data, _from_worker.decode)
    check_padding(parts, size_bytes=len(data))
    return [_from_worker_frame(part) for part in parts if not isinstance(part, bytes)]


def decode_controller_frame(data: bytes) -> list[ControllerMessage]:
    """What a controller sent. Raises RemoteProtocolError, and nothing else, on anything that a controller may not send."""
    parts = _decode(data, _from_controller.decode)
    check_padding(parts, size_bytes=len(data))
    return [_from_controller_frame(part) for part in parts if not isinstance(part, bytes)]


def encode_goodbye(reason: str, *, permanent: bool = False) -> bytes:
    """The frame that ends a connection and says why; the reason is made `printable`."""
    return _encode([GoodbyeFrame(reason=printable(reason), permanent=permanent)])


def printable(reason: str) -> str:
    """A reason as it may be sent, logged and shown on a terminal: cut to MAX_REASON_LENGTH, with spaces for what does not print."""
    return "".join(char if char.isprintable() else " " for char in reason[:MAX_REASON_LENGTH])


def decode_goodbye(data: bytes) -> GoodbyeFrame | None:
    """The frame as a goodbye, None when it is something else. Raises RemoteProtocolError on a malformed one."""
    if not data.startswith(_GOODBYE_START):
        return None
    return _decode(data, _goodbye.decode)[0]


def _header(count: int) -> bytes:
    """MessagePack's, of an array."""
    return bytes((0x90 | count,)) if count < _SMALL_ARRAY else b"\xdc" + count.to_bytes(2, "big")


def _decode(data: bytes, decode: Callable[[bytes], list[_Decoded]]) -> list[_Decoded]:
    """The frame's parts, in their wire shapes."""
    if len(data) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"frame of {len(data)} bytes, at most {MAX_FRAME_BYTES} (MAX_FRAME_BYTES)")
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(_explain(str(error), data)) from error
    except _DECODING_ERRORS as error:
        raise RemoteProtocolError(f"malformed frame: {error}") from error


def _explain(error: str, data: bytes) -> str:
    """msgspec's `expected ... - at `$[message][field]`` with the names in place of the numbers."""
    where = _WHERE.fullmatch(error)
    if where is None or not where["path"]:
        return f"malformed frame: {error}"
    index, *path = (int(step) for step in _STEP.findall(where["path"]))
    shape = _shape_at(data, index)
    if shape is not None and path == [0]:
        return f"{_name(shape, [])}: not for this side to send"
    return f"{_name(shape, path)}: {where['what']}"


def _shape_at(data: bytes, index: int) -> type[msgspec.Struct] | None:
    """The shape that the tag of the frame's message `index` stands for, when that can be told."""
    try:
        start = bytes(_split.decode(data)[index])[:2]
    except (*_DECODING_ERRORS, IndexError):
        return None
    return _SHAPES.get(start[1]) if len(start) > 1 else None


def _name(shape: type[msgspec.Struct] | None, path: list[int]) -> str:
    """`Drafts.tokens[3]` for a place in a message; the tag comes first on the wire and is no field."""
    if shape is None:
        return "message of an unknown kind"
    name, fields = shape.__name__.removesuffix("Frame"), ("tag", *shape.__struct_fields__)
    for step in path:
        name = f"{name}.{fields[step]}" if step < len(fields) else f"{name}[{step}]"
        fields = _NESTED.get(fields[step], ()) if step < len(fields) else ()
    return name


def _to_frame(message: Message) -> MessageFrame:
    match message:
        case Drafts():
            return _pack_drafts(message)
        case Commit():
            return CommitFrame(message.session_id, message.position, message.tokens, message.newest_node_id)
        case OpenSession():
            return OpenSessionFrame(
                message.session_id,
                message.opening,
                message.tokens,
                _copied(SamplingFields, message.sampling),
                _copied(DraftingFields, message.drafting),
                message.reuse_number,
            )
        case CloseSession():
            return CloseSessionFrame(message.session_id)
        case Drain():
            return DrainFrame(message.reason)
        case Ping():
            return PingFrame(message.number)
        case Pong():
            return PongFrame(message.number)
        case Hello():
            return _copied(HelloFrame, message)
        case Welcome():
            return _copied(WelcomeFrame, message)
        case _:
            assert_never(message)


def _from_worker_frame(frame: WorkerFrame) -> WorkerMessage:
    match frame:
        case DraftsFrame():
            return _unpack_drafts(frame)
        case HelloFrame():
            return _copied(Hello, frame)
        case PongFrame():
            return Pong(number=frame.number)
        case _:
            assert_never(frame)


def _from_controller_frame(frame: ControllerFrame) -> ControllerMessage:
    match frame:
        case CommitFrame():
            return Commit(
                session_id=SessionId(frame.session_id),
                position=Position(frame.position),
                tokens=frame.tokens,
                newest_node_id=frame.newest_node_id,
            )
        case OpenSessionFrame():
            return OpenSession(
                session_id=SessionId(frame.session_id),
                opening=frame.opening,
                tokens=frame.tokens,
                sampling=_copied(SamplingParams, frame.sampling),
                drafting=_copied(DraftingConfig, frame.drafting),
                reuse_number=frame.reuse_number,
            )
        case CloseSessionFrame():
            return CloseSession(session_id=SessionId(frame.session_id))
        case DrainFrame():
            return Drain(reason=frame.reason)
        case PingFrame():
            return Ping(number=frame.number)
        case WelcomeFrame():
            return _copied(Welcome, frame)
        case _:
            assert_never(frame)


def _copied(shape: type[_Shape], source: msgspec.Struct) -> _Shape:
    """The fields of `source` in the shape of its counterpart, where they bear the same names; for what is not sent in every round."""
    return shape(**{name: getattr(source, name) for name in shape.__struct_fields__})


def _pack_drafts(drafts: Drafts) -> DraftsFrame:
    """Raises ValueError where the arrays do not fit each other or a value does not fit its steps."""
    _check_nodes(drafts.first_node_id, len(drafts.parent_ids), len(drafts.tokens), len(drafts.log_probs))
    steps_back = []
    for node_id, parent_id in enumerate(drafts.parent_ids, drafts.first_node_id):
        if not 0 <= parent_id < node_id:
            raise ValueError(f"parent_ids: node {node_id} has parent {parent_id}, at least 0 and below its own id")
        steps_back.append(node_id - parent_id if parent_id else 0)
    for log_prob in drafts.log_probs:
        if not _LOG_PROBS[-1] <= log_prob <= 0.0:
            raise ValueError(f"log_probs: {log_prob}, at least {_LOG_PROBS[-1]} and at most 0")
    return DraftsFrame(
        drafts.session_id,
        drafts.opening,
        drafts.base_position,
        round(drafts.held_s * STEPS_PER_S),
        round(drafts.step_s * STEPS_PER_S),
        drafts.first_node_id,
        tuple(steps_back),
        drafts.tokens,
        bytes([round(-log_prob * LOG_PROB_STEPS_PER_NAT) for log_prob in drafts.log_probs]),
    )


def _unpack_drafts(frame: DraftsFrame) -> Drafts:
    try:
        _check_nodes(frame.first_node_id, len(frame.parent_ids), len(frame.tokens), len(frame.log_probs))
    except ValueError as error:
        raise RemoteProtocolError(f"Drafts.{error}") from error
    parent_ids = []
    for node_id, steps_back in enumerate(frame.parent_ids, frame.first_node_id):
        if steps_back >= node_id:
            raise RemoteProtocolError(f"Drafts.parent_ids: node {node_id} has a parent {steps_back} ids back, at most {node_id - 1}")
        parent_ids.append(node_id - steps_back if steps_back else 0)
    return Drafts(
        session_id=SessionId(frame.session_id),
        opening=frame.opening,
        base_position=Position(frame.base_position),
        held_s=frame.held_s / STEPS_PER_S,
        step_s=frame.step_s / STEPS_PER_S,
        first_node_id=NodeId(frame.first_node_id),
        parent_ids=tuple(parent_ids),
        tokens=frame.tokens,
        log_probs=tuple([_LOG_PROBS[step] for step in frame.log_probs]),
    )


def _check_nodes(first_node_id: int, parents: int, tokens: int, log_probs: int) -> None:
    """Raises ValueError unless the arrays are of one length and their ids within bounds."""
    if not parents == tokens == log_probs:
        raise ValueError(f"parent_ids, tokens, log_probs: {parents}, {tokens} and {log_probs} of them, must be equally many")
    if first_node_id + parents - 1 > MAX_NODE_ID:
        raise ValueError(f"first_node_id: {first_node_id} and {parents} nodes, the last at most {MAX_NODE_ID} (MAX_NODE_ID)")
