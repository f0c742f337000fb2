"""A real server on a real port that says what it is told to: OpenAI's streams, Bedrock's frames, errors, silence, nonsense."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

PRELUDE, CRC, TEXT = struct.Struct(">III"), struct.Struct(">I"), 7  # of AWS's framing; 7: a header that is text

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, object]
    raw: bytes = b""
    writer: asyncio.StreamWriter = field(repr=False, default=None)  # type: ignore[assignment]

    async def send(self, data: bytes) -> None:
        """One chunk."""
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def event(self, event: object) -> None:
        await self.send(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")

    async def begin(self, kind: str = "text/event-stream") -> None:
        self.writer.write(OK + f"Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await self.writer.drain()

    async def refuse(self, status: int, body: object, **headers: str) -> None:
        data = json.dumps(body).encode()
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.writer.write(f"HTTP/1.1 {status} No\r\n{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await self.writer.drain()


Behaviour = Callable[[Asked], Awaitable[None]]


def openai(*, tokens: int = 3, wait_s: Callable[[], float] | float = 0.0, itl_s: float = 0.0) -> Behaviour:
    """An answer of so many tokens, the first of them after a wait."""

    async def behave(asked: Asked) -> None:
        await asyncio.sleep(wait_s() if callable(wait_s) else wait_s)
        await asked.begin()
        for number in range(tokens):
            if number:
                await asyncio.sleep(itl_s)
            await asked.event({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]})
        await asked.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        await asked.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}})
        await asked.event(b"[DONE]")
        await asked.send(b"")

    return behave


def encode_message(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of AWS's framing, with text headers."""
    block = b"".join(
        bytes([len(name.encode())]) + name.encode() + bytes([TEXT]) + struct.pack(">H", len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    return encode_block(block, payload)


def encode_block(block: bytes, payload: bytes) -> bytes:
    """A message whose headers are these bytes."""
    lengths = struct.pack(">II", PRELUDE.size + len(block) + len(payload) + CRC.size, len(block))
    body = lengths + CRC.pack(zlib.crc32(lengths)) + block + payload
    return body + CRC.pack(zlib.crc32(body))


def bedrock_frames(*, tokens: int = 3, latency_ms: int = 321) -> list[bytes]:
    """What ConverseStream answers, frame by frame."""

    def frame(kind: str, payload: object) -> bytes:
        headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
        return encode_message(headers, json.dumps(payload).encode())

    return [
        frame("messageStart", {"role": "assistant"}),
        *[frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "x"}}) for _ in range(tokens)],
        frame("contentBlockStop", {"contentBlockIndex": 0}),
        frame("messageStop", {"stopReason": "end_turn"}),
        frame(
            "metadata",
            {"usage": {"inputTokens": 9, "outputTokens": tokens, "totalTokens": 9 + tokens}, "metrics": {"latencyMs": latency_ms}},
        ),
    ]


def bedrock(frames: list[bytes]) -> Behaviour:
    async def behave(asked: Asked) -> None:
        await asked.begin("application/vnd.amazon.eventstream")
        for frame in frames:
            await asked.send(frame)
        await asked.send(b"")

    return behave


@dataclass
class Server:
    port: int
    behaviour: Behaviour
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


@asynccontextmanager
async def serving(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(0, behaviour)

    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        server.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    asked = await _read(reader, writer)
                    server.asked.append(asked)
                    await server.behaviour(asked)
        finally:
            talks.discard(task)
            writer.transport.abort()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(path=head[0].split()[1], headers=headers, body=json.loads(body), raw=body, writer=writer)
