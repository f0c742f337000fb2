"""A peer that speaks HTTP/2 by hand, as no library would."""

from __future__ import annotations

import asyncio
import struct

DATA, HEADERS, SETTINGS, WINDOW_UPDATE = 0, 1, 4, 8
END_HEADERS = 0x4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, body: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def preface(*, window_bytes: int = 65_535) -> bytes:
    """The beginning; `window_bytes`: what the peer may send on a stream before it is told to go on."""
    settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, settings) + frame(SETTINGS, flags=1)


def request(stream: int, path: str, **headers: str) -> bytes:
    """A gRPC call; an underscore in a header's name stands for a hyphen."""
    named = {"content-type": "application/grpc", "te": "trailers", **{name.replace("_", "-"): value for name, value in headers.items()}}
    literals = b"".join(b"\x00" + _text(name) + _text(value) for name, value in named.items())
    return frame(HEADERS, b"\x83\x86\x04" + _text(path) + b"\x01" + _text("localhost") + literals, stream=stream, flags=END_HEADERS)


def message(stream: int, body: bytes, *, is_compressed: bool = False) -> bytes:
    data = struct.pack(">BI", is_compressed, len(body)) + body
    pieces = [data[start : start + 16_384] for start in range(0, len(data), 16_384)]
    return b"".join(frame(DATA, piece, stream=stream) for piece in pieces)


async def until_the_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side hangs up."""
    data = b""
    try:
        while got := await reader.read(1 << 16):
            data += got
    except ConnectionResetError:
        pass
    return data


def _text(value: str) -> bytes:
    return bytes((len(value),)) + value.encode()
