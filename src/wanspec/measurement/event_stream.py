"""AWS's event-stream framing: binary messages with headers, a payload and two checksums.

    total length, headers' length, CRC-32 of these eight bytes | headers | payload | CRC-32 of all before

all numbers of four bytes, big-endian. A header is its name, a type and a value, each with a length where it needs one. Source: the
framing's specification in AWS's documentation ("Event stream encoding" of Amazon Transcribe and S3 Select).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from wanspec.measurement.answer import MalformedStreamError

PRELUDE: Final = struct.Struct(">III")
CRC: Final = struct.Struct(">I")
MAX_MESSAGE_BYTES: Final = 16 << 20
"""What AWS's own clients take: 16 MiB of payload."""
FIXED_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Of values by their type: true, false, byte, short, int, long, timestamp, UUID."""
COUNTED: Final = (6, 7)
"""Types whose value has a length of two bytes before it: bytes, and text."""
TEXT: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One of the stream. Of the headers, those that are text."""

    headers: dict[str, str]
    payload: bytes


class FrameReader:
    """Messages from bytes as they come."""

    def __init__(self) -> None:
        self._rest = bytearray()  # what comes in small pieces shall not be copied with each

    def push(self, data: bytes) -> list[Message]:
        """What is complete now. Raises MalformedStreamError."""
        self._rest += data
        messages = []
        while len(self._rest) >= PRELUDE.size:
            total, headers_bytes = _lengths(self._rest)
            if len(self._rest) < total:
                break
            messages.append(_message(bytes(self._rest[:total]), headers_bytes))
            del self._rest[:total]
        return messages


def _lengths(data: bytearray) -> tuple[int, int]:
    """Of the message and of its headers, once the checksum over them has been compared."""
    total, headers_bytes, crc = PRELUDE.unpack_from(data)
    if zlib.crc32(data[:8]) != crc:
        raise MalformedStreamError("the checksum of a frame's lengths is wrong")
    if not PRELUDE.size + headers_bytes + CRC.size <= total <= MAX_MESSAGE_BYTES:
        raise MalformedStreamError(f"a frame of {total} bytes with headers of {headers_bytes}")
    return total, headers_bytes


def _message(data: bytes, headers_bytes: int) -> Message:
    if zlib.crc32(data[: -CRC.size]) != CRC.unpack(data[-CRC.size :])[0]:
        raise MalformedStreamError("the checksum of a frame is wrong")
    end = PRELUDE.size + headers_bytes
    try:
        headers = _headers(data[PRELUDE.size : end])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise MalformedStreamError(f"a frame's headers cannot be read: {error}") from error
    return Message(headers=headers, payload=data[end : -CRC.size])


def _headers(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(data):
        name_end = place + 1 + data[place]
        name, kind = data[place + 1 : name_end].decode(), data[name_end]
        place = name_end + 1
        if kind in COUNTED:
            length = struct.unpack_from(">H", data, place)[0]
            place += 2
        elif kind in FIXED_BYTES:
            length = FIXED_BYTES[kind]
        else:
            raise MalformedStreamError(f"a frame's header {name!r} has a value of unknown type {kind}")
        if place + length > len(data):
            raise MalformedStreamError(f"a frame's header {name!r} is longer than the frame")
        if kind == TEXT:
            found[name] = data[place : place + length].decode()
        place += length
    return found
