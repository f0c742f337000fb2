"""One connection, over any `FramePipe`, which only moves opaque frames.

A `FramedConnection` has everything that is the same on every wire: the queue of unsent messages, joined into as few frames as possible;
the queue of unread frames, with back-pressure; the rate limits; and how a connection ends.

Sending: `send` encodes at once, so that an error points at its caller, and queues; one task writes. While a write is under way more
messages gather, and the next frame takes them all: no delay is ever added. Receiving: one task reads ahead up to a limit.

The end happens once, through `_end`, for one of four causes: our caller closes; the peer says goodbye; the peer breaks a limit; the pipe
breaks. In the first case the queue still goes out, in the first and third the peer is told why; then both sides let go, and the pipe is
cut if that takes longer than `close_timeout_s`. Each raise uses a copy of the error: a traceback keeps its frames, and through them this
connection and gRPC's call, alive until the next garbage collection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Final, Protocol

from wanspec.core.protocol.messages import Drafts, Message
from wanspec.errors import RemoteProtocolError, TransportError
from wanspec.transport.codec import (
    MAX_FRAME_BYTES,
    MAX_FRAMING_BYTES,
    MAX_MESSAGES_PER_FRAME,
    decode_goodbye,
    encode_goodbye,
    encode_message,
    join_padded_frame,
)
from wanspec.transport.door import Turns
from wanspec.transport.interface import SlowPeerError, Traffic, WorkerRefusedError
from wanspec.transport.limits import Allowance, WireLimits

_UNKNOWN_END: Final = f"it died, the network broke, or a frame was longer than {MAX_FRAME_BYTES} bytes (MAX_FRAME_BYTES)"


def _forgive(reason: str) -> None:
    """A peer's fault has no consequences beyond its connection."""


class FramePipe(Protocol):
    """An ordered, bidirectional stream of frames. At most one task reads and one writes."""

    async def read(self) -> bytes | None:
        """The next frame, or None when the peer has ended the stream. Raises TransportError when the stream broke."""
        ...

    async def write(self, frame: bytes) -> None:
        """Hand over one frame; waits while the peer is not reading. Raises TransportError when the stream broke."""
        ...

    async def end(self) -> None:
        """Say that nothing more will be written. Raises TransportError when the stream broke."""
        ...

    async def abort(self, reason: str) -> None:
        """Free what the stream holds, now, after the last read and write; a wire that can tell the peer a non-empty reason does."""
        ...


