"""Between messages and bytes. A frame is a list of messages; `protocol.messages` has their layout and bounds.

What goes out is held to the same bounds as what comes in, and by the same code: a message is encoded, then validated as its receiver
would. `log_probs` come back rounded to 1/16 nat and `held_s` and `step_s` to a microsecond (`packed_drafts`).

Encryption hides the words of a frame and not its length, which would tell how many tokens a round has accepted, or a step drafted: enough
to tell texts apart (arXiv 2411.01076). So a frame is filled up to 512 bytes, or to the next power of two above: a Commit of any round, a
ping, a CloseSession and nine in ten Drafts are all of the first length. Padding is the last element of a frame, MessagePack binary of
zeros. Frames of the handshake and goodbyes have none: they say nothing of a text. A receiver takes frames without, and refuses more than
fills a frame up.

Sizes in bytes, before they are padded, for session 7 at position 300, held for 20 ms, steps of 7.5 ms, node ids near 900 and tokens near
1500: Drafts of 0 / 1 / 8 / 32 / 256 nodes 21 / 26 / 61 / 185 / 1438, a Commit of three tokens 20, a CloseSession or Ping 4; with large ids
and times throughout, Drafts of one node take 52.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from wanspec.core.protocol.messages import (
    MAX_REASON_LENGTH,
    MIN_PADDING_BYTES,
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
    Reason,
    Welcome,
    WorkerMessage,
    frame_bytes,
)
from wanspec.core.speculation.types import DraftingConfig, SamplingParams
from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.transport.packed_drafts import PackedDrafts, pack, unpack

MAX_FRAME_BYTES: Final = 1 << 20
"""Holds the longest prompt (2**17 tokens of 5 bytes) and bounds what one read can cost."""
MAX_MESSAGES_PER_FRAME: Final = 1024
"""One for each session that a worker may hold; padding counts for one."""
MAX_FRAMING_BYTES: Final = 3 + MIN_PADDING_BYTES
"""MessagePack's array header for up to MAX_MESSAGES_PER_FRAME elements, and the least padding."""


class Goodbye(Struct, array_like=True, tag=8, frozen=True, forbid_unknown_fields=True):
    """The wire's own last word, either way; always alone in its frame. Machines never see it."""

    reason: Reason
    """Why the connection ends."""
    permanent: bool
    """Whether dialling again would change nothing."""


_SMALL_ARRAY: Final = 16
"""Array lengths below this share a byte with MessagePack's type."""
_MAX_8_BITS, _MAX_16_BITS = (1 << 8) - 1, (1 << 16) - 1

