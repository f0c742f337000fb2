"""Between messages and bytes. A frame is a list of messages; its layout is `wire_format`'s.

What goes out is held to the same bounds as what comes in, and by the same code: a message is encoded, then validated as its receiver
would. Sizes: a Drafts frame of one node takes 15 to 24 bytes (19 for session 7, position 300, a 20 ms hold, node 900, a small
vocabulary), 8 nodes about 50, an empty acknowledgement 13 to 20; a Commit of three tokens about 15. `log_probs` come back rounded to
1/16 nat and `held_s` to a microsecond.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Final, assert_never

import msgspec
from msgspec import Meta

from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.protocol.messages import (
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
    Welcome,
    WorkerMessage,
)
from wanspec.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, SessionId
from wanspec.transport.wire_format import (
    HELD_STEPS_PER_S,
    LOG_PROB_STEPS,
    LOG_PROB_STEPS_PER_NAT,
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
    SamplingFields,
    WelcomeFrame,
    WorkerFrame,
)

MAX_FRAME_BYTES: Final = 1 << 20
"""Holds the longest prompt (2**17 tokens of 5 bytes) and bounds what one read can cost."""
MAX_MESSAGES_PER_FRAME: Final = 1024
"""One for each session that a worker may hold."""
MAX_FRAME_HEADER_BYTES: Final = 3
"""MessagePack's array header for up to MAX_MESSAGES_PER_FRAME elements."""

_LOG_PROBS: Final = tuple(0.0 - step / LOG_PROB_STEPS_PER_NAT for step in range(LOG_PROB_STEPS))
_SMALL_ARRAY: Final = 16
"""Array lengths below this share a byte with MessagePack's type."""

_Frame = Annotated[list[msgspec.Raw], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
_from_worker = msgspec.msgpack.Decoder(Annotated[list[WorkerFrame], Meta(max_length=MAX_MESSAGES_PER_FRAME)])
_from_controller = msgspec.msgpack.Decoder(Annotated[list[ControllerFrame], Meta(max_length=MAX_MESSAGES_PER_FRAME)])
_one_message = msgspec.msgpack.Decoder(MessageFrame)
_goodbye = msgspec.msgpack.Decoder(Annotated[list[GoodbyeFrame], Meta(min_length=1, max_length=1)])
_encode = msgspec.msgpack.Encoder().encode
_GOODBYE_START: Final = _encode([GoodbyeFrame(reason="", permanent=False)])[:3]
_DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""All that msgspec was seen to raise on fuzzed bytes: invalid UTF-8 is a ValueError, deep nesting a RecursionError."""


def encode_message(message: Message) -> bytes:
    """One message's bytes, to be joined into a frame. Raises LocalProtocolError where the message breaks a bound."""
    try:
        data = _encode(_to_frame(message))
        _from_frame(_one_message.decode(data))
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"cannot send {type(message).__name__}: {error.reason}") from error
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"cannot send {_named(str(error), type(message).__name__, _field_names(_to_frame(message)))}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send {type(message).__name__}: {error}") from error
    return data


def join_frame(parts: Sequence[bytes]) -> bytes:
    """A frame of messages that are encoded already. Raises LocalProtocolError beyond the limits of a frame."""
    count = len(parts)
    if count > MAX_MESSAGES_PER_FRAME:
        raise LocalProtocolError(f"frame of {count} messages, at most {MAX_MESSAGES_PER_FRAME} (MAX_MESSAGES_PER_FRAME)")
    header = bytes((0x90 | count,)) if count < _SMALL_ARRAY else b"\xdc" + count.to_bytes(2, "big")
    frame = header + b"".join(parts)
    if len(frame) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"frame of {len(frame)} bytes, at most {MAX_FRAME_BYTES} (MAX_FRAME_BYTES)")
    return frame


def encode_frame(messages: Sequence[Message]) -> bytes:
    """One frame of messages. Raises LocalProtocolError where a message or the whole breaks a bound."""
    return join_frame([encode_message(message) for message in messages])


def decode_worker_frame(data: bytes) -> list[WorkerMessage]:
    """What a worker sent. Raises RemoteProtocolError, and nothing else, on anything that a worker may not send."""
    return [_from_worker_frame(frame) for frame in _decode(data, _from_worker.decode)]


def decode_controller_frame(data: bytes) -> list[ControllerMessage]:
    """What a controller sent. Raises RemoteProtocolError, and nothing else, on anything that a controller may not send."""
    return [_from_controller_frame(frame) for frame in _decode(data, _from_controller.decode)]


def encode_goodbye(reason: str, *, permanent: bool = False) -> bytes:
    """The frame that ends a connection and says why; the reason is made printable and cut to MAX_REASON_LENGTH."""
    printable = "".join(char if char.isprintable() else " " for char in reason)[:MAX_REASON_LENGTH]
    return _encode([GoodbyeFrame(reason=printable, permanent=permanent)])


def decode_goodbye(data: bytes) -> GoodbyeFrame | None:
    """The frame as a goodbye, None when it is something else. Raises RemoteProtocolError on a malformed one."""
    if not data.startswith(_GOODBYE_START):
        return None
    return _decode(data, _goodbye.decode)[0]


def _decode[Decoded](data: bytes, decode: Callable[[bytes], list[Decoded]]) -> list[Decoded]:
    ...