class FramedConnection:
    """A `Connection` over a pipe. Make it inside a running event loop; it lives until it is closed or lost."""

    def __init__(
        self,
        pipe: FramePipe,
        *,
        peer: str,
        decode: Callable[[bytes], Sequence[Message]],
        limits: WireLimits,
        worker: str = "",
        identity: str = "",
        on_fault: Callable[[str], object] = _forgive,
        turns: Turns | None = None,
    ) -> None:
        """`worker` names the peer in RemoteProtocolError; empty at a worker, whose peer is the controller.

        `on_fault` is called once, at once, with the reason why the peer was dropped, even if it has hung up first. `turns`: its turns at
        the listener's door, if it came through one.
        """
        self._pipe = pipe
        self._peer, self._identity = peer, identity
        self._decode = decode
        self._limits = limits
        self._worker = worker
        self._turns = turns
        self._frames = Allowance(limits.max_frames_per_s, limits.max_frames_burst)
        self._messages = Allowance(limits.max_messages_per_s, limits.max_messages_burst)
        self._nodes = Allowance(limits.max_nodes_per_s, limits.max_nodes_burst)
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._to_write = asyncio.Event()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ended = asyncio.Event()
        self._on_fault = on_fault
        self._is_at_fault = False
        self._failure: TransportError | None = None
        self._violation: RemoteProtocolError | None = None
        self._farewell: bytes | None = None
        self._sent_bytes = 0
        self._received_bytes = 0
        self._life = asyncio.create_task(self._live())

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def traffic(self) -> Traffic:
        return Traffic(self._sent_bytes, self._received_bytes)

    def send(self, messages: Sequence[Message]) -> None:
        if self._failure is not None:
            raise copy(self._failure)
        parts = [encode_message(message) for message in messages]
        size = sum(map(len, parts))
        if self._unsent_bytes + size > self._limits.max_unsent_bytes:
            reason = f"too slow: {self._unsent_bytes + size} bytes unsent, at most {self._limits.max_unsent_bytes} (max_unsent_bytes)"
            failure = SlowPeerError(f"{self.peer} was dropped: {reason}")
            self._drop(reason, failure)
            raise copy(failure)
        self._unsent.extend(parts)
        self._unsent_bytes += size
        self._to_write.set()

    async def receive(self) -> Sequence[Message]:
        while not self._unread:
            if self._failure is not None:
                raise copy(self._violation or self._failure)
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._unread.popleft()
        self._unread_bytes -= len(frame)
        if self._unread_bytes <= self._limits.max_unread_bytes:
            self._room.set()
        try:
            messages = self._decode(frame)
        except RemoteProtocolError as error:
            raise self._accuse(error.reason) from error
        now = asyncio.get_running_loop().time()
        if not self._messages.take(len(messages), now=now):
            raise self._accuse(f"more than {self._limits.max_messages_per_s:g} messages a second (max_messages_per_s)")
        nodes = sum(len(message.tokens) for message in messages if isinstance(message, Drafts))
        if not self._nodes.take(nodes, now=now):
            raise self._accuse(f"more than {self._limits.max_nodes_per_s:g} draft nodes a second (max_nodes_per_s)")
        if self._turns is not None:
            await self._turns.take(messages=len(messages), nodes=nodes)
        return messages

    async def close(self, reason: str) -> None:
        self._end(TransportError(f"closed here: {reason}"), farewell=encode_goodbye(reason))
        self._forget_unread()
        await self.wait_closed()

    async def drop(self, reason: str) -> None:
        self._drop(reason)
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Return once the connection has ended, for whatever cause, and has freed everything."""
        await asyncio.shield(self._life)

    def lose(self, reason: str) -> None:
        """Take note that the pipe is gone, before a read or write finds out."""
        self._end(TransportError(f"{self.peer}: {reason}"))

    def _accuse(self, reason: str) -> RemoteProtocolError:
        """Drop a peer that broke the protocol; `receive` says so from now on."""
        self._violation = RemoteProtocolError(reason, worker=self._worker)
        self._drop(reason)
        return copy(self._violation)

    def _drop(self, reason: str, failure: TransportError | None = None) -> None:
        """End it because of what the peer did: nothing but the reason goes out."""
        if not self._is_at_fault:
            self._is_at_fault = True
            self._on_fault(reason)
        self._unsent.clear()
        self._forget_unread()
        self._end(failure or TransportError(f"{self.peer} was dropped: {reason}"), farewell=encode_goodbye(reason))

    def _forget_unread(self) -> None:
        self._unread.clear()
        self._unread_bytes = 0
        self._room.set()

    def _end(self, failure: TransportError, *, farewell: bytes | None = None) -> None:
        if self._failure is not None:
            return
        self._failure = failure.with_traceback(None)
        self._farewell = farewell
        for event in (self._to_write, self._arrived, self._room, self._ended):
            event.set()

    async def _live(self) -> None:
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        is_untold = False
        try:
            await self._ended.wait()
            if self._farewell is not None:
                await asyncio.wait((reader, writer), timeout=self._limits.close_timeout_s)
                is_untold = not writer.done()
        finally:
            self._end(TransportError(f"{self.peer}: the event loop is closing"))
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            await self._pipe.abort(str(self._failure) if is_untold else "")

    async def _read(self) -> None:
        try:
            while (frame := await self._pipe.read()) is not None:
                if self._failure is None:
                    self._take(frame)
                    await self._room.wait()
            self._end(TransportError(f"{self.peer} is gone without a word: {_UNKNOWN_END}"))
        except TransportError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - a fault below must not leave our caller waiting for ever
            self._end(TransportError(f"{self.peer}: {error!r}"))

    def _take(self, frame: bytes) -> None:
        self._received_bytes += len(frame)
        if not self._frames.take(now=asyncio.get_running_loop().time()):
            self._accuse(f"more than {self._limits.max_frames_per_s:g} frames a second (max_frames_per_s)")
            return
        try:
            goodbye = decode_goodbye(frame)
        except RemoteProtocolError as error:
            self._accuse(error.reason)
            return
        if goodbye is not None:
            kind = WorkerRefusedError if goodbye.permanent else TransportError
            self._end(kind(f"{self.peer} closed the connection: {goodbye.reason}"))
            return
        self._unread.append(frame)
        self._unread_bytes += len(frame)
        self._arrived.set()
        if self._unread_bytes > self._limits.max_unread_bytes:
            self._room.clear()

    async def _write(self) -> None:
        try:
            while self._failure is None or (self._farewell is not None and self._unsent):
                if self._unsent:
                    await self._put(self._next_frame())
                else:
                    self._to_write.clear()
                    await self._to_write.wait()
            if self._farewell is not None:
                await self._put(self._farewell)
                await self._pipe.end()
        except TransportError as error:
            with contextlib.suppress(TimeoutError):  # the peer's goodbye, which says more, may be on its way to the reader
                async with asyncio.timeout(self._limits.close_timeout_s):
                    await self._ended.wait()
            self._end(error)
        except Exception as error:  # noqa: BLE001 - a fault below must not leave our caller waiting for ever
            self._end(TransportError(f"{self.peer}: {error!r}"))

    async def _put(self, frame: bytes) -> None:
        await self._pipe.write(frame)
        self._sent_bytes += len(frame)

    def _next_frame(self) -> bytes:
        parts: list[bytes] = []
        room = MAX_FRAME_BYTES - MAX_FRAMING_BYTES
        while self._unsent and len(self._unsent[0]) <= room and len(parts) < MAX_MESSAGES_PER_FRAME - 1:
            part = self._unsent.popleft()
            parts.append(part)
            room -= len(part)
            self._unsent_bytes -= len(part)
        assert parts, "no message is as long as a frame"
        return join_padded_frame(parts)