_Decoded = TypeVar("_Decoded")
_from_worker: msgspec.msgpack.Decoder[list[Hello | PackedDrafts | Pong | bytes]] = msgspec.msgpack.Decoder(
    Annotated[list[Hello | PackedDrafts | Pong | bytes], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
)
_from_controller: msgspec.msgpack.Decoder[list[ControllerMessage | bytes]] = msgspec.msgpack.Decoder(
    Annotated[list[ControllerMessage | bytes], Meta(max_length=MAX_MESSAGES_PER_FRAME)]
)
_from_anybody = msgspec.msgpack.Decoder(list[Hello | PackedDrafts | Pong | ControllerMessage])
_split = msgspec.msgpack.Decoder(list[msgspec.Raw])
_goodbye: msgspec.msgpack.Decoder[list[Goodbye]] = msgspec.msgpack.Decoder(Annotated[list[Goodbye], Meta(min_length=1, max_length=1)])
_encode = msgspec.msgpack.Encoder().encode
_GOODBYE_START: Final = _encode([Goodbye(reason="", permanent=False)])[:3]
_DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""All that msgspec was seen to raise on fuzzed bytes: invalid UTF-8 is a ValueError, deep nesting a RecursionError."""
_WHERE: Final = re.compile(r"(?P<what>.*) - at `\$(?P<path>.*)`", re.DOTALL)
_STEP: Final = re.compile(r"\[(\d+)\]")
_SHAPES: Final[dict[object, type[Struct]]] = {
    shape.__struct_config__.tag: shape
    for shape in (Hello, PackedDrafts, Welcome, OpenSession, Commit, CloseSession, Drain, Goodbye, Ping, Pong)
}
_NESTED: Final = {"sampling": SamplingParams.__struct_fields__, "drafting": DraftingConfig.__struct_fields__}


def encode_message(message: Message) -> bytes:
    """One message's bytes, to be joined into a frame. Raises LocalProtocolError where the message breaks a bound."""
    try:
        data = _encode(pack(message) if isinstance(message, Drafts) else message)
        frame = join_frame([data])
        _from_anybody.decode(frame)
    except msgspec.ValidationError as error:
        raise LocalProtocolError(f"cannot send {_explain(str(error), frame)}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot send {type(message).__name__}: {error}") from error
    return data


def encoded_size(message: Message) -> int:
    """Bytes of one message, without checking it: for a trace."""
    return len(_encode(pack(message) if isinstance(message, Drafts) else message))


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
    """A frame of messages that are encoded already, padded to one of few lengths. Raises as `join_frame` does."""
    return join_frame([*parts, padding_after(len(_header(len(parts) + 1)) + sum(map(len, parts)))])


def padding_after(content_bytes: int) -> bytes:
    """The element that fills a frame up; `content_bytes` is all the rest, the array's header with this element included."""
    missing = frame_bytes(content_bytes) - content_bytes
    if missing - 2 <= _MAX_8_BITS:
        return b"\xc4" + (missing - 2).to_bytes(1, "big") + bytes(missing - 2)
    if missing - 3 <= _MAX_16_BITS:
        return b"\xc5" + (missing - 3).to_bytes(2, "big") + bytes(missing - 3)
    return b"\xc6" + (missing - 5).to_bytes(4, "big") + bytes(missing - 5)


def encode_frame(messages: Sequence[Message]) -> bytes:
    """One frame of messages, without padding. Raises LocalProtocolError where a message or the whole breaks a bound."""
    return join_frame([encode_message(message) for message in messages])


def decode_worker_frame(data: bytes) -> list[WorkerMessage]:
    """A worker's messages. Raises RemoteProtocolError, and nothing else, on anything that a worker may not send."""
    parts = _decode(data, _from_worker.decode)
    _check_padding(parts, data)
    return [unpack(part) if isinstance(part, PackedDrafts) else part for part in parts if not isinstance(part, bytes)]


def decode_controller_frame(data: bytes) -> list[ControllerMessage]:
    """A controller's messages. Raises RemoteProtocolError, and nothing else, on anything that a controller may not send."""
    parts = _decode(data, _from_controller.decode)
    _check_padding(parts, data)
    return [part for part in parts if not isinstance(part, bytes)]


def encode_goodbye(reason: str, *, permanent: bool = False) -> bytes:
    """The frame that ends a connection and says why; the reason is made `printable`."""
    return _encode([Goodbye(reason=printable(reason), permanent=permanent)])


def printable(reason: str) -> str:
    """A reason as it may be sent, logged and shown on a terminal: cut to MAX_REASON_LENGTH, with spaces for what does not print."""
    return "".join(char if char.isprintable() else " " for char in reason[:MAX_REASON_LENGTH])


def decode_goodbye(data: bytes) -> Goodbye | None:
    """The frame as a goodbye, None when it is something else. Raises RemoteProtocolError on a malformed one."""
    if not data.startswith(_GOODBYE_START):
        return None
    return _decode(data, _goodbye.decode)[0]


def _header(count: int) -> bytes:
    """MessagePack's header of an array."""
    return bytes((0x90 | count,)) if count < _SMALL_ARRAY else b"\xdc" + count.to_bytes(2, "big")


def _decode(data: bytes, decode: Callable[[bytes], list[_Decoded]]) -> list[_Decoded]:
    """The frame's parts, in their wire shapes."""
    if len(data) > MAX_FRAME_BYTES:
        raise RemoteProtocolError(f"frame of {len(data)} bytes, at most {MAX_FRAME_BYTES} (MAX_FRAME_BYTES)")
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(printable(_explain(str(error), data))) from error
    except _DECODING_ERRORS as error:
        raise RemoteProtocolError(printable(f"malformed frame: {error}")) from error


def _check_padding(parts: Sequence[object], data: bytes) -> None:
    """Raise RemoteProtocolError where the frame `data` has padding before its end, or more than fills it up."""
    if any(isinstance(part, bytes) for part in parts[:-1]):
        raise RemoteProtocolError("padding before the end of a frame")
    padding = parts[-1] if parts else None
    if isinstance(padding, bytes) and frame_bytes(len(data) - len(padding) - MIN_PADDING_BYTES) != len(data):
        raise RemoteProtocolError(f"{len(padding)} bytes of padding do not fill up a frame of {len(data)}")


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


def _shape_at(data: bytes, index: int) -> type[Struct] | None:
    """The shape that the tag of the frame's message `index` stands for, when that can be told."""
    try:
        start = bytes(_split.decode(data)[index])[:2]
    except (*_DECODING_ERRORS, IndexError):
        return None
    return _SHAPES.get(start[1]) if len(start) > 1 else None


def _name(shape: type[Struct] | None, path: list[int]) -> str:
    """`Drafts.tokens[3]` for a place in a message; the tag comes first on the wire and is no field."""
    if shape is None:
        return "message of an unknown kind"
    name, fields = shape.__name__.removeprefix("Packed"), ("tag", *shape.__struct_fields__)
    for step in path:
        name = f"{name}.{fields[step]}" if step < len(fields) else f"{name}[{step}]"
        fields = _NESTED.get(fields[step], ()) if step < len(fields) else ()
    return name
